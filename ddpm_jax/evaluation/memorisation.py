"""Does a model copy its training images? Distances to the nearest training image.

The distances of held-out images are the reference. If a model has learned the distribution of the
data, its samples are about as near to the training images as held-out images are. Samples that are
much nearer are copies.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluation.manifolds import nearest
from ddpm_jax.figures import grids

NEAR = 0.01  # the fraction of held-out images that is nearer than the bar


class Memorisation(NamedTuple):
    """How near the samples are to training images.

    Attributes:
      memorised: the fraction of samples that are nearer than the nearest 1 % of held-out images:
        0.01 for a model of the distribution, 1 for a model that copies.
      nearest_ratio: the median distance of the samples, divided by the median distance of held-out
        images: 1 for a model of the distribution, 0 for a model that copies.
    """

    memorised: float
    nearest_ratio: float


def compare(samples: np.ndarray, held_out: np.ndarray) -> Memorisation:
    """Compare the distances to the nearest training image.

    Args:
      samples: [n] float, the distances of samples.
      held_out: [m] float, the distances of held-out images.
    """
    bar = np.quantile(held_out, NEAR)
    ratio = np.median(samples) / max(np.median(held_out), np.finfo(np.float64).tiny)
    return Memorisation(float(np.mean(samples < bar)), float(ratio))


def nearest_training_image(
    images: np.ndarray, chunks: Callable[[], Iterable[np.ndarray]], *, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each image to its nearest training image, and the index of the latter.

    Args:
      images: [n, H, W, C] uint8.
      chunks: () -> the training images, in arrays [m, H, W, C] uint8.
      flip: whether mirrored training images count too; True if the model was trained on both.

    Returns:
      distances: [n] float64, Euclidean, in pixel values.
      indices: [n] int64, counted over all chunks.
    """
    distance, index = nearest(images, chunks())
    if flip:
        mirrored, other = nearest(images, (chunk[:, :, ::-1] for chunk in chunks()))
        index = np.where(mirrored < distance, other, index)
        distance = np.minimum(mirrored, distance)
    return distance, index


def neighbour_grid(samples: np.ndarray, neighbours: np.ndarray, columns: int = 10) -> np.ndarray:
    """Draw each sample above its nearest training image.

    Rows of samples and rows of neighbours alternate. Grey images fill the last row.

    Args:
      samples: [n, H, W, C] uint8.
      neighbours: [n, H, W, C] uint8.
      columns: number of images in a row.

    Returns:
      [H', W', C] uint8, the picture.
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
