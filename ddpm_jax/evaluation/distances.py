"""Kernel distance and Inception score of features, in float64 on the host.

MMD²ᵤ = Σ_{i≠j} k(x_i, x_j) / (m(m-1)) + Σ_{i≠j} k(y_i, y_j) / (m(m-1)) - 2 Σ_{ij} k(x_i, y_j) / m²
k(x, y) = (xᵀy / D + 1)³                            (Bińkowski et al. 2018, section 4; "KID")

IS = exp E_x KL(p(y|x) ‖ p(y))                       (Salimans et al. 2016, section 4)
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from ddpm_jax.errors import UserError


class Estimate(NamedTuple):
    """A value and its standard error, which is NaN if there is only one sample."""

    value: float
    error: float


def standard_error(values: np.ndarray, independent: int | None = None) -> float:
    """Return the standard error of the mean of values [k]; NaN if k = 1.

    Args:
      values: [k] float.
      independent: the number of independent values among them; None is k.
    """
    independent = len(values) if independent is None else independent
    return float(np.std(values, ddof=1) / np.sqrt(independent)) if len(values) > 1 else np.nan


def kernel_distance(
    x: np.ndarray, y: np.ndarray, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """Return the unbiased MMD² with the cubic kernel, as the mean over random subsets.

    The estimate is unbiased for every n and subset size, so it can be negative. The subsets
    overlap. So the error counts at most as many subsets as the smaller set has disjoint ones.

    Args:
      x: [n, D] float, features.
      y: [m, D] float, features.
      num_subsets: number of pairs of subsets.
      subset_size: number of features in each subset, in 2..min(n, m).
      seed: seed of the random subsets.

    Raises:
      UserError: a set smaller than the subsets, or subsets of fewer than 2.
    """
    smaller = min(len(x), len(y))
    if not 2 <= subset_size <= smaller:
        raise UserError(
            f"a kernel distance with subsets of {subset_size} needs at least 2 and as many images "
            f"in each set, found {len(x)} and {len(y)}; take more images or smaller subsets"
        )
    rng = np.random.default_rng(seed)

    def subset(features: np.ndarray) -> np.ndarray:
        return features[rng.choice(len(features), subset_size, replace=False)].astype(np.float64)

    values = np.array([_mmd2(subset(x), subset(y)) for _ in range(num_subsets)])
    independent = min(num_subsets, smaller // subset_size)
    return Estimate(float(values.mean()), standard_error(values, independent))


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased MMD² of two sets of the same size, both [m, D]."""
    m, dim = x.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        base = a @ b.T / dim + 1.0
        return base * base * base  # faster than numpy's general power

    def off_diagonal(k: np.ndarray) -> float:
        return (k.sum() - np.trace(k)) / (m * (m - 1))

    within = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y))
    return float(within - 2.0 * kernel(x, y).mean())


def inception_score(logits: np.ndarray, *, num_splits: int = 10) -> Estimate:
    """Return the mean of exp E KL(p(y|x) ‖ p(y)) over splits, in the given order.

    Limits: the score is 1 if every p(y|x) is the same. It is the number of classes K if each x has
    one certain class and the classes are equally frequent. No score is outside [1, K]. The score
    grows with the size of a split, so compare only scores of the same n.

    Args:
      logits: [n, K] float, from a classifier. Their order must not depend on the class.
      num_splits: number of splits. Their sizes differ by at most one image. Each split has its own
        p(y).

    Raises:
      UserError: fewer than 2 logits in a split.
    """
    if len(logits) < 2 * num_splits:
        raise UserError(
            f"an Inception score in {num_splits} splits needs at least {2 * num_splits} images, "
            f"found {len(logits)}"
        )
    log_p = special.log_softmax(np.asarray(logits, np.float64), axis=1)
    edges = np.arange(num_splits + 1) * len(log_p) // num_splits
    scores = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        part = log_p[start:stop]
        log_marginal = special.logsumexp(part, axis=0, keepdims=True) - np.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - log_marginal)).sum(axis=1).mean()))
    return Estimate(float(np.mean(scores)), standard_error(np.array(scores)))
