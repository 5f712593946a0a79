"""Batches as a pure function of (seed, step).

The order of the images is an endless sequence of epochs. Epoch e is a permutation of the set, drawn
from (seed, e). Batch k takes images k * batch_size up to (k + 1) * batch_size of this sequence. So
every image comes once per epoch, none is dropped, and a batch may cross the border of two epochs.
There is no state: a run that resumes at step k asks for batch k.
"""

import functools
from collections.abc import Mapping

import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.data.views import Pairs
from ddpm_jax.errors import UserError

ORDER, FLIP, PARTNER = range(3)  # streams of random numbers: (seed, stream, epoch or step)


class Batches:
    """The batches of a training run, or this process's slices of them.

    The global batch of a step does not depend on `process_count`. Process i receives the i-th of
    `process_count` equal slices, and the flips are drawn for the whole batch.

    Args:
      source: the images.
      batch_size: images in the global batch, at most `len(source)`.
      seed: seed of the order, of the flips and of the pairs of views, at least 0.
      flip: whether to mirror each image left to right with probability 1/2.
      process_index: index of this process's slice, in 0..process_count-1.
      process_count: the number of slices; must divide `batch_size`.
      rows: further arrays with one row per image, added to each batch under their names. The names
        "image" and "label" are not allowed.
      pairs: the pairs of views of `source`; each batch then also has the entries of `Pairs.entries`
        for a random other image of each image's object. None is no pairs.

    Raises:
      UserError: a wrong `batch_size` or `seed`.
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
        pairs: Pairs | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"train.batch_size must be at least 1, found {batch_size}")
        if batch_size > len(source):
            raise UserError(
                f"train.batch_size is {batch_size}, but there are only {len(source)} training "
                f"images; set train.batch_size to at most {len(source)}, or add images"
            )
        if batch_size % process_count:
            raise UserError(
                f"train.batch_size must be a multiple of {process_count}, the number of "
                f"processes, found {batch_size}"
            )
        if seed < 0:
            raise UserError(f"train.seed must be at least 0, found {seed}")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.rows = dict(rows or {})
        self.pairs = pairs
        per_process = batch_size // process_count
        self._mine = slice(process_index * per_process, (process_index + 1) * per_process)
        # A batch spans at most two epochs.
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:
        """Return the order of the N images in this epoch, int64 [N]."""
        return np.random.default_rng([self.seed, ORDER, epoch]).permutation(len(self.source))

    def indices(self, step: int) -> np.ndarray:
        """Return the indices of the images in the global batch of this step, int64 [batch_size]."""
        epochs, positions = np.divmod(
            np.arange(step * self.batch_size, (step + 1) * self.batch_size), len(self.source)
        )
        parts = [self._order(int(e))[positions[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return this process's slice of the batch of this step.

        Returns:
          "image" [B, ...] as the source returns them, "label" int32 [B] and the entries of `rows`,
          [B, ...], where B is batch_size / process_count. With `pairs` also "view" and the cameras.
        """
        indices = self.indices(step)[self._mine]
        if self.flip:
            rng = np.random.default_rng([self.seed, FLIP, step])
            mirrored = rng.random(self.batch_size)[self._mine] < 0.5
            images, labels = self.source.read(indices, mirrored)
        else:
            images, labels = self.source.read(indices)
        rows = {name: value[indices] for name, value in self.rows.items()}
        if self.pairs is not None:
            rng = np.random.default_rng([self.seed, PARTNER, step])
            others = self.pairs.others(indices, rng.random(self.batch_size)[self._mine])
            rows |= self.pairs.entries(indices, others)
        return {"image": images, "label": labels, **rows}
