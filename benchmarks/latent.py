"""Latent against pixel diffusion in equal time on Fashion-MNIST, and what the autoencoder loses.

    python -m benchmarks.latent --work=DIR --minutes=10

First the autoencoder `experiments/fashion_autoencoder.py:small` is trained. Its reconstructions of
the 10,000 test images give the PSNR, and the Fréchet distance that good samples should reach; it is
the mean of ten times 1,000 images, as many as the samples have. Then the latents of the training
images are computed, and the speeds of three trainings are measured in turn, three times: the
autoencoder, `experiments/fashion_mnist.py:small` (pixels, in patches of 2x2), and
`experiments/fashion_latent.py:small`. Nothing else may run during that. Each diffusion model trains
for as many steps as it takes in --minutes at its median speed. A second latent model trains for
this time minus the times of the autoencoder and of the latents. The samples are judged as in
`benchmarks/fashion_recipes.py`.

DIR keeps what is done: the same command continues from there. It prints the table, and writes the
pictures samples_<name>.png and reconstructions.png. The trainings and results are in DIR/10min.
"""

import dataclasses
import json
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.table import Table

from benchmarks import fashion, fashion_quality
from ddpm_jax import data
from ddpm_jax.config import Config, from_dict
from ddpm_jax.data import latents
from ddpm_jax.data.prepared import data_directory
from ddpm_jax.figures import grids
from ddpm_jax.models import count_parameters
from ddpm_jax.pixels import psnr, to_uint8, to_x_0
from ddpm_jax.runs import metrics, open_run
from ddpm_jax.runs.codec import open_codec
from ddpm_jax.runtime import rows
from ddpm_jax.runtime.files import absolute, replacing, to_json
from experiments import command, fashion_autoencoder, fashion_latent, fashion_mnist, tables

WORK = flags.DEFINE_string("work", None, "Directory for the runs and the results.", required=True)
MINUTES = flags.DEFINE_float("minutes", 10, "Minutes of training of each model.", 0.1)
KL_WEIGHT = flags.DEFINE_float(
    "kl_weight", None, "Another autoencoder.kl_weight than the config's; needs another --work."
)

SPEED_STEPS, SPEED_EVERY, SPEED_ROUNDS = 150, 25, 3
SHAPE = (32, 32, 1)
CHUNK, PARTS = 250, 10  # the test images are judged in PARTS parts, of 1,000 images each
GRID = 60  # images in a picture


def autoencoder_config() -> Config:
    config = from_dict(fashion_autoencoder.get_config("small").to_dict())
    if KL_WEIGHT.value is None:
        return config
    return fashion.changed(config, {"autoencoder.kl_weight": KL_WEIGHT.value})


def diffusion_configs(work: pathlib.Path) -> dict[str, Config]:
    """Return the two diffusion models, conditional on the classes, without guidance."""
    quiet = {
        "train.num_samples": GRID,
        "train.checkpoint_every": 0,
        "train.sample_every": 0,
        "train.log_every": 100,
        "eval.every": 0,
    }
    pixel = fashion.changed(from_dict(fashion_mnist.get_config("small").to_dict()), quiet)
    latent = fashion.changed(
        from_dict(fashion_latent.get_config("small").to_dict()),
        quiet | {"data.codec": str(work / "autoencoder")},
    )
    return {"pixels": pixel, "latents": latent}


def speed(config: Config, workdir: pathlib.Path) -> float:
    """Return the steps per second of a short training."""
    short = {
        "train.num_steps": SPEED_STEPS,
        "train.log_every": SPEED_EVERY,
        "train.num_samples": 1,
        "eval.every": 0,
    }
    fashion.train_to_end(fashion.changed(config, short), workdir)
    found = [row["images_per_second"] for row in metrics.read(workdir / "metrics.jsonl")]
    return statistics.median(found[1:]) / config.train.batch_size


def speeds(configs: dict[str, Config], work: pathlib.Path) -> dict[str, float]:
    """Return the median steps per second of each training, measured in turn."""
    path = work / "speeds.json"
    if not path.exists():
        found: dict[str, list[float]] = {name: [] for name in configs}
        for _ in range(SPEED_ROUNDS):
            for name, config in configs.items():
                shutil.rmtree(work / "speed", ignore_errors=True)
                found[name].append(speed(config, work / "speed"))
        _write(path, found)
    found = json.loads(path.read_text())
    return {name: statistics.median(each) for name, each in found.items()}


