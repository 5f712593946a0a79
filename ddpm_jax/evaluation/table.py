"""Metrics of samples against a data set, as rows of a table: name, value, error, n.

The name of a metric says what was compared with what:
  fid50k_train  Fréchet distance of 50,000 samples to the training images, in Inception's features
  fd1k_test     Fréchet distance of 1,000 samples to the held-out images, in other features
In the same way, the kernel distance is `kid` or `kd`, and the Inception score is `is` or `cs`.
If too few images would make a number meaningless, its row has no value and a note says why.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluation import distances, manifolds
from ddpm_jax.evaluation.distances import Estimate, standard_error
from ddpm_jax.evaluation.moments import Moments, frechet_distance, moments

SPLITS = 10  # splits of the Inception score
PER_SPLIT = 100  # images in a split, at least
MIN_KERNEL = 100  # images, at least, for the kernel distance and the manifolds
MAX_SUBSET = 1000  # images in a subset of the kernel distance, at most


REMARKS = {  # name of a metric without n and split -> what the metric is, and its best value
    "fid": "FID, Fréchet distance in Inception's features; 0 is best",
    "kid": "KID, kernel distance in Inception's features; 0 is best",
    "is": "Inception score; 1 is worst",
    "fd": "Fréchet distance, as FID but in other features; 0 is best",
    "kd": "kernel distance, as KID but in other features; 0 is best",
    "cs": "classifier score, as the Inception score; 1 is worst",
    "precision": "fraction of samples near the images; 1 is best",
    "recall": "fraction of images near the samples; 1 is best",
    "density": "samples crowded near images; 1 is as dense as the data, 0 is worst",
    "coverage": "fraction of images with a sample nearby; 1 is best",
    "memorised": "fraction of samples nearer to a training image than 99% of held-out images; "
    "0.01 is best, 1 is copies",
    "nearest_ratio": "median distance to the nearest training image, over that of held-out images; "
    "1 is best, 0 is copies",
}


class Row(NamedTuple):
    """One line of a table.

    Attributes:
      name: name of the metric, which contains n and the split.
      value: mean over the seeds, or None if there is no value.
      error: standard error of the value, or None if it is not known.
      n: number of images for each seed.
      note: a remark; without a value, the reason.
    """

    name: str
    value: float | None
    error: float | None
    n: int
    note: str = ""


def short(n: int) -> str:
    """Return n as it is written in the name of a metric: 50000 is "50k", 1634 is "1634"."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def frechet_name(network: str, n: int, split: str) -> str:
    """Return the name of the Fréchet distance of n samples to a split, in a network's features."""
    return f"{_names(network)[0]}{short(n)}_{split}"


def _names(network: str) -> tuple[str, str, str]:
    """Return the short names of the Fréchet distance, the kernel distance and the score."""
    return ("fid", "kid", "is") if network == "inception" else ("fd", "kd", "cs")


def compare(
    features: np.ndarray,
    reference: Moments,
    reference_features: np.ndarray,
    *,
    network: str,
    split: str,
    head: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, Estimate | str]:
    """Measure the samples of one seed by their features.

    Args:
      features: [n, D] float, the features of the samples, in the order of the draw.
      reference: the moments of the features of the split.
      reference_features: [m, D] float, the features of all images of the split or of some random
        ones.
      network: the name of the feature network.
      split: "train" or "test".
      head: (weights [D, K], bias [K]) from features to logits; None gives no Inception score.
      seed: seed of the subsets of the reference. Use another one for each seed of samples, so that
        the error over the seeds includes the choice of subsets.

    Returns:
      name -> the estimate, or a phrase that says what is missing.
    """
    (n, dim), m = features.shape, len(reference_features)
    found: dict[str, Estimate | str] = {}
    name, (_, kernel, score) = frechet_name(network, n, split), _names(network)
    if min(n, reference.n) > dim:
        found[name] = Estimate(frechet_distance(moments(features), reference), np.nan)
    else:
        found[name] = f"needs at least {dim + 1} images in each set for {dim} features"
    name, smaller = f"{kernel}{short(n)}_{split}", min(n, m)
    if smaller >= MIN_KERNEL:
        size = min(MAX_SUBSET, smaller // 2)  # small subsets make a noisy mean
        found[name] = distances.kernel_distance(
            features, reference_features, subset_size=size, seed=seed
        )
    else:
        found[name] = f"needs at least {MIN_KERNEL} images in each set"
    if head is not None:
        name = f"{score}{short(n)}"
        if n >= SPLITS * PER_SPLIT:
            logits = features @ head[0] + head[1]
            found[name] = distances.inception_score(logits, num_splits=SPLITS)
        else:
            found[name] = f"needs at least {SPLITS * PER_SPLIT} images"
    # Radii depend on the number of images, so both sets have the same size, as in the paper.
    names = [f"{field}{short(n)}_{split}" for field in manifolds.Manifolds._fields]
    if smaller >= MIN_KERNEL:
        order = np.random.default_rng(seed).permutation(m)[:smaller]
        values = manifolds.compare(reference_features[order], features[:smaller])
        found |= {k: Estimate(v, np.nan) for k, v in zip(names, values, strict=True)}
    else:
        found |= dict.fromkeys(names, f"needs at least {MIN_KERNEL} images in each set")
    return found


def explained(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, with an explanation of the metric at the end of each note."""
    found = []
    for row in rows:
        metric = re.match(r"[a-z_]*", row.name)
        remark = REMARKS.get(metric[0] if metric else "", "")
        note = "; ".join(part for part in (row.note, remark) if part)
        found.append(row._replace(note=note))
    return found


def over_seeds(measured: Sequence[Mapping[str, Estimate | str]], n: int) -> list[Row]:
    """Return the rows of several seeds: means, with the standard error over the seeds.

    With one seed, the error is the error of the estimate, if the estimate has one. A Fréchet
    distance has an extra row with the minimum over the seeds, because papers report the minimum.

    Args:
      measured: for each seed, the result of `compare`: name -> estimate, or what is missing.
      n: number of images for each seed.
    """
    rows = []
    for name, first in measured[0].items():
        if isinstance(first, str):
            rows.append(Row(name, None, None, n, first))
            continue
        estimates = [seed[name] for seed in measured]
        values = np.array([e.value for e in estimates if not isinstance(e, str)])
        error = standard_error(values) if len(values) > 1 else first.error
        error = None if math.isnan(error) else error
        rows.append(Row(name, float(values.mean()), error, n))
        if name.startswith(("fd", "fid")) and len(values) > 1:
            note = f"the least of {len(values)} seeds"
            rows.append(Row(f"{name}_min", float(values.min()), None, n, note))
    return rows
