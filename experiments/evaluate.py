"""Evaluate a trained run: its likelihood and its samples.

    python -m experiments.evaluate --workdir=runs/digits

The program prints a table and writes it to <workdir>/evaluate.json. It writes three pictures to
<workdir>/samples:

  rate_distortion.png            rate against distortion
  progressive.png                x̂_0 from x_t for falling t: images as their bits arrive
  nearest_training_images.png    samples, each above the training image nearest to it

These files are of the newest evaluation. The program keeps a copy of each in <workdir>/evaluations,
with the checkpoint and the flags in its name, so that other settings do not overwrite it.

By default a fast sampler, `config.eval.sampler`, draws the samples, and the table names it. The
whole chain of Ho et al. takes fifty times as long.

Other flags:

  --sampler=own
      Use the run's own sampler with all its steps.
  --sampler=ddim --num_steps=50
      Use another sampler, as in experiments.sample.
  --features=inception --n=50000 --seeds=1 --sampler=own
      Compute fid50k_train, the FID that papers report. --inception_weights=FILE reads Inception's
      weights from a file instead of downloading them.
  --split=test
      Compare the samples with held-out images.
  --ode=64
      Add the likelihood by the probability-flow ODE, of 64 images of each split. Needs diffrax:
      pip install -e '.[likelihood]'.
"""

import dataclasses
import os
import pathlib
import time
from typing import Any

import numpy as np
from absl import flags
from rich.table import Table

from ddpm_jax import data
from ddpm_jax.build.overrides import for_evaluation
from ddpm_jax.config import Config
from ddpm_jax.data.prepared import data_directory
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import inception, likelihoods, references, samples
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.evaluation.table import Row
from ddpm_jax.figures.curves import rate_distortion
from ddpm_jax.likelihood.bound import Part
from ddpm_jax.runs import Run, open_run
from ddpm_jax.runs.workdir import WorkDir, open_for_reading, read_config, warn_if_changed
from ddpm_jax.runtime.files import replacing, to_json
from ddpm_jax.runtime.progress import Progress
from experiments import command, outputs, tables
from experiments.progress import ProgressLine, chunk_size

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of the trained run.", required=True)
STEP = flags.DEFINE_integer(
    "step", None, "Training step of the checkpoint to load. Default: the newest checkpoint."
)
N = flags.DEFINE_integer(
    "n", None, "Number of samples per seed. Default: config.eval.num_samples.", 1
)
SEEDS = flags.DEFINE_integer(
    "seeds",
    None,
    "Number of random seeds; each draws its own --n samples. Default: config.eval.num_seeds.",
    1,
)
FEATURES = flags.DEFINE_enum(
    "features",
    "classifier",
    ["classifier", "inception", "none"],
    "Features in which samples and images are compared. classifier: of a small network, trained on "
    "the run's data set. inception: of Inception-v3 (FID). none: do not draw samples.",
)
INCEPTION_WEIGHTS = flags.DEFINE_string(
    "inception_weights",
    "",
    "For --features=inception: file of Inception's weights. Default: download them once (96 MB).",
)
SPLIT = flags.DEFINE_enum(
    "split",
    "train",
    ["train", "test"],
    "Split of the data set that the samples are compared with; test is the held-out images.",
)
SAMPLER = flags.DEFINE_string(
    "sampler",
    None,
    "Name of the sampler, or own for the run's own. Default: config.eval.sampler, a fast one.",
)
NUM_STEPS = flags.DEFINE_integer(
    "num_steps",
    None,
    "Number of sampling steps. Default: config.eval.num_steps; with --sampler, the run's own.",
    lower_bound=1,
)
TIMESTEPS = flags.DEFINE_string(
    "timesteps",
    None,
    "Grid of the sampling timesteps: uniform, trailing, leading, quadratic, karras or log_snr. "
    "Default: config.eval.timesteps; with --sampler, the run's own.",
)
BOUND_IMAGES = flags.DEFINE_integer(
    "bound_images",
    None,
    "Number of images of each split for the bound in bits/dim; 0 skips the bound. Default: "
    "config.eval.bound_images.",
    0,
)
BOUND_TERMS = flags.DEFINE_integer(
    "bound_terms",
    None,
    "Number of the bound's T terms that are computed per image. Default: config.eval.bound_terms.",
    1,
)
VARIANCE = flags.DEFINE_string(
    "variance",
    None,
    "Variance of the reverse steps in the bound: fixed_large, fixed_small or learned_range. "
    "Default: learned_range if the network learns its variance, otherwise config.sample.variance.",
)
ODE = flags.DEFINE_integer(
    "ode",
    0,
    "Number of images of each split for the likelihood by the probability-flow ODE; 0 skips it.",
    0,
)
GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Weight w of classifier-free guidance; 0 is off. Default: the run's own."
)


