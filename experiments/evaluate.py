"""Judge the samples of a run: python -m experiments.evaluate --workdir=runs/digits

Prints a table and writes it to <workdir>/evaluate.json, and to <workdir>/samples the picture
nearest_training_images.png: samples over the training images that they are nearest to.

By default the samples are drawn by a fast sampler, `config.eval.sampler`, and the caption says so:
the whole chain of Ho et al. takes fifty times as long.

  --sampler=own                   the run's own sampler, for all its steps
  --sampler=ddim --num_steps=50   another, as in experiments.sample
  --n=50000 --features=inception --inception_weights=FILE    fid50k_train, as papers report it
  --split=test                    compare with the held-out images
"""

import json
import os
import time
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from ddpm_jax import data, quality, references
from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import grids
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.evaluation.rows import Row
from ddpm_jax.overrides import for_evaluation
from ddpm_jax.runs import open_run
from ddpm_jax.training.workdir import WorkDir, open_for_reading, read_config
from experiments import command

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a training.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint; the newest if unset.")
N = flags.DEFINE_integer("n", None, "Images of each seed; config.eval.num_samples if unset.", 1)
SEEDS = flags.DEFINE_integer("seeds", None, "How often; config.eval.num_seeds if unset.", 1)
FEATURES = flags.DEFINE_enum(
    "features", "classifier", ["classifier", "inception"], "Network to compare in."
)
SPLIT = flags.DEFINE_enum("split", "train", ["train", "test"], "Images to compare with.")
SAMPLER = flags.DEFINE_string("sampler", None, "Sampler, or own; config.eval.sampler if unset.")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps of it.", lower_bound=1)
TIMESTEPS = flags.DEFINE_string("timesteps", None, "Where they are.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free weight w; the run's if unset.")
flags.mark_flag_as_required("workdir")


def main() -> None:
    start = time.perf_counter()
    workdir = open_for_reading(WORKDIR.value)
    run = open_run(workdir.root, STEP.value, sample=_sampling(read_config(workdir)))
    dataset = data.open_dataset(run.config.data)
    network, about = _network(run.config, dataset)
    n = N.value or run.config.eval.num_samples
    num_seeds = SEEDS.value or run.config.eval.num_seeds
    report = quality.evaluate(run, dataset, network, n=n, num_seeds=num_seeds, split=SPLIT.value)
    sample = run.config.sample
    steps = sample.num_steps or run.config.process.num_timesteps
    facts = {
        "checkpoint": run.step,
        "samples": f"{num_seeds} x {n:,} by {sample.sampler}, {steps} steps, {sample.timesteps}, "
        f"guidance {sample.guidance:g}; EMA weights",
        "features": about,
        "reference": f"{len(references.source_of(dataset, SPLIT.value)):,} images of the split "
        f"{SPLIT.value!r} of {run.config.data.name}",
        "errors": f"standard errors over {num_seeds} seeds of sampling"
        if num_seeds > 1
        else "the estimates' own, where they have one",
    }
    print_table(report.rows, facts)
    _write(workdir, report.rows, facts)
    picture = workdir.samples / "nearest_training_images.png"
    grids.save_png(picture, report.neighbours)
    print(f"samples over their nearest training images: {picture}")
    print(f"the table: {workdir.root / 'evaluate.json'} ({time.perf_counter() - start:.0f} s)")


def print_table(rows: list[Row], facts: dict[str, Any]) -> None:
    """Print the rows, and below them what they are of."""
    table = Table("metric")
    for column in ("value", "± error", "n"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in rows:
        value = "--" if row.value is None else f"{row.value:.4g}"
        error = "--" if row.error is None else f"{row.error:.2g}"
        table.add_row(row.name, value, error, f"{row.n:,}", row.note)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(table)
    for name, fact in facts.items():
        console.print(f"{name}: {fact}")


def _sampling(config: Config) -> dict[str, Any]:
    """Return the fields of config.sample that the flags and config.eval ask for."""
    chosen = {"num_steps": NUM_STEPS, "timesteps": TIMESTEPS, "guidance": GUIDANCE}
    fields = {name: flag.value for name, flag in chosen.items() if flag.value is not None}
    if SAMPLER.value is None:
        defaults = for_evaluation(config).sample
        names = ("sampler", "num_steps", "timesteps", "rho")
        return {name: getattr(defaults, name) for name in names} | fields
    return fields if SAMPLER.value == "own" else {"sampler": SAMPLER.value} | fields


def _network(config: Config, dataset: data.Dataset) -> tuple[FeatureNetwork, str]:
    """Return the feature network of --features, and a line about it."""
    if FEATURES.value == "inception":
        raise UserError("--features=inception is not there yet")
    network, accuracy = references.classifier(config.data, dataset)
    held_out = "held-out" if dataset.test else "held-back"
    about = f"a classifier trained on {config.data.name}, {accuracy:.1%} of {held_out} images right"
    return network, about


def _write(workdir: WorkDir, rows: list[Row], facts: dict[str, Any]) -> None:
    """Write the table as JSON, whole or not at all."""
    path = workdir.root / "evaluate.json"
    content = {**facts, "rows": [row._asdict() for row in rows]}
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    command.run(main)
