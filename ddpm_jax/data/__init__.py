"""Images: `open_dataset(config)` -> `Dataset`; `Batches` deals them out.

    config --datasets.py--> a prepared set --sources.py--> Source --batches.py--> batch(step)

One module per family of sets writes it as TFDS's array_record files (cifar, mnist, digits, emoji,
folder); `prepared.py` finds and reads these and whatever else TFDS has prepared; `download.py`
brings archives, `images.py` makes every picture the size and mode of the run. This is the only part
of the library that imports tensorflow_datasets, and it never imports TensorFlow.
"""

from ddpm_jax.data.batches import Batches
from ddpm_jax.data.datasets import Dataset, open_dataset
from ddpm_jax.data.sources import Source

__all__ = ["Batches", "Dataset", "Source", "open_dataset"]
