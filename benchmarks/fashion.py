"""Trainings on Fashion-MNIST that benchmarks share: their configs, and how they are judged."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

import ddpm_jax
from benchmarks import fashion_quality
from ddpm_jax import data
from ddpm_jax.config import Config, from_dict, to_dict
from ddpm_jax.data.cond import drawn_cond
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs import metrics, open_run
from ddpm_jax.sampling import sample_in_chunks
from experiments import fashion_mnist, sigmoid_t700

SAMPLES, SEEDS, CHUNK = 1000, 2, 250
EPOCHS = 10  # of the lecture

# name -> (changes of the config, how many images it takes in the time of one of the first recipe).
# The speeds: two cores, steps in turn, 2026-11-26.
PIXELS = {"model.patch_size": 1, "model.channel_multipliers": (1, 2, 2), "model.channels": 24}
RECIPES: dict[str, tuple[dict[str, Any], float]] = {
    "v_cosine": ({}, 1.0),  # :small itself
    "lr_1e-3": ({"optim.learning_rate": 1e-3}, 1.0),
    "lr_6e-3": ({"optim.learning_rate": 6e-3}, 1.0),
    "batch_64": ({"train.batch_size": 64}, 1.25),
    "ema_0.99": ({"optim.ema_decay": 0.99}, 1.0),
    "ema_0.998": ({"optim.ema_decay": 0.998}, 1.0),
    "min_snr": ({"loss.weighting": "min_snr"}, 1.0),
    "stratified": ({"loss.t_sampler": "stratified"}, 1.0),
    "v_linear": ({"process.schedule": "linear"}, 1.0),
    "x_0_cosine": ({"loss.kind": "x_0"}, 1.0),
    "eps_cosine": ({"loss.kind": "eps"}, 1.0),
    "eps_linear": ({"loss.kind": "eps", "process.schedule": "linear"}, 1.0),
    "48_channels": ({"model.channels": 48}, 0.60),
    "64_channels": ({"model.channels": 64}, 0.38),
    "64_channels_1_block": ({"model.channels": 64, "model.num_res_blocks": 1}, 0.53),
    "pixels_24_channels": (PIXELS, 0.38),
}


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """Return the config with other values: {"section.field": value}."""
    fields = to_dict(config)
    for name, value in changes.items():
        section, field = name.split(".")
        fields[section][field] = value
    return from_dict(fields)


def recipe_base() -> Config:
    """Return the config that the recipes change; without classes, to compare with any library."""
    quiet = {
        "model.class_conditional": False,
        "train.num_samples": 4,
        "train.checkpoint_every": 0,
        "train.sample_every": 0,
        "train.log_every": 100,
        "eval.every": 0,
    }
    config = from_dict(fashion_mnist.get_config("small").to_dict())
    return changed(config, quiet)


def lecture(schedule: str, images: int) -> Config:
    """Return `sigmoid_t700` on Fashion-MNIST, with a schedule and a number of training images.

    For two CPU cores, the network has half the channels of the config, which makes it four times as
    cheap, and a batch is a quarter, so that ten epochs of few images are enough steps.
    """
    config = from_dict(sigmoid_t700.get_config().to_dict())
    batch_size = config.train.batch_size // 4
    steps = EPOCHS * images // batch_size
    changes: dict[str, Any] = {
        "data.name": "fashion_mnist",
        "data.image_size": 32,
        "data.crop": "pad",
        "data.flip": False,
        "data.train_split": f"train[:{images}]",
        "process.schedule": schedule,
        "model.channels": config.model.channels // 2,
        "train.batch_size": batch_size,
        "train.num_steps": steps,
        "train.num_samples": 25,
        "train.log_every": 20,
        "train.checkpoint_every": 100,
        "eval.every": steps,
    }
    if schedule == "cosine":  # has no ends to set
        changes |= {"process.beta_1": 0.0, "process.beta_T": 0.0}
    return changed(config, changes)


def train_to_end(config: Config, workdir: pathlib.Path) -> None:
    """Train a config, or continue its run; end the program if a signal stopped the run.

    Raises:
      SystemExit: with the exit code of the signal; the run is saved.
    """
    if signal := ddpm_jax.train(config, workdir).signal:
        raise SystemExit(128 + signal)


def measure(
    config: Config, workdir: pathlib.Path, sampling: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train a config, draw samples and judge them.

    Args:
      config: the config of the run.
      workdir: the run's work directory; a run that is there already is continued.
      sampling: changes of the config for the samples that are judged; None is no change.

    Returns:
      The loss at the end, the median speed, and the mean and the error of each measure over
      `SEEDS` seeds of sampling.
    """
    train_to_end(config, workdir)
    rows = [row for row in metrics.read(workdir / "metrics.jsonl") if "loss" in row]
    found: dict[str, Any] = {
        "loss": rows[-1]["loss"],
        "images_per_second": float(np.median([row["images_per_second"] for row in rows])),
    }
    run = open_run(workdir)
    train = data.open_dataset(config.data).train
    sample = run._replace(config=changed(run.config, sampling or {})).sample_fn()
    seeds = []
    for seed in range(SEEDS):
        cond = drawn_cond(run.config, train, {}, SAMPLES, seed)
        chunks = sample_in_chunks(sample, run.params, jax.random.key(seed), SAMPLES, CHUNK, cond)
        seeds.append(np.concatenate([to_uint8(images) for images in chunks]))
        np.savez(workdir / f"samples_{seed}.npz", images=seeds[-1])
    inner = [fashion_quality.without_border(images) for images in seeds]
    judged = dataclasses.replace(fashion_quality.DATA, data_dir=config.data.data_dir)
    for row in fashion_quality.judge(inner, "train", judged):
        found[row.name] = (row.value, row.error)
    return found
