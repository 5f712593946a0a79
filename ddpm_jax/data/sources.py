"""Sources of images for batches: arrays in memory, or records on disk, decoded at each read.

Both return the same bytes for the same indices; memory is only faster.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

CHUNK = 1024  # number of records read and decoded at a time when a set is loaded into memory


class Source(Protocol):
    """A finite, indexable set of labelled images."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return images and labels.

        Args:
          indices: int [B], which images.
          mirrored: bool [B], which of them to mirror left to right; None is none.

        Returns:
          Images uint8 [B, H, W, C], or the moments of latents float16 [B, h, w, 2c]
          (`data.latents`); and labels int32 [B], zeros if the set has none.
        """
        ...


class Records(Protocol):
    """Encoded records that are read by position, such as TFDS's `as_data_source()`."""

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitems__(self, positions: list[int]) -> Sequence[Any]:
        """Return the records at these positions."""
        ...


class ArraySource:
    """Images in memory: uint8 [N, H, W, C] with labels int32 [N]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of the images and labels at `indices`."""
        return _mirror(self.images[indices], mirrored), self.labels[indices]


class RecordSource:
    """Images that are decoded from their records at each read.

    Args:
      records: the encoded records.
      decode: record -> (image uint8 [H, W, C], label); called from several threads.
    """

    def __init__(self, records: Records, decode: Callable[[Any], tuple[np.ndarray, int]]):
        self.records = records
        self.decode = decode
        self.num_threads = min(8, os.cpu_count() or 1)
        self.pool = concurrent.futures.ThreadPoolExecutor(self.num_threads)

    def __len__(self) -> int:
        return len(self.records)

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read and decode the records at `indices`, in several threads."""
        records = self.records.__getitems__(np.asarray(indices).tolist())
        # One task per thread. One task per image costs more time than it saves on small images.
        shares = [records[i :: self.num_threads] for i in range(self.num_threads)]
        decoded: list[Any] = [None] * len(records)
        for i, share in enumerate(self.pool.map(self._decode_all, shares)):
            decoded[i :: self.num_threads] = share
        images, labels = zip(*decoded, strict=True)
        return _mirror(np.stack(images), mirrored), np.array(labels, np.int32)

    def _decode_all(self, records: Sequence[Any]) -> list[tuple[np.ndarray, int]]:
        return [self.decode(record) for record in records]


def _mirror(images: np.ndarray, mirrored: np.ndarray | None) -> np.ndarray:
    """Mirror some of the images left to right, in place."""
    if mirrored is not None:
        images[mirrored] = images[mirrored, :, ::-1]
    return images


def load(source: Source, shape: tuple[int, int, int]) -> ArraySource:
    """Read the whole source into memory; `shape` is (H, W, C) of its images."""
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), CHUNK):
        chunk = np.arange(start, min(start + CHUNK, len(source)))
        images[chunk], labels[chunk] = source.read(chunk)
    return ArraySource(images, labels)
