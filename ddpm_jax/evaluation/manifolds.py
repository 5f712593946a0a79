"""Two sets of features as unions of balls: how much of each set is inside the other.

The radius r_k(x_i) of the ball around x_i is the distance to its k-th neighbour in its own set.

  precision  part of the fakes inside some ball of a real          (Kynkäänniemi et al. 2019, eq. 2)
  recall     part of the reals inside some ball of a fake                                   (eq. 2)
  density    mean number of reals' balls around a fake, divided by k  (Naeem et al. 2020, eq. 4)
  coverage   part of the reals' balls with a fake inside                                    (eq. 6)

The search is exact. It runs in blocks, so its memory does not grow with the number of features.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UserError


class Manifolds(NamedTuple):
    """The four numbers. Each is a fraction in [0, 1], except density, which can exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def compare(real: np.ndarray, fake: np.ndarray, *, k: int = 3, k_density: int = 5) -> Manifolds:
    """Return precision, recall, density and coverage of `fake` against `real`.

    Limits: a set against itself has precision, recall and coverage 1. All four numbers depend on
    the sizes of the sets. Give both sets the same size, and compare only results of this size.

    Args:
      real: [n, D] float, features.
      fake: [m, D] float, features.
      k: number of neighbours that define a radius for precision and recall (3 in the paper).
      k_density: number of neighbours that define a radius for density and coverage (5 in the
        paper).

    Raises:
      UserError: a set is too small: n must exceed max(k, k_density), and m must exceed k.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    r_real, wide_real = _radii(real, (k, k_density)).T
    (r_fake,) = _radii(fake, (k,)).T

    # Two passes: blocks of fakes against all reals, then blocks of reals against all fakes.
    def of_fakes(distances: np.ndarray) -> np.ndarray:
        inside = (distances < wide_real[None]).sum(axis=1)
        return np.stack([(distances < r_real[None]).any(axis=1), inside / k_density], axis=1)

    def of_reals(distances: np.ndarray) -> np.ndarray:
        return np.stack([(distances < r_fake[None]).any(axis=1), distances.min(axis=1)], axis=1)

    precision, density = _blocks(fake, real, of_fakes).mean(axis=0)
    inside, nearest = _blocks(real, fake, of_reals).T
    return Manifolds(
        float(precision), float(inside.mean()), float(density), float((nearest < wide_real).mean())
    )


def _blocks(a: np.ndarray, b: np.ndarray, reduce: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Apply `reduce` to blocks of rows of the distances [n, m] from a to b; join the results."""
    from sklearn import metrics  # here, because the import is slow

    blocks = metrics.pairwise_distances_chunked(a, b, reduce_func=lambda d, start: reduce(d))
    return np.concatenate(list(blocks))


def _radii(features: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Return the distance of each feature to its k-th neighbour for each k: [n, len(ks)].

    A feature is not its own neighbour.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(features) <= max(ks):
        raise UserError(
            f"{max(ks)} nearest neighbours need at least {max(ks) + 1} images, "
            f"found {len(features)}"
        )
    search = NearestNeighbors(n_neighbors=max(ks), algorithm="brute").fit(features)
    distances, _ = search.kneighbors()
    return distances[:, [k - 1 for k in ks]]


def nearest(queries: np.ndarray, chunks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each query to its nearest point, and the index of this point.

    Args:
      queries: [n, ...] numbers, flattened to [n, D].
      chunks: the points, in arrays [m, ...] with the same D. Only one chunk is in memory at a time.

    Returns:
      distances: [n] float64, Euclidean.
      indices: [n] int64, counted over all chunks; of equally near points in a chunk, the first.
    """
    from sklearn import metrics

    queries = np.asarray(queries, np.float64).reshape(len(queries), -1)
    best, index, start = np.full(len(queries), np.inf), np.zeros(len(queries), np.int64), 0
    for chunk in chunks:
        points = np.asarray(chunk, np.float64).reshape(len(chunk), -1)
        found, distance = metrics.pairwise_distances_argmin_min(queries, points)
        nearer = distance < best
        best, index = np.where(nearer, distance, best), np.where(nearer, start + found, index)
        start += len(chunk)
    return best, index
