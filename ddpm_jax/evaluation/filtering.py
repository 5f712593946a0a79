"""A filter of synthetic images: they must look like real images of their class to a classifier.

    confidence p_i = softmax(logits_i)[y_i]
    distance d_i = min |f_i - f_j| over the real images j of class y_i

f are the features of the classifier. An image passes if p_i >= p and d_i <= d. The two thresholds
are quantiles over held-out real images: each rejects a given fraction of them, as a mean over the
classes, so that the rare classes count as much as the others.

Shao et al. 2024 (DiffuLT) also filter by distances in a classifier's features. Deviates from them:
the distance has no lower limit, and the confidence counts too.
"""

from typing import NamedTuple

import jax
import numpy as np
from scipy.spatial.distance import cdist


class Judged(NamedTuple):
    """Images as a classifier sees them: confidence [n] and distance [n] of each, labels [n]."""

    confidence: np.ndarray
    distance: np.ndarray
    labels: np.ndarray


class Thresholds(NamedTuple):
    """The smallest confidence and the largest distance that pass."""

    confidence: float
    distance: float


def judge(
    logits: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    real_features: np.ndarray,
    real_labels: np.ndarray,
) -> Judged:
    """Return the confidence and the distance of images.

    Args:
      logits: [n, K] float, of the images.
      features: [n, D] float, of the images.
      labels: [n] int, the class that each image should show.
      real_features: [m, D] float, of real images.
      real_labels: [m] int; every class in `labels` must occur.
    """
    confidence = np.asarray(jax.nn.softmax(logits, axis=-1))[np.arange(len(labels)), labels]
    distance = np.empty(len(labels))
    for label in np.unique(labels):
        where, theirs = labels == label, real_features[real_labels == label]
        distance[where] = cdist(features[where], theirs).min(axis=1)
    return Judged(confidence, distance, labels)


def thresholds(held_out: Judged, reject: float) -> Thresholds:
    """Return the thresholds that each reject a fraction of held-out real images.

    Args:
      held_out: real images that are not among the real images of `judge`.
      reject: the fraction, a mean over the classes, in [0, 1).
    """
    return Thresholds(
        balanced_quantile(held_out.confidence, held_out.labels, reject),
        -balanced_quantile(-held_out.distance, held_out.labels, reject),
    )


def balanced_quantile(values: np.ndarray, labels: np.ndarray, fraction: float) -> float:
    """Return the largest value that has at most `fraction` of all values below it.

    Each class has the same total weight, shared by its values.

    Args:
      values: [n] float.
      labels: [n] int.
      fraction: in [0, 1).
    """
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = 1.0 / (len(counts) * counts[index])
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order]) - weights[order]
    return float(values[order][below <= fraction + 1e-9][-1])


def passes(judged: Judged, limits: Thresholds) -> np.ndarray:
    """Return which images pass: bool [n]."""
    return (judged.confidence >= limits.confidence) & (judged.distance <= limits.distance)
