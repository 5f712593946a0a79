"""Quality in equal time on Fashion-MNIST, against the libraries that a user would pick instead.

    python -m benchmarks.fashion_peers --work=DIR --minutes=20

Each contender trains for the same time on the same 60,000 pictures, on two cores, one after the
other. Then each draws samples from its EMA weights with 50 evaluations of the network per sample.
It uses the best of its samplers, chosen by 1,000 samples of another seed. The samples are judged by
`benchmarks/fashion_quality.py`. The contenders:

  ours               the config of --ours, without classes
  diffusers          diffusers' example of unconditional training; its network has about our size
  diffusers_near     the same with our network: equal layers, and our patches as channels
  ddpm_pytorch       denoising-diffusion-pytorch's Trainer; its network has about our size
  ddpm_pytorch_near  the same with the network as near to ours as its options allow

The modules in `benchmarks/peers/` say what exactly these are. The script installs the two libraries
into environments of their own under DIR (7 GB, because of PyTorch with CUDA). It keeps all that is
done under DIR: the same command, started again, continues. Before a training whose learning rate
depends on the number of steps, it measures the speed for a minute and chooses the number that fits
in the time. The time of a training excludes imports, data and compilation; the table has these as
"preparation".

The table and all numbers, with the loss curves, are in DIR/<minutes>min/results.md and .json. The
folder of each training has a picture of its samples.
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
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from PIL import Image
from rich.console import Console

from benchmarks import fashion_quality
from benchmarks.peers.networks import ddpm_pytorch_unet, diffusers_unet
from benchmarks.peers.results import (
    Measured,
    arrange,
    measured,
    restore,
    steps_in,
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
from experiments import command, config_flag

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
SPEED_SECONDS = 60.0  # the speed is measured for this time, or for that of the training if shorter
PEER_SIDE = 32  # the default networks of both peers halve the side more often than 28 allows
GRID = 100  # samples in the picture
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
      planned: whether the learning rate depends on the number of steps.
      samplers: names of the module's samplers to choose from.
      pictures: the suffix of the pictures that the module reads: .npz, or "" for a folder of PNG.
    """

    module: str
    environment: str
    network: Callable[[Ours], dict[str, Any]]
    near: bool
    planned: bool
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
    planned=True,
    samplers=(
        "dpm_solver_pp_2m",
        "dpm_solver_pp_2m, trailing",
        "dpm_solver_pp_2m, trailing, clipped",
        "ddim",
        "ddim, trailing",
    ),
)
DDPM_PYTORCH = functools.partial(
    Contender, "ddpm_pytorch", "ddpm_pytorch", planned=False, samplers=("ddim",), pictures=""
)
CONTENDERS: dict[str, Contender] = {
    "ours": Contender(
        "ours",
        "",
        _ours,
        near=False,
        planned=True,
        samplers=("dpm_solver_pp_2m, trailing", "unipc, trailing"),
    ),
    "diffusers": DIFFUSERS(network=_scaled, near=False),
    "diffusers_near": DIFFUSERS(network=_near_unet2d, near=True),
    "ddpm_pytorch": DDPM_PYTORCH(network=_scaled_unet, near=False),
    "ddpm_pytorch_near": DDPM_PYTORCH(network=_near_unet, near=True),
}
console = Console(soft_wrap=True, markup=False, highlight=False)


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


