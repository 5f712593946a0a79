"""Quality in equal time on Fashion-MNIST, against the libraries that a user would pick instead.

    python -m benchmarks.fashion_peers --work=DIR --minutes=20

First it measures the speed of each contender on two cores, in turn: all contenders, three times.
Nothing else may run during that. Then each contender trains on the same 60,000 pictures. It takes
as many steps as fit in the given time at its median speed. So the trainings themselves may run
beside other work, or two of them on a core each (`taskset -c 0 ... --only=diffusers`). Each
contender draws samples from its EMA weights with 50 evaluations of the
network per sample. It uses the best of its samplers, chosen by 1,000 samples of another seed.
`benchmarks/fashion_quality.py` judges the samples. The contenders:

  ours               the config of --ours, without classes
  diffusers          diffusers' example of unconditional training; its network has about our size
  diffusers_near     the same with our network: equal layers, and our patches as channels
  ddpm_pytorch       denoising-diffusion-pytorch's Trainer; its network has about our size
  ddpm_pytorch_near  the same with the network as near to ours as its options allow

The modules in `benchmarks/peers/` say what exactly these are. The script installs the two libraries
into environments of their own under DIR (7 GB, because of PyTorch with CUDA). It keeps all that is
done under DIR: the same command, started again, continues. The time of a training excludes imports,
data and compilation; the table has these as "preparation".

The table and all numbers, with the loss curves, are in DIR/<minutes>min/results.md and .json. There
are also samples.png, the first samples of each training, and losses.png. The folder of each
training has a larger picture of its samples.
"""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import fashion_quality
from benchmarks.peers.networks import ddpm_pytorch_unet, diffusers_unet
from benchmarks.peers.results import (
    Measured,
    arrange,
    measured,
    restore,
    steps_per_second,
    table,
    verdict,
)
from ddpm_jax import data
from ddpm_jax.config import Config, from_dict
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.figures import grids
from ddpm_jax.models import count_parameters
from ddpm_jax.runtime.files import absolute, replacing
from ddpm_jax.training.parts import build_parts
from experiments import command, config_flag, outputs, tables

WORK = flags.DEFINE_string("work", None, "Directory of the results; needs 10 GB.", required=True)
MINUTES = flags.DEFINE_float("minutes", 20, "Minutes of training, each.", lower_bound=0.1)
ONLY = flags.DEFINE_list("only", None, "Contenders to run. Default: all.")
SAMPLES = flags.DEFINE_integer("samples", 10_000, "Number of samples per seed.", lower_bound=10)
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds of sampling.", lower_bound=1)
TRAINING_SEED = flags.DEFINE_integer(
    "training_seed", 0, "Seed of the trainings. The table has the trainings of all seeds in DIR."
)
OURS = flags.DEFINE_string(
    "ours",
    "--config=experiments/fashion_mnist.py:small",
    "Our contender: arguments of experiments.train, as one string.",
)

ROOT = pathlib.Path(__file__).parents[1]
THREADS = 2
EVALUATIONS = 50
PILOT, PILOT_SEED = 1000, 1000  # samples that choose the sampler, and their seed
SPEED_SECONDS = 45.0  # a speed is measured for this time, or for that of the training if shorter
SPEED_ROUNDS = 3
PEER_SIDE = 32  # the default networks of both peers halve the side more often than 28 allows
GRID = 100  # samples in the picture of a training
ROW = 20  # samples of a training in the picture of all
NOTES_EVERY = 60.0  # seconds between lines of progress, if there is no terminal
ENVIRONMENTS = {  # name -> the packages that pip installs; other names are this environment
    "diffusers": ("torch==2.13.0", "diffusers==0.42.1"),
    "ddpm_pytorch": (
        "torch==2.14.1",
        "torchvision==0.29.1",
        "denoising-diffusion-pytorch==2.3.1",
    ),
}


class Ours(NamedTuple):
    """Our contender: what the others are fitted to.

    Attributes:
      arguments: the arguments of experiments.train.
      config: the config that they give.
      parameters: the number of parameters of the network.
      side: height and width of the pictures in pixels.
    """

    arguments: tuple[str, ...]
    config: Config
    parameters: int
    side: int

    @property
    def patch(self) -> int:
        """The side of a patch."""
        return self.config.model.patch_size


