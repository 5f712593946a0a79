"""Data sets of images: `open_dataset(config)` returns a `Dataset`, `Batches` returns its batches.

    config --datasets.py--> a prepared set --sources.py--> Source --batches.py--> batch(step)

- cifar, mnist, digits, emoji, solids, srn, folder: one module per family of sets. Each writes its
  sets as array_record files, in the format of TFDS (TensorFlow Datasets).
- arrays: the set `array`, images in an .npz file or in the program. It is not prepared.
- imbalance: makes the training split long-tailed.
- prepared: finds and reads these files, and every other set that TFDS has prepared.
- images: converts every image to the size and the channels of the run.
- views: pairs of images of the same object, for sets with cameras.
- cond: selects the entries of a batch that condition the network.

Archives are downloaded by `runtime.files`. Only this folder imports tensorflow_datasets, and it
never imports TensorFlow.
"""

from ddpm_jax.data.batches import Batches
from ddpm_jax.data.datasets import Dataset, declared, open_dataset
from ddpm_jax.data.folder import check_workdir
from ddpm_jax.data.sources import Source
from ddpm_jax.data.views import Views

__all__ = ["Batches", "Dataset", "Source", "Views", "check_workdir", "declared", "open_dataset"]
