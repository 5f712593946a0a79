"""Pairs of views: an image, and another image of the same object, with the cameras of both.

A network of novel views (`models.xunet`) learns to draw the first from the second. In training the
other image is drawn anew for every step (`Batches`). For held-out images it is always the same.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UserError


class Views(NamedTuple):
    """The objects and the cameras of N images; the fields of a camera as in `scenes.cameras`.

    Attributes:
      object: [N] int64, the object that the image shows; an index over all splits.
      pose: [N, 4, 4] float32, camera to world.
      focal: [N] float32, in pixels of the image.
      centre: [N, 2] float32, in pixels of the image.
    """

    object: np.ndarray
    pose: np.ndarray
    focal: np.ndarray
    centre: np.ndarray


class Pairs:
    """The pairs of views of a split.

    Args:
      source: the images of the split.
      views: their objects and cameras.

    Raises:
      UserError: an object has only one image.
    """

    def __init__(self, source: Source, views: Views):
        self.source, self.views = source, views
        self._order = np.argsort(views.object, kind="stable")  # the images of an object in a row
        found, start, count = np.unique(
            views.object[self._order], return_index=True, return_counts=True
        )
        if (count < 2).any():
            raise UserError(
                f"object {found[count < 2][0]} has only one image in its split, but novel views "
                "need two views of every object; add views, or set data.views_per_object to at "
                "least 2"
            )
        group = np.searchsorted(found, views.object)
        self._start, self._count = start[group], count[group]
        self._rank = np.argsort(self._order) - self._start  # of an image among those of its object

    def others(self, indices: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Return another image of the same object for each image, uniformly: int [n].

        Args:
          indices: [n] int, the images.
          u: [n] float, uniform in [0, 1).
        """
        count = self._count[indices]
        step = 1 + np.floor(u * (count - 1)).astype(np.int64)
        return self._order[self._start[indices] + (self._rank[indices] + step) % count]

    def entries(self, indices: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
        """Return what a batch contains of the pairs of images at `indices` and `others`, [n] int.

        Returns:
          "view" [n, H, W, C] uint8, the other image; and the cameras of both frames, the image
          first: "pose" [n, 2, 4, 4], "focal" [n, 2] and "centre" [n, 2, 2], float32.
        """
        return {"view": self.source.read(others)[0]} | self._cameras(indices, others)

    def fixed(self) -> dict[str, Any]:
        """Return the entries of all N images with an other image that is always the same.

        "view" is an object with a shape, a dtype and `[indices]`, which reads the images.
        """
        indices = np.arange(len(self.source))
        others = self.others(indices, np.random.default_rng(0).random(len(indices)))
        return {"view": Images(self.source, others), **self._cameras(indices, others)}

    def _cameras(self, indices: np.ndarray, others: np.ndarray) -> Mapping[str, np.ndarray]:
        pair = np.stack([indices, others], axis=1)
        return {name: getattr(self.views, name)[pair] for name in ("pose", "focal", "centre")}


class Images:
    """Some images of a source, as an array that is read only where it is indexed.

    Args:
      source: the images.
      indices: [N] int, which of them.
    """

    def __init__(self, source: Source, indices: np.ndarray):
        self._source, self._indices = source, indices
        first, _ = source.read(indices[:1])
        self.shape, self.dtype = (len(indices), *first.shape[1:]), first.dtype

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 [n, H, W, C]."""
        return self._source.read(self._indices[indices])[0]
