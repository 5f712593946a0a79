"""How much labels of views say about the outlines of solids, without a network.

    python -m benchmarks.silhouettes

The script reads the set of `dreamfusion_solids.py`. For each class it prints R², the part of the
variance of the silhouettes that the label explains: for labels of five sides, of 24 views, and of
24 random values. At large t the clean picture of a prior is close to the mean of all pictures with
the label. So R² says how much of the shape this mean keeps.
"""

import numpy as np
from absl import flags
from rich.table import Table

from benchmarks.measures import explained
from ddpm_jax import data
from ddpm_jax.config import from_dict
from ddpm_jax.data.solids import CLASSES
from ddpm_jax.scenes import sides
from experiments import command, dreamfusion_solids, tables

DATA_DIR = flags.DEFINE_string("data_dir", "", "Directory of prepared sets, as data.data_dir.")
WHITE = 250  # a pixel with a channel below it shows the solid


def main() -> None:
    settings = {**dreamfusion_solids.get_config().data, "data_dir": DATA_DIR.value}
    source = data.open_dataset(from_dict({"data": settings}).data).train
    pictures, labels = source.read(np.arange(len(source)))
    silhouettes = (pictures < WHITE).any(axis=-1)
    of_class, row = np.divmod(labels, sides.NUM_VIEWS + 1)
    table = Table("class", "pictures", "five sides", "24 views", "24 random labels", title="R²")
    for index, name in enumerate(CLASSES):
        chosen = (of_class == index) & (row > 0)
        shapes, view = silhouettes[chosen], row[chosen] - 1
        random = np.random.default_rng(0).integers(sides.NUM_VIEWS, size=len(view))
        found = (explained(shapes, label) for label in (sides.SIDE_OF_VIEW[view], view, random))
        table.add_row(name, str(len(view)), *(f"{value:.2f}" for value in found))
    tables.console().print(table)


if __name__ == "__main__":
    command.run(main)
