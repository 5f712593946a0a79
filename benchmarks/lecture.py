"""A lecture's run on real pictures: `sigmoid_t700` on Fashion-MNIST, beside three other schedules.

    python -m benchmarks.lecture --work=DIR --images=4000 --out=docs/figures

The lecture trains a simple U-Net on 32x32 images for ten epochs, with a sigmoid schedule of 700
timesteps. Here the images are those of Fashion-MNIST, with a black border of two pixels. The
schedules have the same network, seeds and number of steps. An epoch is the first --images images.
The network has 32 channels instead of 64 and a batch has 32 images instead of 128, so that two CPU
cores are enough.

For each schedule the script writes a grid of 25 samples (all 700 steps, ancestral). It prints the
held-out loss, the bound in bits/dim, and the Fréchet distance of 1,000 samples. These are drawn by
DPM-Solver++ 2M in 12 steps from two seeds, and judged as in `benchmarks/fashion_quality.py`. DIR
keeps what is done. The same command continues from there.
"""

import json
import pathlib
import shutil
from typing import Any

from absl import flags
from rich.table import Table

from benchmarks import fashion
from ddpm_jax import data
from ddpm_jax.config import Config
from ddpm_jax.evaluation import likelihoods
from ddpm_jax.runs import metrics, open_run
from ddpm_jax.runtime.files import replacing, to_json
from experiments import command, tables

WORK = flags.DEFINE_string("work", None, "Directory for the runs and the results.", required=True)
IMAGES = flags.DEFINE_integer("images", 4000, "Training images of an epoch, of 60,000.", 32)
OUT = flags.DEFINE_string("out", None, "Directory for the grids of samples. Default: DIR.")

SCHEDULES = ("sigmoid", "linear", "cosine", "quadratic")
BOUND_IMAGES, BOUND_TERMS = 128, 50  # held-out images of the bound, and its terms, of T
FAST_STEPS = 12
COLUMNS = {  # of the results -> of the table
    "held_out_loss": "held-out loss",
    "bits_per_dim_test": "bits/dim, held out",
    "L_T_test": "of which L_T",
    "fd1k_train": "Fréchet distance",
}


def measure(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Train a config and measure it: name -> value, or (value, standard error)."""
    fast = {"sample.sampler": "dpm_solver_pp_2m", "sample.num_steps": FAST_STEPS}
    fast |= {"sample.timesteps": "trailing"}
    found = fashion.measure(config, workdir, fast)
    rows = metrics.read(workdir / "metrics.jsonl")
    found["held_out_loss"] = [row for row in rows if "held_out_loss" in row][-1]["held_out_loss"]
    run = open_run(workdir)
    bound = likelihoods.evaluate(
        run,
        data.open_dataset(config.data),
        "test",
        variance=likelihoods.variance_of(config),
        num_images=BOUND_IMAGES,
        num_terms=BOUND_TERMS,
    )
    return found | {row.name: (row.value, row.error) for row in bound.rows}


def main() -> None:
    work = pathlib.Path(WORK.value).expanduser()
    out = pathlib.Path(OUT.value or work).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    path = work / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for schedule in SCHEDULES:
        if schedule in results:
            continue
        config = fashion.lecture(schedule, IMAGES.value)
        results[schedule] = measure(config, work / schedule)
        with replacing(path) as temporary:
            temporary.write_text(to_json(results, indent=1))
        grid = work / schedule / "samples" / f"step_{config.train.num_steps:07d}_ema.png"
        shutil.copyfile(grid, out / f"lecture_{schedule}.png")
    table = Table("schedule")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for schedule, found in results.items():
        table.add_row(schedule, *(_text(found.get(name)) for name in COLUMNS))
    tables.console().print(table)
    print(f"results: {path.resolve()}; grids: {out.resolve()}/lecture_*.png")


def _text(found: Any) -> str:
    value, error = found if isinstance(found, list | tuple) else (found, None)
    if value is None:
        return "--"
    return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")


if __name__ == "__main__":
    command.run(main)
