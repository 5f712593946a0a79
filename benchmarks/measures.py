"""Measures that no library has: spread, RMS, retrieval, growth of cost."""

import numpy as np


def spread(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean distance between two different rows of a class.

    Args:
      features: [N, D] float.
      labels: [N] int; at least two rows of each class.

    Returns:
      [classes] float, one for each class that occurs.
    """
    result = []
    for label in np.unique(labels):
        rows = features[labels == label]
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
        result.append(distances.sum() / (len(rows) * (len(rows) - 1)))
    return np.array(result)


def rms(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the root mean square of a - b: [N, H, W, C], and its standard error over images."""
    squares = np.square(a - b).mean(axis=(1, 2, 3))
    root = np.sqrt(squares.mean())
    error = squares.std(ddof=1) / np.sqrt(len(squares)) / (2 * root) if root else 0.0
    return float(root), float(error)


def own_ranks(samples: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Return how many other pictures are at most as far from each sample as its own: [N] int.

    Args:
      samples: [N, ...] float; sample i belongs to picture i.
      pictures: [N, ...] float.
    """
    n = len(samples)
    x, y = (np.asarray(a, np.float64).reshape(n, -1) for a in (samples, pictures))
    distances = np.square(x[:, None] - y[None]).sum(axis=-1)
    return (distances <= np.diag(distances)[:, None]).sum(axis=1) - 1  # itself is always one


def exponent(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return a of y ~ x^a, fitted by least squares in the logarithms, and its standard error.

    Args:
      x: [N] positive; three points at least.
      y: [N] positive.
    """
    (a, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    return float(a), float(np.sqrt(covariance[0, 0]))


def explained(values: np.ndarray, label: np.ndarray) -> float:
    """Return R² = 1 - Σ within-label variance / Σ variance, summed over the pixels.

    Args:
      values: [n, ...] float or bool.
      label: [n] int.
    """
    rows = values.reshape(len(values), -1).astype(np.float64)
    parts = (rows[label == value] for value in np.unique(label))
    within = sum(np.square(part - part.mean(axis=0)).sum() for part in parts)
    return 1 - within / np.square(rows - rows.mean(axis=0)).sum()
