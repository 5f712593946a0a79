"""Does a model copy its training images? Distances to the nearest training image.

The distances of held-out images are the reference. A model of the data's distribution draws samples
about as near to the training images as held-out images are. Samples that are much nearer are
copies.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluation.manifolds import nearest
from ddpm_jax.figures import grids

NEAR = 0.01  # the part of held-out images that is nearer than the bar


class Memorisation(NamedTuple):
    """How near the samples are to training images.

    Attributes:
      memorised: the part of the samples nearer than the nearest 1 % of held-out images: 0.01 for
        a model of the distribution, 1 for one that copies.
      nearest_ratio: median distance of the samples, divided by that of held-out images: 1 for a
        model of the distribution, 0 for one that copies.
    """

    memorised: float
    nearest_ratio: float


def compare(samples: np.ndarray, held_out: np.ndarray) -> Memorisation:
    """Compare distances to the nearest training image, of samples [n] and held-out images [m]."""
    bar = np.quantile(held_out, NEAR)
    ratio = np.median(samples) / max(np.median(held_out), np.finfo(np.float64).tiny)
    return Memorisation(float(np.mean(samples < bar)), float(ratio))


def nearest_training_image(
    images: np.ndarray, chunks: Callable[[], Iterable[np.ndarray]], *, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's distance to the nearest training image, and which one it is.

    Args:
      images: [n, H, W, C] uint8.
      chunks: () -> the training images, in arrays [m, H, W, C] uint8.
      flip: whether mirrored training images count too, as for a model trained on both.

    Returns:
      distances: [n] float64, Euclidean, in pixel values.
      indices: [n] int64.
    """
    distance, index = nearest(images, chunks())
    if flip:
        mirrored, other = nearest(images, (chunk[:, :, ::-1] for chunk in chunks()))
        index = np.where(mirrored < distance, other, index)
        distance = np.minimum(mirrored, distance)
    return distance, index


def neighbour_grid(samples: np.ndarray, neighbours: np.ndarray, columns: int = 10) -> np.ndarray:
    """Draw each sample over its nearest training image; both [n, H, W, C] uint8.

    Rows of samples and of neighbours take turns; a last row that is not full is filled with grey.
    """
    missing = -len(samples) % columns
    grey = np.full((missing, *samples.shape[1:]), 128, np.uint8)
    rows = [
        np.concatenate([images, grey]).reshape(-1, columns, *samples.shape[1:])
        for images in (samples, neighbours)
    ]
    return grids.make_grid(
        np.stack(rows, axis=1).reshape(-1, *samples.shape[1:]),
        columns=columns,
        side=32,
        row_labels=["sample", "nearest"] * len(rows[0]),
    )