def ceiling(work: pathlib.Path, config: Config) -> dict[str, Any]:
    """Return the PSNR and the distances of the reconstructions of all test images."""
    dataset = data.open_dataset(config.data)
    assert dataset.test is not None
    codec = open_codec(work / "autoencoder", SHAPE)
    reconstruct = rows.over_local_devices(
        lambda codec, x: codec.decoder(codec.params, codec.encoder(codec.params, x)[0])
    )
    images, _ = dataset.test.read(np.arange(len(dataset.test)))
    parts = [
        jax.device_get(reconstruct(codec, to_x_0(images[i : i + CHUNK])))
        for i in range(0, len(images), CHUNK)
    ]
    found = np.concatenate(parts)
    pairs = np.concatenate([images[:GRID], to_uint8(found[:GRID])], axis=2)
    grids.save_png(work / "reconstructions.png", grids.make_grid(pairs, columns=6))
    result: dict[str, Any] = {
        "psnr": float(np.mean(psnr(jnp.asarray(to_x_0(images)), jnp.asarray(found))))
    }
    for name, shown in (("reconstructions", to_uint8(found)), ("test images", images)):
        inner = np.split(fashion_quality.without_border(shown), PARTS)
        judged = fashion_quality.judge(inner, "train", _judged(config))
        result[name] = {row.name: (row.value, row.error) for row in judged}
    return result


def _judged(config: Config) -> Any:
    return fashion.changed(
        config, {"data.image_size": 0, "data.crop": "center", "data.codec": ""}
    ).data


def seconds_of_latents(config: Config, work: pathlib.Path) -> float:
    """Return the seconds that it takes to compute and write the latents of all images.

    They are written to a directory of their own, so that earlier ones are not found.
    """
    path = work / "latents.json"
    if not path.exists():
        dataset, codec = data.open_dataset(config.data), open_codec(work / "autoencoder", SHAPE)
        with tempfile.TemporaryDirectory(dir=work) as place:
            start = time.perf_counter()
            latents.encoded(dataclasses.replace(config.data, data_dir=place), dataset, codec)
            _write(path, time.perf_counter() - start)
    return float(json.loads(path.read_text()))


def main() -> None:
    work, seconds = absolute(WORK.value), 60 * MINUTES.value
    out = work / f"{MINUTES.value:g}min"
    out.mkdir(parents=True, exist_ok=True)
    own = autoencoder_config()
    fashion.train_to_end(own, work / "autoencoder")
    configs = diffusion_configs(work)
    encoding = seconds_of_latents(configs["latents"], work)
    per_second = speeds({"autoencoder": own} | configs, work)
    spent = own.train.num_steps / per_second["autoencoder"] + encoding
    trainings = {
        "pixels": ("pixels", seconds),
        "latents": ("latents", seconds),
        "latents, autoencoder counted": ("latents", seconds - spent),
    }
    path = out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if "ceiling" not in results:
        results["ceiling"] = ceiling(work, own)
        _write(path, results)
    for name, (kind, duration) in trainings.items():
        steps = int(duration * per_second[kind])
        if steps < 1:
            print(f"{name}: no time is left; raise --minutes")
        if name in results or steps < 1:
            continue
        workdir = out / name.replace(", ", "_").replace(" ", "_")
        config = fashion.changed(configs[kind], {"train.num_steps": steps})
        found = fashion.measure(config, workdir)
        found["steps"], found["seconds"] = steps, duration
        found["parameters"] = count_parameters(open_run(workdir).params)
        found["planned_images_per_second"] = per_second[kind] * config.train.batch_size
        results[name] = found
        _write(path, results)
        grid = workdir / "samples" / f"step_{steps:07d}_ema.png"
        shutil.copyfile(grid, out / f"samples_{workdir.name}.png")
    _print(results, spent)
    print(f"results: {path}; data: {data_directory(own.data.data_dir)}")


def _print(results: dict[str, Any], spent: float) -> None:
    found = results["ceiling"]
    print(f"autoencoder and latents: {spent / 60:.1f} minutes; PSNR {found['psnr']:.2f} dB")
    for name in ("reconstructions", "test images"):
        judged = {k: v for k, v in found[name].items() if v[1] is not None}
        print(f"{name}: " + ", ".join(f"{k} {v:.3g} ± {e:.2g}" for k, (v, e) in judged.items()))
    table = Table("diffusion on")
    columns = ("fd1k_train", "precision1k_train", "recall1k_train")
    for column in ("parameters", "images/s: planned", "in training", "minutes", "steps", *columns):
        table.add_column(column, justify="right")
    for name, row in results.items():
        if name == "ceiling":
            continue
        judged = [f"{row[c][0]:.3g} ± {row[c][1]:.2g}" for c in columns]
        rates = (row["planned_images_per_second"], row["images_per_second"])
        facts = f"{row['parameters']:,}", *(f"{rate:.0f}" for rate in rates)
        table.add_row(name, *facts, f"{row['seconds'] / 60:.1f}", str(row["steps"]), *judged)
    tables.console().print(table)


def _write(path: pathlib.Path, content: Any) -> None:
    with replacing(path) as part:
        part.write_text(to_json(content, indent=1))


if __name__ == "__main__":
    command.run(main)