def run(name: str, ours: Ours, work: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Train a contender, draw its samples and judge them; skip what is done.

    Args:
      name: a row of CONTENDERS.
      ours: our contender.
      work: the directory of the whole benchmark.
      seconds: the time of the training.

    Returns:
      The facts of the training, `sampler`, `metrics` and `curve`.
    """
    contender, seed = CONTENDERS[name], TRAINING_SEED.value
    folder = results_of(work, seconds) / f"{name}-{seed}"
    python, pictures = python_of(contender.environment, work), pictures_for(contender, ours, work)
    module = [python, "-m", f"benchmarks.peers.{contender.module}"]
    env = dict(os.environ)
    if contender.environment:
        env.pop("PYTHONPATH", None)
        env["OMP_NUM_THREADS"] = str(THREADS)
    else:  # compiles everything itself, whatever ran before
        env["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    network = json.dumps(contender.network(ours))
    packages = ENVIRONMENTS.get(contender.environment, ())
    settings = {"network": json.loads(network), "seconds": seconds, "packages": list(packages)}
    _check_same(folder, settings)

    def train(where: pathlib.Path, what: str, seconds: float, steps: int) -> None:
        if (where / "trained.json").exists():
            return
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        options = {
            "folder": where,
            "pictures": pictures,
            "network": network,
            "seconds": seconds,
            "steps": steps,
            "seed": seed,
        }
        watch([*module, "train", *_flags(options)], where / "log.txt", f"{name}: {what}", env)

    def sample(sampler: str, n: int, seed: int, what: str) -> np.ndarray:
        words = re.sub(r"\W+", "-", sampler)
        path = folder / "samples" / f"{words}_n{n}_seed{seed}.npz"
        if not path.exists():
            part = path.with_name("part.npz")
            part.parent.mkdir(exist_ok=True)
            options = {
                "folder": folder / "training",
                "sampler": sampler,
                "evaluations": EVALUATIONS,
                "n": n,
                "seed": seed,
                "out": part,
            }
            line = [*module, "sample", *_flags(options)]
            watch(line, folder / "samples" / "log.txt", f"{name}: {what}", env)
            with np.load(part) as file:
                images = restore(file["images"], ours.patch if contender.near else 1)
            with replacing(path) as done, done.open("wb") as file:
                np.savez(file, images=images)
            part.unlink()
        return fashion_quality.read_images(str(path))

    done, asked = folder / "result.json", (SAMPLES.value, SEEDS.value)
    if done.exists():
        result = json.loads(done.read_text())
        if (result["samples"], result["seeds"]) == asked:
            return result
    short, steps = min(SPEED_SECONDS, seconds), 0
    train(folder / "speed", "measuring the speed", short, 0)
    if contender.planned:
        steps = steps_in(seconds, _curve(folder / "speed"))
    train(folder / "training", f"training for {seconds / 60:g} minutes", seconds, steps)

    def distance(sampler: str) -> float:
        n = min(PILOT, SAMPLES.value)
        images = sample(sampler, n, PILOT_SEED, f"trying {sampler}, {n} samples")
        found = measured(fashion_quality.judge([images], "train", _data(ours)))
        return found["fd_train"][0] or 0.0  # too few samples for a distance: the first sampler

    samplers = contender.samplers
    sampler = samplers[0] if len(samplers) == 1 else min(samplers, key=distance)
    n = SAMPLES.value
    seeds = [sample(sampler, n, s, f"{n} samples, seed {s}") for s in range(SEEDS.value)]
    metrics: Measured = {}
    for split in ("train", "test"):
        metrics |= measured(fashion_quality.judge(seeds, split, _data(ours)))
    trained = json.loads((folder / "training" / "trained.json").read_text())
    first = json.loads((folder / "speed" / "trained.json").read_text())
    result = {
        **trained,
        "preparation": first["preparation"],  # nothing was compiled before
        "sampler": sampler,
        "samples": n,
        "seeds": len(seeds),
        "metrics": metrics,
        "curve": _curve(folder / "training"),
    }
    grids.save_png(folder / "samples.png", grids.make_grid(seeds[0][:GRID]))
    _write(done, json.dumps(result, indent=1))
    return result


def _flags(options: Mapping[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def _curve(folder: pathlib.Path) -> list[dict[str, float]]:
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
    for name in names:
        run(name, ours, work, seconds)
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
    print(f"\n{text}\ntable: {where / 'results.md'}\nnumbers: {where / 'results.json'}")


if __name__ == "__main__":
    command.run(main)