class Contender(NamedTuple):
    """How to train and sample by one library.

    Attributes:
      module: the module in `benchmarks/peers`.
      environment: the environment that it runs in: a row of ENVIRONMENTS, or "" for this one.
      network: our contender -> the option --network of the module.
      near: whether its network sees our pictures: with our side, and our patches as channels.
      samplers: names of the module's samplers to choose from.
      pictures: the suffix of the pictures that the module reads: .npz, or "" for a folder of PNG.
    """

    module: str
    environment: str
    network: Callable[[Ours], dict[str, Any]]
    near: bool
    samplers: tuple[str, ...]
    pictures: str = ".npz"


def _scaled(ours: Ours) -> dict[str, Any]:
    return {"parameters": ours.parameters}


def _scaled_unet(ours: Ours) -> dict[str, Any]:
    return {"parameters": ours.parameters, "side": PEER_SIDE, "channels": 1}


def _near_unet2d(ours: Ours) -> dict[str, Any]:
    return diffusers_unet(ours.config.model, ours.side // ours.patch)


def _near_unet(ours: Ours) -> dict[str, Any]:
    side = ours.side // ours.patch
    options = ddpm_pytorch_unet(ours.config.model, side)
    return {**options, "side": side, "channels": ours.patch**2}


def _ours(ours: Ours) -> dict[str, Any]:
    return {"arguments": ours.arguments, "parameters": ours.parameters}


DIFFUSERS = functools.partial(
    Contender,
    "diffusers_example",
    "diffusers",
    samplers=(
        "dpm_solver_pp_2m",
        "dpm_solver_pp_2m, trailing",
        "dpm_solver_pp_2m, trailing, clipped",
        "ddim",
        "ddim, trailing",
    ),
)
DDPM_PYTORCH = functools.partial(
    Contender, "ddpm_pytorch", "ddpm_pytorch", samplers=("ddim",), pictures=""
)
CONTENDERS: dict[str, Contender] = {
    "ours": Contender(
        "ours",
        "",
        _ours,
        near=False,
        samplers=("dpm_solver_pp_2m, trailing", "unipc, trailing"),
    ),
    "diffusers": DIFFUSERS(network=_scaled, near=False),
    "diffusers_near": DIFFUSERS(network=_near_unet2d, near=True),
    "ddpm_pytorch": DDPM_PYTORCH(network=_scaled_unet, near=False),
    "ddpm_pytorch_near": DDPM_PYTORCH(network=_near_unet, near=True),
}
console = tables.console()


def our_contender(arguments: Sequence[str]) -> Ours:
    """Return our contender; a config with classes loses them, because the peers have none."""
    values = flags.FlagValues()
    holder = config_flag.define("The config of our contender.", values)
    values(["ours", *arguments])
    if holder.value["model"]["class_conditional"]:
        unconditional = ["--config.model.class_conditional=False", "--config.sample.guidance=0.0"]
        return our_contender([*arguments, *unconditional])
    config = from_dict(holder.value)
    height, _, _ = shape = data.open_dataset(config.data).image_shape
    parameters = count_parameters(jax.eval_shape(build_parts(config, shape, 10).init).params)
    return Ours(tuple(arguments), config, parameters, height)


def python_of(environment: str, work: pathlib.Path) -> str:
    """Return the interpreter of an environment; the first call installs it."""
    packages = ENVIRONMENTS.get(environment)
    if packages is None:
        return sys.executable
    root = work / "environments" / environment
    python, done = str(root / "bin" / "python"), root / "installed.txt"
    if not done.exists() or done.read_text().split() != list(packages):
        log = work / "environments" / f"{environment}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        watch([sys.executable, "-m", "venv", str(root)], log, f"environment {environment}")
        install = [python, "-m", "pip", "install", *packages]
        watch(install, log, f"environment {environment}: installing")
        done.write_text("\n".join(packages))
    return python


def watch(
    line: Sequence[str], log: pathlib.Path, what: str, env: Mapping[str, str] | None = None
) -> None:
    """Run a command and show its progress: the last line of its log.

    Args:
      line: the command line.
      log: the file that receives its output.
      what: what it does.
      env: its environment variables; None is those of this process.

    Raises:
      UserError: the command fails.
    """
    start, noted = time.monotonic(), -NOTES_EVERY
    with log.open("a") as out, console.status(what) as status:
        process = subprocess.Popen(
            line, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            while process.poll() is None:
                elapsed = time.monotonic() - start
                text = f"{what} ({datetime.timedelta(seconds=int(elapsed))}): {_last_line(log)}"
                status.update(text)
                if not console.is_terminal and elapsed - noted >= NOTES_EVERY:
                    noted = elapsed
                    console.print(text)
                time.sleep(0.5)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise UserError(
            f"{what}: the command failed with exit code {process.returncode}: {_last_line(log)}; "
            f"its output is in {log}"
        )
    console.print(f"{what}: done in {datetime.timedelta(seconds=int(time.monotonic() - start))}")


def _last_line(log: pathlib.Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace").strip())
    return lines[-1]


def pictures_for(contender: Contender, ours: Ours, work: pathlib.Path) -> pathlib.Path:
    """Return the training pictures as the contender sees them; the first call writes them."""
    side, patch = (ours.side, ours.patch) if contender.near else (PEER_SIDE, 1)
    path = work / "pictures" / f"{side}x{side}_patch{patch}{contender.pictures}"
    if path.exists() or contender.module == "ours":
        return path
    train = data.open_dataset(_data(ours)).train
    images = arrange(train.read(np.arange(len(train)))[0], side, patch)
    with console.status(f"writing {path}"):
        if contender.pictures:
            with replacing(path) as part, part.open("wb") as file:
                np.savez(file, images=images)
        else:
            _write_png(path, images)
    return path


def _write_png(folder: pathlib.Path, images: np.ndarray) -> None:
    """Write each picture as a PNG: 1 channel is grey, 4 channels are RGBA."""
    if images.shape[-1] not in (1, 4):
        raise UserError(
            f"a PNG cannot hold {images.shape[-1]} channels; for denoising-diffusion-pytorch, our "
            "config needs model.patch_size 1 or 2"
        )
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for i, image in enumerate(images):
        picture = image[:, :, 0] if image.shape[-1] == 1 else image
        Image.fromarray(picture).save(part / f"{i:05d}.png")
    part.rename(folder)


def _data(ours: Ours) -> Any:
    """Return the config of the data: 28x28, in our contender's data directory."""
    return dataclasses.replace(fashion_quality.DATA, data_dir=ours.config.data.data_dir)


class Runner:
    """Runs the script of a contender; keeps what is done.

    Args:
      name: a row of CONTENDERS.
      ours: our contender.
      work: the directory of the whole benchmark.
      seconds: the time of the training.

    Attributes:
      folder: the directory of this contender's results.
    """

    def __init__(self, name: str, ours: Ours, work: pathlib.Path, seconds: float):
        self._name, self._ours, self._seconds = name, ours, seconds
        self._contender = contender = CONTENDERS[name]
        self.folder = results_of(work, seconds) / f"{name}-{TRAINING_SEED.value}"
        python = python_of(contender.environment, work)
        self._module = [python, "-m", f"benchmarks.peers.{contender.module}"]
        self._pictures = pictures_for(contender, ours, work)
        self._env = dict(os.environ)
        if contender.environment:
            self._env.pop("PYTHONPATH", None)
            self._env["OMP_NUM_THREADS"] = str(_cores())
        else:  # compiles everything itself, whatever ran before
            self._env["JAX_COMPILATION_CACHE_DIR"] = str(self.folder / "compiled")
        self._network = json.dumps(contender.network(ours))
        packages = ENVIRONMENTS.get(contender.environment, ())
        network = json.loads(self._network)
        settings = {"network": network, "seconds": seconds, "packages": list(packages)}
        self._speeds = results_of(work, seconds) / f"{name}-speed"  # the same for all seeds
        for folder in (self.folder, self._speeds):
            _check_same(folder, settings)

    def _run(self, what: str, options: Mapping[str, Any], log: pathlib.Path, doing: str) -> None:
        line = [*self._module, what, *(f"--{name}={value}" for name, value in options.items())]
        watch(line, log, f"{self._name}: {doing}", self._env)

    def _train(self, where: pathlib.Path, limit: Mapping[str, float], doing: str) -> None:
        if (where / "trained.json").exists():
            return
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        options = {
            "folder": where,
            "pictures": self._pictures,
            "network": self._network,
            "seed": TRAINING_SEED.value,
            **limit,
        }
        self._run("train", options, where / "log.txt", doing)

    def measure_speed(self, number: int) -> None:
        """Train for a short time.

        Raises:
          UserError: the process may not use enough cores.
        """
        where = self._speeds / str(number)
        if not (where / "trained.json").exists() and _cores() < THREADS:
            raise UserError(f"a speed is measured on {THREADS} cores; this process has {_cores()}")
        short = min(SPEED_SECONDS, self._seconds)
        doing = f"measuring the speed, round {number + 1} of {SPEED_ROUNDS}"
        self._train(where, {"seconds": short}, doing)

    def train(self) -> dict[str, Any]:
        """Train, and return the facts, the speeds and the loss curve."""
        first = json.loads((self._speeds / "0" / "trained.json").read_text())
        speeds = [curve_of(self._speeds / str(n)) for n in range(SPEED_ROUNDS)]
        per_second = sorted(steps_per_second(curve) for curve in speeds)
        steps = max(1, int(self._seconds * statistics.median(per_second)))
        where = self.folder / "training"
        self._train(where, {"steps": steps}, f"training for {steps} steps")
        return {
            **json.loads((where / "trained.json").read_text()),
            "preparation": first["preparation"],  # nothing was compiled before
            "images_per_second": [first["batch"] * speed for speed in per_second],
            "curve": curve_of(where),
        }

    def sample(self, sampler: str, n: int, seed: int, doing: str) -> np.ndarray:
        """Return n samples, uint8 [n, 28, 28, 1]."""
        samples, words = self.folder / "samples", re.sub(r"\W+", "-", sampler)
        path = samples / f"{words}_n{n}_seed{seed}.npz"
        if not path.exists():
            part = path.with_name("part.npz")
            samples.mkdir(exist_ok=True)
            options = {
                "folder": self.folder / "training",
                "sampler": sampler,
                "evaluations": EVALUATIONS,
                "n": n,
                "seed": seed,
                "out": part,
            }
            self._run("sample", options, samples / "log.txt", doing)
            with np.load(part) as file:
                images = restore(file["images"], self._ours.patch if self._contender.near else 1)
            with replacing(path) as done, done.open("wb") as file:
                np.savez(file, images=images)
            part.unlink()
        return fashion_quality.read_images(str(path))


def run(name: str, runner: Runner, ours: Ours) -> dict[str, Any]:
    """Train a contender, draw its samples and judge them; skip what is done.

    Returns:
      The facts of the training, `sampler`, `metrics` and `curve`.
    """
    done, asked = runner.folder / "result.json", (SAMPLES.value, SEEDS.value)
    if done.exists():
        result = json.loads(done.read_text())
        if (result["samples"], result["seeds"]) == asked:
            return result
    trained = runner.train()

    def distance(sampler: str) -> float:
        n = min(PILOT, SAMPLES.value)
        images = runner.sample(sampler, n, PILOT_SEED, f"trying {sampler}, {n} samples")
        found = measured(fashion_quality.judge([images], "train", _data(ours)))
        return found["fd_train"][0] or 0.0  # too few samples for a distance: the first sampler

    samplers, n = CONTENDERS[name].samplers, SAMPLES.value
    sampler = samplers[0] if len(samplers) == 1 else min(samplers, key=distance)
    seeds = [
        runner.sample(sampler, n, seed, f"{n} samples, seed {seed}") for seed in range(SEEDS.value)
    ]
    metrics: Measured = {}
    for split in ("train", "test"):
        metrics |= measured(fashion_quality.judge(seeds, split, _data(ours)))
    result = {**trained, "sampler": sampler, "samples": n, "seeds": len(seeds), "metrics": metrics}
    grids.save_png(runner.folder / "samples.png", grids.make_grid(seeds[0][:GRID]))
    _write(done, json.dumps(result, indent=1))
    return result


def curve_of(folder: pathlib.Path) -> list[dict[str, float]]:
    """Return the loss curve of a training."""
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def _check_same(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Check that a folder is new or has a training with the same settings."""
    path = folder / "settings.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(settings, indent=1))
    elif json.loads(path.read_text()) != settings:
        raise UserError(
            f"{folder} has a training with other settings ({path}); remove this folder, or choose "
            "another --work"
        )


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _write(path: pathlib.Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text)


def results_of(work: pathlib.Path, seconds: float) -> pathlib.Path:
    """Return the directory of the results of trainings of this time."""
    return work / f"{seconds / 60:g}min"


def floor(ours: Ours) -> Measured:
    """Return the metrics of real pictures: those of the other split in place of samples."""
    dataset, found = data.open_dataset(_data(ours)), {}
    for split, other in (("train", dataset.test), ("test", dataset.train)):
        assert other is not None  # Fashion-MNIST has both
        n = min(SAMPLES.value, len(other))
        orders = [np.random.default_rng(i).permutation(len(other))[:n] for i in range(SEEDS.value)]
        if n == len(other):
            orders = orders[:1]
        pictures = [other.read(order)[0] for order in orders]
        found |= measured(fashion_quality.judge(pictures, split, _data(ours)))
    return found


def draw(where: pathlib.Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write samples.png, a row of samples of each training, and losses.png, the loss curves.

    Args:
      where: the directory of the results.
      results: name -> the result of a training.
    """
    samples = [
        fashion_quality.read_images(str(path))[:ROW] for path in _first_samples(where, results)
    ]
    grid = grids.make_grid(np.concatenate(samples), columns=ROW, row_labels=list(results))
    grids.save_png(where / "samples.png", grid)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, result in results.items():
        minutes = [MINUTES.value * row["step"] / result["steps"] for row in result["curve"]]
        axes.plot(minutes, [row["loss"] for row in result["curve"]], label=name, linewidth=1)
    axes.set(xlabel="minutes of training", ylabel="loss of the library", yscale="log")
    axes.legend(frameon=False)
    outputs.save_figure(where / "losses.png", figure)


def _first_samples(where: pathlib.Path, results: Mapping[str, Any]) -> list[pathlib.Path]:
    """Return the file with the samples of seed 0 of each training."""
    found = []
    for name, result in results.items():
        contender, _, seed = name.partition(", training seed ")
        words = re.sub(r"\W+", "-", result["sampler"])
        folder = where / f"{contender}-{seed or 0}" / "samples"
        found.append(folder / f"{words}_n{result['samples']}_seed0.npz")
    return found


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so a running command ends too
    names = ONLY.value or list(CONTENDERS)
    for name in names:
        if name not in CONTENDERS:
            raise unknown("contender in --only", name, CONTENDERS)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    work, seconds = absolute(WORK.value), 60 * MINUTES.value
    ours = our_contender(shlex.split(OURS.value))
    console.print(
        f"ours: {ours.parameters:,} parameters, pictures {ours.side}x{ours.side}, "
        f"patches of {ours.patch}"
    )
    runners = {name: Runner(name, ours, work, seconds) for name in names}
    for number in range(SPEED_ROUNDS):
        for runner in runners.values():
            runner.measure_speed(number)
    for name, runner in runners.items():
        run(name, runner, ours)
    where = results_of(work, seconds)
    results = {}
    for name in CONTENDERS:
        for path in sorted(where.glob(f"{name}-[0-9]*/result.json")):
            result, seed = json.loads(path.read_text()), path.parent.name.rpartition("-")[2]
            if (result["samples"], result["seeds"]) == (SAMPLES.value, SEEDS.value):
                results[name if seed == "0" else f"{name}, training seed {seed}"] = result
    real, network = floor(ours), fashion_quality.feature_network(_data(ours))
    today = datetime.date.today().isoformat()
    text = (
        f"{today}, {SAMPLES.value:,} samples, {SEEDS.value} seeds, {EVALUATIONS} evaluations, "
        f"features {network[0].digest} ({network[1]:.2%} of the test split)\n\n"
        f"{table(results, real)}\n{verdict(results)}\n"
    )
    _write(where / "results.md", text)
    everything = {"date": today, "results": results, "real pictures": real}
    _write(where / "results.json", json.dumps(everything, indent=1))
    draw(where, results)
    print(f"\n{text}\ntable: {where / 'results.md'}\nnumbers: {where / 'results.json'}")
    print(f"pictures: {where / 'samples.png'}, {where / 'losses.png'}")


if __name__ == "__main__":
    command.run(main)
