"""A lecture's run on real pictures: `sigmoid_t700` on Fashion-MNIST, beside three other schedules.

    python -m benchmarks.lecture --work=DIR --images=6000 --out=docs/figures

The lecture trains a simple U-Net on 32x32 images for ten epochs, with a sigmoid schedule of 700
timesteps. Here the images are those of Fashion-MNIST, with a black border of two pixels. The
schedules have the same network, seeds and number of steps. An epoch is the first --images images.

For each schedule the script writes a grid of 64 samples (all 700 steps, ancestral). It prints the
held-out loss, the bound in bits/dim, and the Fréchet distance of 1,000 samples. These are drawn by
DPM-Solver++ 2M in 25 steps from two seeds, and judged as in `benchmarks/fashion_quality.py`. DIR
keeps what is done. The same command continues from there.
"""

import json
import pathlib
import shutil
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks import fashion_recipes
from ddpm_jax import data
from ddpm_jax.config import Config, from_dict
from ddpm_jax.evaluation import likelihoods
from ddpm_jax.runs import metrics, open_run
from ddpm_jax.runtime.files import replacing, to_json
from experiments import command, sigmoid_t700

WORK = flags.DEFINE_string("work", None, "Directory for the runs and the results.", required=True)
IMAGES = flags.DEFINE_integer("images", 6000, "Training images of an epoch, of 60,000.", 128)
OUT = flags.DEFINE_string("out", None, "Directory for the grids of samples. Default: DIR.")

SCHEDULES = ("sigmoid", "linear", "cosine", "quadratic")
EPOCHS = 10
BOUND_IMAGES = 512  # held-out images of the bound
COLUMNS = {  # of the results -> of the table
    "held_out_loss": "held-out loss",
    "bits_per_dim_test": "bits/dim, held out",
    "L_T_test": "of which L_T",
    "fd1k_train": "Fréchet distance",
}


def config_of(schedule: str, images: int) -> Config:
    """Return `sigmoid_t700` on Fashion-MNIST, with a schedule and a number of training images."""
    config = from_dict(sigmoid_t700.get_config().to_dict())
    steps = EPOCHS * images // config.train.batch_size
    changes: dict[str, Any] = {
        "data.name": "fashion_mnist",
        "data.image_size": 32,
        "data.crop": "pad",
        "data.flip": False,
        "data.train_split": f"train[:{images}]",
        "process.schedule": schedule,
        "train.num_steps": steps,
        "train.log_every": 20,
        "train.checkpoint_every": 100,
        "eval.every": steps,
    }
    if schedule == "cosine":  # has no ends to set
        changes |= {"process.beta_1": 0.0, "process.beta_T": 0.0}
    return fashion_recipes.changed(config, changes)


def measure(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Train a config and measure it: name -> value, or (value, standard error)."""
    fast = {"sample.sampler": "dpm_solver_pp_2m", "sample.num_steps": 25}
    fast |= {"sample.timesteps": "trailing"}
    found = fashion_recipes.measure(config, workdir, fast)
    rows = metrics.read(workdir / "metrics.jsonl")
    found["held_out_loss"] = [row for row in rows if "held_out_loss" in row][-1]["held_out_loss"]
    run = open_run(workdir)
    bound = likelihoods.evaluate(
        run,
        data.open_dataset(config.data),
        "test",
        variance=likelihoods.variance_of(config),
        num_images=BOUND_IMAGES,
        num_terms=100,
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
        config = config_of(schedule, IMAGES.value)
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
    Console(soft_wrap=True).print(table)
    print(f"results: {path.resolve()}; grids: {out.resolve()}/lecture_*.png")


def _text(found: Any) -> str:
    value, error = found if isinstance(found, list | tuple) else (found, None)
    if value is None:
        return "--"
    return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")


if __name__ == "__main__":
    command.run(main)