SETTINGS = (  # the flags that the table depends on, but for the checkpoint
    *("n", "seeds", "features", "inception_weights", "split", "sampler", "num_steps", "timesteps"),
    *("guidance", "bound_images", "bound_terms", "variance", "ode"),
)
PICTURES = ("rate_distortion", "progressive", "nearest_training_images")


def main() -> None:
    start = time.perf_counter()
    workdir = open_for_reading(WORKDIR.value)
    config = read_config(workdir)
    _check_flags()
    run = open_run(workdir.root, STEP.value, sample=_sampling(config))
    dataset = data.open_dataset(config.data)
    warn_if_changed(workdir.root, run.facts, dataset.digest)
    _check(run, dataset, config)
    outputs.check_writable(workdir.root, None, ["evaluate.json"])
    outputs.check_writable(workdir.samples, None, [f"{name}.png" for name in PICTURES])
    outputs.check_writable(workdir.root / "evaluations", None)
    pictures: dict[str, np.ndarray] = {}
    with ProgressLine() as progress:
        # First the features: a data set that they cannot be of is then refused at once
        network, about = None, ""
        if FEATURES.value != "none":
            network, about = _network(config, dataset, progress)
        rows, curves = _likelihoods(run, dataset, config, progress)
        facts: dict[str, Any] = {"checkpoint": run.step}
        if curves:
            facts["likelihoods"] = "bits/dim; standard errors over images; EMA weights; variance "
            facts["likelihoods"] += f"{VARIANCE.value or likelihoods.variance_of(config)}"
            progress("progressive decoding", 0, 1)
            pictures["progressive"] = likelihoods.progressive_decoding(
                run, dataset, list(curves)[-1]
            )
        if network is not None:
            report = _samples(run, dataset, network, progress)
            rows += report.rows
            pictures["nearest_training_images"] = report.neighbours
            facts |= _about_samples(run, dataset, about)
    print_table(rows, facts)
    kept = _stem(workdir, run.step)
    _draw(run, workdir, kept, curves, pictures)
    _write(workdir, kept, rows, facts, curves)
    print(f"all this took {time.perf_counter() - start:.0f} s")


def _check_flags() -> None:
    """Refuse flags that nothing uses."""
    if FEATURES.value == "none":
        names = ("n", "seeds", "sampler", "num_steps", "timesteps", "guidance", "split")
        command.check_unused(names, "--features=none, which draws no samples,")
    if BOUND_IMAGES.value == 0:
        command.check_unused(("bound_terms", "variance"), "--bound_images=0")
    if INCEPTION_WEIGHTS.value and FEATURES.value != "inception":
        raise UserError("--inception_weights is given without --features=inception; add it")


def _check(run: Run, dataset: data.Dataset, config: Config) -> None:
    """Refuse at once what would otherwise stop the evaluation after minutes."""
    if FEATURES.value != "none":
        run.sample_fn()
        references.source_of(dataset, SPLIT.value)
    if BOUND_IMAGES.value or ODE.value:
        likelihoods.check_pixels(run)
    if BOUND_IMAGES.value != 0:
        likelihoods.check_variance(run, VARIANCE.value or likelihoods.variance_of(config))
    if ODE.value:
        likelihoods.by_ode(run, config.eval.ode_tolerance)


