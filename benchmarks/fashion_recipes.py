"""Which recipe gives most quality in little time? Short trainings on Fashion-MNIST.

    python -m benchmarks.fashion_recipes --work=DIR
    python -m benchmarks.fashion_recipes --work=DIR --only=v_cosine,eps_linear

Each recipe changes `experiments/fashion_mnist.py:small` in one thing, and trains once. A recipe
with the same network takes the same number of images. A recipe with another network takes as many
images as it can in the same time, by speeds measured beforehand (`benchmarks/fashion.py`).
DPM-Solver++ 2M draws the samples in 25 steps, from two seeds. `benchmarks/fashion_quality.py`
judges them. DIR keeps what is done. The same command continues from there, and prints the table.
"""

import json
import pathlib
from typing import Any

from absl import flags
from rich.table import Table

from benchmarks import fashion
from ddpm_jax.errors import look_up
from ddpm_jax.runtime.files import replacing, to_json
from experiments import command, tables

WORK = flags.DEFINE_string("work", None, "Directory for the runs and the results.", required=True)
ONLY = flags.DEFINE_list("only", [], "Names of the recipes to train. Default: all.")
IMAGES = flags.DEFINE_integer(
    "images", 96_000, "Training images of a recipe, counted with repeats."
)

RESULTS = "results.json"


def main() -> None:
    work = pathlib.Path(WORK.value).expanduser()
    work.mkdir(parents=True, exist_ok=True)
    path = work / RESULTS
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in ONLY.value or fashion.RECIPES:
        changes, images_in_equal_time = look_up(fashion.RECIPES, "--only", name)
        if name in results:
            continue
        config = fashion.changed(fashion.recipe_base(), changes)
        steps = round(IMAGES.value * images_in_equal_time / config.train.batch_size)
        config = fashion.changed(config, {"train.num_steps": steps})
        results[name] = {"steps": steps, **fashion.measure(config, work / name)}
        with replacing(path) as temporary:
            temporary.write_text(to_json(results, indent=1))
    _print(results)
    print(f"results: {path.resolve()}")


def _print(results: dict[str, Any]) -> None:
    table = Table("recipe")
    columns = ("fd1k_train", "precision1k_train", "recall1k_train")
    for column in ("steps", "loss", "images/s", *columns):
        table.add_column(column, justify="right")
    for name, row in sorted(results.items(), key=lambda item: item[1]["fd1k_train"][0]):
        judged = [f"{row[c][0]:.3g} ± {row[c][1]:.2g}" for c in columns]
        speed = f"{row['images_per_second']:.0f}"
        table.add_row(name, str(row["steps"]), f"{row['loss']:.4f}", speed, *judged)
    tables.console().print(table)


if __name__ == "__main__":
    command.run(main)
