"""Mean and covariance of features, streamed in float64, and the Fréchet distance of two sets.

  n = n_a + n_b,  δ = m_b - m_a,  m = m_a + δ n_b / n,
  M₂ = M₂a + M₂b + δ δᵀ n_a n_b / n            (Chan, Golub & LeVeque 1979, "pairwise" update)

  d² = |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½)         (Heusel et al. 2017, eq. 6)

The trace is the squared Bures distance of the covariances, the minimum over orthogonal U of
|C_a^½ - C_b^½ U|²_F. The minimum is at U = Q Pᵀ, with the SVD C_a^½ C_b^½ = P Σ Qᵀ. The code
computes this sum of squares. So near zero nothing cancels, singular covariances need no ridge, and
the result is never negative.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import linalg

from ddpm_jax.errors import UserError


class Moments(NamedTuple):
    """Mean and covariance of n features, as the Fréchet distance needs them.

    Attributes:
      n: the number of features.
      mean: [D] float64.
      m2: [D, D] float64, the sum of (f - mean)(f - mean)ᵀ.
    """

    n: int
    mean: np.ndarray
    m2: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, [D, D] float64."""
        return self.m2 / (self.n - 1)


def moments(features: np.ndarray) -> Moments:
    """Return the moments of features [n, D]: float64, whatever the type of the features."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of the union of the features behind `a` and behind `b`."""
    n = a.n + b.n
    delta = b.mean - a.mean
    m2 = a.m2 + b.m2 + np.outer(delta, delta) * (a.n * b.n / n)
    return Moments(n, a.mean + delta * (b.n / n), m2)


def streamed(batches: Iterable[np.ndarray]) -> Moments:
    """Return the moments of features in batches [b, D]; only one batch is in memory at a time."""
    return functools.reduce(merge, map(moments, batches))


def check_enough(what: str, n: int, dim: int) -> None:
    """Check that there are at least D + 1 features; with fewer, the covariance is singular.

    Args:
      what: what is counted, for the message.
      n: number of features.
      dim: their width D.

    Raises:
      UserError: n is below dim + 1.
    """
    if n <= dim:
        raise UserError(
            f"a Fréchet distance in {dim} features needs at least {dim + 1} images, found {n} "
            f"{what}; take more images, or a network with fewer features"
        )


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared Fréchet distance between two Gaussians.

    In the features of Inception this distance is the FID.

    Limits: the distance is symmetric and at least 0. A set against itself gives 0, up to rounding.
    The estimate from n images is biased upwards by about 1/n, so compare only distances of the same
    n.

    Args:
      a: the moments of one set.
      b: the moments of the other set, in the same features.

    Raises:
      UserError: a set has at most D images, or the two sets have features of different widths.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"features of one width are wanted, found {a.mean.shape[0]} and {b.mean.shape[0]}"
        )
    for one in (a, b):
        check_enough("in one of the sets", one.n, len(one.mean))
    root_a, root_b = _root(a.covariance), _root(b.covariance)
    p, _, q_transposed = linalg.svd(root_a @ root_b)
    rotation = q_transposed.T @ p.T
    shape = np.square(root_a - root_b @ rotation).sum()
    return float(np.square(a.mean - b.mean).sum() + shape)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