def _likelihoods(
    run: Run, dataset: data.Dataset, config: Config, progress: Progress
) -> tuple[list[Row], dict[str, list[Part]]]:
    """Return the rows in bits/dim, and the rate-distortion curve of each split."""
    c, rows, curves = config.eval, [], {}
    default = 0 if run.codec else c.bound_images  # latents have no bound
    num_images = default if BOUND_IMAGES.value is None else BOUND_IMAGES.value
    for split in ("train", "test") if dataset.test else ("train",):
        if num_images:
            found = likelihoods.evaluate(
                _in_chunks(run, num_images),
                dataset,
                split,
                variance=VARIANCE.value or likelihoods.variance_of(config),
                num_images=num_images,
                num_terms=BOUND_TERMS.value or c.bound_terms,
                progress=progress,
            )
            rows += found.rows
            curves[split] = found.curve
        if ODE.value:
            rows.append(
                likelihoods.evaluate_by_ode(
                    _in_chunks(run, ODE.value),
                    dataset,
                    split,
                    num_images=ODE.value,
                    tolerance=c.ode_tolerance,
                    progress=progress,
                )
            )
    return rows, curves


def _samples(
    run: Run, dataset: data.Dataset, network: FeatureNetwork, progress: Progress
) -> samples.Report:
    """Draw and measure samples."""
    n, num_seeds = _counts(run.config)
    return samples.evaluate(
        _in_chunks(run, n * num_seeds),
        dataset,
        network,
        n=n,
        num_seeds=num_seeds,
        split=SPLIT.value,
        progress=progress,
    )


def _counts(config: Config) -> tuple[int, int]:
    """Return the number of samples of each seed, and the number of seeds."""
    return N.value or config.eval.num_samples, SEEDS.value or config.eval.num_seeds


def _about_samples(run: Run, dataset: data.Dataset, network: str) -> dict[str, str]:
    """Return the facts about the samples and their features."""
    (n, num_seeds), sample = _counts(run.config), run.config.sample
    steps = sample.num_steps or run.config.process.num_timesteps
    return {
        "samples": f"{num_seeds} x {n:,} by {sample.sampler}, {steps} steps, "
        f"{sample.timesteps}, guidance {sample.guidance:g}; EMA weights",
        "features": network,
        "reference": f"{len(references.source_of(dataset, SPLIT.value)):,} images of the split "
        f"{SPLIT.value!r} of {run.config.data.name}",
        "errors of samples": f"standard errors over {num_seeds} seeds of sampling"
        if num_seeds > 1
        else "each estimate's own error, if it has one",
    }


def _in_chunks(run: Run, n: int) -> Run:
    """Return the run with chunks of images small enough for a few reports of progress."""
    size = chunk_size(n, run.config.sample.chunk_size)
    sample = dataclasses.replace(run.config.sample, chunk_size=size)
    return run._replace(config=dataclasses.replace(run.config, sample=sample))


def _draw(
    run: Run,
    workdir: WorkDir,
    kept: pathlib.Path,
    curves: dict[str, list[Part]],
    pictures: dict[str, np.ndarray],
) -> None:
    """Write the pictures, and draw the rate-distortion curves; keep a copy of each."""
    abouts = {
        "rate_distortion": "rate and distortion",
        "progressive": "progressive decoding",
        "nearest_training_images": "samples above their nearest training images",
    }
    points = {
        split: [((part.low + part.high) / 2, part.rate, part.distortion) for part in curve]
        for split, curve in curves.items()
    }
    plot = {"rate_distortion": rate_distortion(points, run.process.num_timesteps)} if curves else {}
    for name, picture in (plot | pictures).items():
        path = workdir.samples / f"{name}.png"
        if isinstance(picture, np.ndarray):
            outputs.save_picture(path, picture)
        else:
            outputs.save_figure(path, picture)
        _keep(abouts[name], path, kept.with_name(f"{kept.name}_{name}.png"))


