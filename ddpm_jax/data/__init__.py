"""Images: `open_dataset(config)` -> `Dataset`; `Batches` and `prefetch` deal them out.

The only part of the library that imports tensorflow_datasets (never TensorFlow).
"""

from ddpm_jax.data.batches import Batches, prefetch
from ddpm_jax.data.datasets import Dataset, open_dataset
from ddpm_jax.data.sources import Source

__all__ = ["Batches", "Dataset", "Source", "open_dataset", "prefetch"]
