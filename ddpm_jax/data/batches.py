"""Batches whose content is a pure function of (seed, step).

The images are dealt from an endless row of shuffled decks: deck e is a permutation of the set
drawn from (seed, e), and batch k is the k-th run of `batch_size` cards. So every image comes once
in each deck, none is dropped, and a batch may hold the end of one deck and the beginning of the
next. There is no state: to resume at step k is to ask for batch k.
"""

import functools
from collections.abc import Mapping

import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UserError

ORDER, FLIP = 0, 1  # the streams of random numbers: each is seeded by (seed, stream, counter)


class Batches:
    """The batches of a training run, or this process's share of them.

    The global batch of a step is the same for every `process_count`: process i holds the i-th of
    `process_count` equal slices of it, and the flips are drawn for the whole batch.

    Args:
      source: the images.
      batch_size: images in the global batch, at most `len(source)`.
      seed: non-negative.
      flip: whether each image is mirrored left to right with probability 1/2.
      process_index: which slice is this process's.
      process_count: the number of slices; divides `batch_size`.
      rows: more arrays with a row for each image, dealt with them; no entry may be called "image"
        or "label".
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        flip: bool = False,
        process_index: int = 0,
        process_count: int = 1,
        rows: Mapping[str, np.ndarray] | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"train.batch_size must be at least 1, found {batch_size}")
        if batch_size > len(source):
            raise UserError(
                f"train.batch_size is {batch_size} but there are only {len(source)} training "
                f"images; set train.batch_size to at most {len(source)}, or add images"
            )
        if batch_size % process_count:
            raise UserError(
                f"train.batch_size must be a multiple of the {process_count} processes, "
                f"found {batch_size}"
            )
        if seed < 0:
            raise UserError(f"train.seed must not be negative, found {seed}")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.rows = dict(rows or {})
        per_process = batch_size // process_count
        self._mine = slice(process_index * per_process, (process_index + 1) * per_process)
        self._deck = functools.lru_cache(maxsize=2)(self._shuffle)  # a batch spans at most two

    def _shuffle(self, epoch: int) -> np.ndarray:
        """Return the order of the images in this epoch, int64 [N]."""
        return np.random.default_rng([self.seed, ORDER, epoch]).permutation(len(self.source))

    def indices(self, step: int) -> np.ndarray:
        """Return which images are in the global batch of this step, int64 [batch_size]."""
        epochs, places = np.divmod(
            np.arange(step * self.batch_size, (step + 1) * self.batch_size), len(self.source)
        )
        decks = [self._deck(int(e))[places[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(decks)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return this process's slice: `image` uint8 [B, H, W, C], `label` int32 [B] and `rows`."""
        indices = self.indices(step)[self._mine]
        images, labels = self.source.read(indices)
        if self.flip:
            rng = np.random.default_rng([self.seed, FLIP, step])
            mirrored = rng.random(self.batch_size)[self._mine] < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        rows = {name: value[indices] for name, value in self.rows.items()}
        return {"image": images, "label": labels, **rows}
