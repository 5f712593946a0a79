"""Judge a run, likelihood and samples: python -m experiments.evaluate --workdir=runs/digits

Prints a table and writes it to <workdir>/evaluate.json, and to <workdir>/samples the pictures
rate_distortion.png, progressive.png (images as their bits arrive: x̂_0 from x_t for falling t) and
nearest_training_images.png (samples over the training images that they are nearest to).

By default the samples are drawn by a fast sampler, `config.eval.sampler`, and the caption says so:
the whole chain of Ho et al. takes fifty times as long.

  --ode=64                        the likelihood by the probability-flow ODE, of so many images
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

from ddpm_jax import data
from ddpm_jax.build.overrides import for_evaluation
from ddpm_jax.config import Config
from ddpm_jax.data.prepared import data_directory
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import inception, likelihoods, references, samples
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.evaluation.table import Row
from ddpm_jax.figures import grids
from ddpm_jax.figures.curves import rate_distortion
from ddpm_jax.likelihood.bound import Part
from ddpm_jax.runs import Run, open_run
from ddpm_jax.runs.workdir import WorkDir, open_for_reading, read_config
from ddpm_jax.runtime.files import replacing
from experiments import command

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a training.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint; the newest if unset.")
N = flags.DEFINE_integer("n", None, "Images of each seed; config.eval.num_samples if unset.", 1)
SEEDS = flags.DEFINE_integer("seeds", None, "How often; config.eval.num_seeds if unset.", 1)
FEATURES = flags.DEFINE_enum(
    "features",
    "classifier",
    ["classifier", "inception", "none"],
    "Network to compare samples in; none leaves the samples out.",
)
INCEPTION_WEIGHTS = flags.DEFINE_string(
    "inception_weights", "", "File of Inception's weights; downloaded once if unset."
)
SPLIT = flags.DEFINE_enum("split", "train", ["train", "test"], "Images to compare with.")
SAMPLER = flags.DEFINE_string("sampler", None, "Sampler, or own; config.eval.sampler if unset.")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps of it.", lower_bound=1)
TIMESTEPS = flags.DEFINE_string("timesteps", None, "Where they are.")
BOUND_IMAGES = flags.DEFINE_integer(
    "bound_images", None, "Images of each split for bits/dim; config.eval's if unset.", 0
)
BOUND_TERMS = flags.DEFINE_integer(
    "bound_terms", None, "Terms of the bound for each of them; config.eval's if unset.", 1
)
VARIANCE = flags.DEFINE_string("variance", None, "Variance of the bound; the run's if unset.")
ODE = flags.DEFINE_integer("ode", 0, "Images for the ODE's likelihood; 0 is none.", 0)
GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free weight w; the run's if unset.")
flags.mark_flag_as_required("workdir")


def main() -> None:
    start = time.perf_counter()
    workdir = open_for_reading(WORKDIR.value)
    config = read_config(workdir)
    run = open_run(workdir.root, STEP.value, sample=_sampling(config))
    dataset = data.open_dataset(config.data)
    rows, curves = _likelihoods(run, dataset, config)
    facts = {"checkpoint": run.step}
    if curves:
        facts["likelihoods"] = "bits/dim; standard errors over images; EMA weights; variance "
        facts["likelihoods"] += f"{VARIANCE.value or likelihoods.variance_of(config)}"
    if FEATURES.value != "none":
        network, about = _network(config, dataset)
        n = N.value or config.eval.num_samples
        num_seeds = SEEDS.value or config.eval.num_seeds
        report = samples.evaluate(
            run, dataset, network, n=n, num_seeds=num_seeds, split=SPLIT.value
        )
        rows += report.rows
        sample = run.config.sample
        steps = sample.num_steps or config.process.num_timesteps
        facts |= {
            "samples": f"{num_seeds} x {n:,} by {sample.sampler}, {steps} steps, "
            f"{sample.timesteps}, guidance {sample.guidance:g}; EMA weights",
            "features": about,
            "reference": f"{len(references.source_of(dataset, SPLIT.value)):,} images of the split "
            f"{SPLIT.value!r} of {config.data.name}",
            "errors of samples": f"standard errors over {num_seeds} seeds of sampling"
            if num_seeds > 1
            else "the estimates' own, where they have one",
        }
    print_table(rows, facts)
    _write(workdir, rows, facts, curves)
    if curves:
        _draw_coding(run, dataset, workdir, curves)
    if FEATURES.value != "none":
        picture = workdir.samples / "nearest_training_images.png"
        grids.save_png(picture, report.neighbours)
        print(f"samples over their nearest training images: {picture}")
    print(f"the table: {workdir.root / 'evaluate.json'} ({time.perf_counter() - start:.0f} s)")


def _likelihoods(
    run: Run, dataset: data.Dataset, config: Config
) -> tuple[list[Row], dict[str, list[Part]]]:
    """Return the rows of bits/dim of each split, and its rate-distortion curve."""
    c, rows, curves = config.eval, [], {}
    num_images = c.bound_images if BOUND_IMAGES.value is None else BOUND_IMAGES.value
    for split in ("train", "test") if dataset.test else ("train",):
        if num_images:
            found = likelihoods.evaluate(
                run,
                dataset,
                split,
                variance=VARIANCE.value or likelihoods.variance_of(config),
                num_images=num_images,
                num_terms=BOUND_TERMS.value or c.bound_terms,
            )
            rows += found.rows
            curves[split] = found.curve
        if ODE.value:
            rows.append(
                likelihoods.evaluate_by_ode(
                    run, dataset, split, num_images=ODE.value, tolerance=c.ode_tolerance
                )
            )
    return rows, curves


def _draw_coding(
    run: Run, dataset: data.Dataset, workdir: WorkDir, curves: dict[str, list[Part]]
) -> None:
    """Draw the rate-distortion curves, and images as their bits arrive."""
    T = run.process.num_timesteps
    points = {
        split: [((part.low + part.high) / 2, part.rate, part.distortion) for part in curve]
        for split, curve in curves.items()
    }
    plot, picture = (workdir.samples / f"{name}.png" for name in ("rate_distortion", "progressive"))
    images = likelihoods.progressive_decoding(run, dataset, list(curves)[-1])
    grids.save_png(picture, images)
    rate_distortion(points, T).savefig(plot)
    print(f"rate and distortion: {plot}{os.linesep}progressive decoding: {picture}")


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
        if dataset.image_shape[-1] == 4:
            raise UserError(
                "--features=inception sees grey and RGB, but the images have alpha too; pass "
                "--features=classifier"
            )
        directory = os.path.join(data_directory(config.data.data_dir), "downloads")
        network = inception.load(directory, INCEPTION_WEIGHTS.value)
        return network, f"Inception-v3 of the FID, 2048 pooled features ({network.name})"
    if INCEPTION_WEIGHTS.value:
        raise UserError("--inception_weights is given, but not --features=inception")
    network, accuracy = references.classifier(config.data, dataset)
    held_out = "held-out" if dataset.test else "held-back"
    about = f"a classifier trained on {config.data.name}, {accuracy:.1%} of {held_out} images right"
    return network, about


def _write(
    workdir: WorkDir, rows: list[Row], facts: dict[str, Any], curves: dict[str, list[Part]]
) -> None:
    """Write the table and the rate-distortion curves as JSON, whole or not at all."""
    path = workdir.root / "evaluate.json"
    content = {**facts, "rows": [row._asdict() for row in rows]}
    content["rate_distortion"] = {
        split: [part._asdict() for part in curve] for split, curve in curves.items()
    }
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    command.run(main)
