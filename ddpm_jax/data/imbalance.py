"""A long-tailed training split: of class c in 0..C-1, in the order of the labels, it keeps

    n_c = ⌊n_max r^(-c / (C-1))⌋ images,   r = data.imbalance   (Cui et al. 2019, "exponential")

n_max is the number of images of the smallest class, or data.max_per_class if that is smaller. The
seed is fixed, so every run sees the same images. A larger r, or a smaller n_max, keeps a subset.
Only the training split changes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ddpm_jax.config import DataConfig
from ddpm_jax.data.sources import ArraySource, Records
from ddpm_jax.errors import UserError

SEED = 0
CHUNK = 1024  # records read at once
DEFAULTS = (DataConfig.imbalance, DataConfig.max_per_class)


class Subset:
    """The records at some positions of others.

    Args:
      records: the others.
      positions: [n] int.
    """

    def __init__(self, records: Records, positions: np.ndarray):
        self._records, self._positions = records, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitems__(self, positions: list[int]) -> Sequence[Any]:
        """Return the records at these positions of the subset."""
        return self._records.__getitems__(self._positions[positions].tolist())


def of_records(records: Records, names: Sequence[str], config: DataConfig) -> Records:
    """Return the long-tailed part of a split; without data.imbalance, the split itself.

    Args:
      records: the records of the split, with the feature "label".
      names: the names of the classes; () if the set has no labels.
      config: the section `data` of the config.

    Raises:
      UserError: the set has no labels, or a class would keep no image.
    """
    if not is_on(config):
        return records
    labels = np.fromiter(_labels(records), np.int32) if names else np.zeros(0, np.int32)
    return Subset(records, choose(labels, names, config))


def of_arrays(source: ArraySource, names: Sequence[str], config: DataConfig) -> ArraySource:
    """Return the long-tailed part of arrays; arguments and errors as in `of_records`."""
    if not is_on(config):
        return source
    kept = choose(source.labels, names, config)
    return ArraySource(source.images[kept], source.labels[kept])


def is_on(config: DataConfig) -> bool:
    """Return whether the training split has fewer images than the data set."""
    return (config.imbalance, config.max_per_class) != DEFAULTS


def describe(config: DataConfig) -> str:
    """Return the end of a data set's digest; "" if the split is whole."""
    if not is_on(config):
        return ""
    return f", imbalance {config.imbalance:g}, at most {config.max_per_class or 'all'} per class"


def facts(config: DataConfig) -> dict[str, Any]:
    """Return what the images depend on, for the key of a cache; {} if the split is whole."""
    if not is_on(config):
        return {}
    return {"imbalance": config.imbalance, "max_per_class": config.max_per_class}


def choose(labels: np.ndarray, names: Sequence[str], config: DataConfig) -> np.ndarray:
    """Return the positions of the images to keep, ascending.

    Args:
      labels: [N] int, the class of each image.
      names: the names of the classes.
      config: the section `data` of the config.

    Raises:
      UserError: there are no classes, or a class would keep no image.
    """
    if not names:
        raise UserError(
            f"data.imbalance is {config.imbalance:g} and data.max_per_class {config.max_per_class},"
            f" but {config.name} has no labels; leave them at 1 and 0"
        )
    wanted = counts(np.bincount(labels, minlength=len(names)), names, config)
    kept = []
    for label, n in enumerate(wanted):
        order = np.random.default_rng((SEED, label)).permutation(np.flatnonzero(labels == label))
        kept.append(order[:n])
    return np.sort(np.concatenate(kept))


def counts(available: np.ndarray, names: Sequence[str], config: DataConfig) -> np.ndarray:
    """Return how many images each class keeps: [C] int, not increasing.

    Args:
      available: [C] int, how many images each class has.
      names: [C], the names of the classes.
      config: the section `data` of the config.

    Raises:
      UserError: a class would keep no image; the message names it.
    """
    n_max = int(available.min())
    if n_max == 0:
        empty = names[int(available.argmin())]
        raise UserError(
            f"data.imbalance needs images of every class, but class {empty!r} of {config.name} has "
            "none in the training split; add some, or choose another split"
        )
    n_max = min(n_max, config.max_per_class or n_max)
    exponents = np.arange(len(names)) / max(len(names) - 1, 1)
    exact = n_max * config.imbalance**-exponents
    kept = np.floor(exact + 1e-9).astype(np.int64)  # 6000 / 100 is 60, also in floating point
    if not kept.all():
        c = int(kept.argmin())
        raise UserError(
            f"data.imbalance={config.imbalance:g} leaves no image of class {names[c]!r}: "
            f"{n_max} * {config.imbalance:g}^-{exponents[c]:.2g} = {exact[c]:.2g}; set "
            f"data.imbalance to at most {n_max}, the number of images of the first class "
            "(data.max_per_class limits it)"
        )
    return kept


def _labels(records: Records) -> Iterator[int]:
    """Yield the label of each record."""
    for start in range(0, len(records), CHUNK):
        positions = range(start, min(start + CHUNK, len(records)))
        yield from (int(record["label"]) for record in records.__getitems__(list(positions)))