def _keep(what: str, newest: pathlib.Path, copy: pathlib.Path) -> None:
    """Copy a file of the newest evaluation, and print both paths."""
    try:
        with replacing(copy) as part:
            part.write_bytes(newest.read_bytes())
    except OSError as error:
        raise outputs.not_writable(copy, None, error) from error
    print(f"{what}: {newest}{os.linesep}  a copy that other settings do not overwrite: {copy}")


def _stem(workdir: WorkDir, step: int) -> pathlib.Path:
    """Return the path of the copies without their endings: it says the checkpoint and the flags."""
    given = {
        name: flags.FLAGS[name].value
        for name in SETTINGS
        if flags.FLAGS[name].value != flags.FLAGS[name].default
    }
    words = (f"{name}-{str(value).replace(os.sep, '-')}" for name, value in given.items())
    return workdir.root / "evaluations" / outputs.join(f"step{step}", *words)


def print_table(rows: list[Row], facts: dict[str, Any]) -> None:
    """Print the rows, and below them the facts about them."""
    table = Table("metric")
    for column in ("value", "± error", "n"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in rows:
        value = "--" if row.value is None else f"{row.value:.4g}"
        error = "--" if row.error is None else f"{row.error:.2g}"
        table.add_row(row.name, value, error, f"{row.n:,}", row.note)
    console = tables.console()
    console.print(table)
    for name, fact in facts.items():
        console.print(f"{name}: {fact}")


def _sampling(config: Config) -> dict[str, Any]:
    """Return the fields of config.sample that the flags or config.eval set."""
    chosen = {"num_steps": NUM_STEPS, "timesteps": TIMESTEPS, "guidance": GUIDANCE}
    fields = {name: flag.value for name, flag in chosen.items() if flag.value is not None}
    if SAMPLER.value is None:
        defaults = for_evaluation(config).sample
        names = ("sampler", "num_steps", "timesteps", "rho")
        return {name: getattr(defaults, name) for name in names} | fields
    return fields if SAMPLER.value == "own" else {"sampler": SAMPLER.value} | fields


def _network(
    config: Config, dataset: data.Dataset, progress: Progress
) -> tuple[FeatureNetwork, str]:
    """Return the feature network of --features, and a line about it."""
    if FEATURES.value == "inception":
        if dataset.image_shape[-1] == 4:
            raise UserError(
                "--features=inception takes grey or RGB images, but the images here also have an "
                "alpha channel; pass --features=classifier"
            )
        directory = os.path.join(data_directory(config.data.data_dir), "downloads")
        network = inception.load(directory, INCEPTION_WEIGHTS.value)
        return network, f"Inception-v3 of the FID, 2048 pooled features ({network.name})"
    what = "the classifier whose features are compared (kept for the next time)"
    progress(what, 0, 1)
    network, accuracy = references.classifier(config.data, dataset)
    progress(what, 1, 1)
    held_out = "held-out" if dataset.test else "held-back"
    about = (
        f"a classifier trained on {config.data.name}, accuracy {accuracy:.1%} on {held_out} images"
    )
    return network, about


def _write(
    workdir: WorkDir,
    kept: pathlib.Path,
    rows: list[Row],
    facts: dict[str, Any],
    curves: dict[str, list[Part]],
) -> None:
    """Write the table and the curves as JSON, and keep a copy."""
    settings = {name: flags.FLAGS[name].value for name in SETTINGS}
    content = {**facts, "settings": settings, "rows": [row._asdict() for row in rows]}
    content["rate_distortion"] = {
        split: [part._asdict() for part in curve] for split, curve in curves.items()
    }
    text = to_json(content, indent=2, ensure_ascii=False) + "\n"
    path = workdir.root / "evaluate.json"
    try:
        with replacing(path) as part:
            part.write_text(text)
    except OSError as error:
        raise outputs.not_writable(path, None, error) from error
    _keep("table", path, kept.with_name(f"{kept.name}.json"))


if __name__ == "__main__":
    command.run(main)
