"""The reference for samples: the features and moments of a data set, computed once and cached.

The files are in `<data_dir>/quality`. The key of a file contains the data set, its split,
resolution and preprocessing, a hash of 64 of the images, and the weights of the feature network.
"""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddpm_jax import data
from ddpm_jax.config import DataConfig
from ddpm_jax.data.datasets import facts_of_split, some
from ddpm_jax.data.prepared import data_directory
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.evaluation import small_classifier
from ddpm_jax.evaluation.features import FeatureNetwork, make_features
from ddpm_jax.evaluation.moments import Moments, streamed
from ddpm_jax.runtime.files import load_or_make

CHUNK = 512  # images read at once
MAX_FEATURES = 10_000  # images with cached features, for distances that need more than moments


class Reference(NamedTuple):
    """A split of a data set in the features of a network.

    Attributes:
      split: "train" or "test"; part of the names of metrics.
      moments: the moments of all images of the split.
      features: [m, D] float32, the features of all images, or of a random `MAX_FEATURES` of them.
    """

    split: str
    moments: Moments
    features: np.ndarray


def source_of(dataset: data.Dataset, split: str) -> data.Source:
    """Return the images of the split "train" or "test".

    Raises:
      UserError: another split, or "test" without held-out images.
    """
    if split not in ("train", "test"):
        raise unknown("split", split, ["train", "test"])
    source = dataset.train if split == "train" else dataset.test
    if source is None:
        raise UserError("split 'test' is asked for, but the data have no held-out images")
    return source


def chunks(source: data.Source) -> Iterator[np.ndarray]:
    """Yield all images in order, in arrays [<= CHUNK, H, W, C] uint8."""
    for start in range(0, len(source), CHUNK):
        yield source.read(np.arange(start, min(start + CHUNK, len(source))))[0]


def classifier(config: DataConfig, dataset: data.Dataset) -> tuple[FeatureNetwork, float]:
    """Return the small classifier of a labelled data set, and its accuracy on held-out images.

    The first call trains the classifier on up to 10,000 training images (seconds, a minute at
    most) and caches it. If the data have no held-out images, every tenth of these is held out.

    Args:
      config: the config of the data.
      dataset: the data.

    Raises:
      UserError: the data have no labels of at least two classes.
    """
    if dataset.num_classes < 2:
        raise UserError(
            f"the features of a classifier need labels of at least two classes, but {config.name} "
            f"has {dataset.num_classes or 'none'}; pass --features=inception"
        )
    facts = {
        "version": small_classifier.VERSION,
        "train": facts_of_split(config, dataset.train, "train"),
        "test": dataset.test and facts_of_split(config, dataset.test, "test"),
    }

    def make() -> dict[str, np.ndarray]:
        most = small_classifier.MAX_IMAGES
        indices = some(len(dataset.train), most)
        if dataset.test is not None:
            held_out = dataset.test.read(some(len(dataset.test), most))
        else:
            held_out = dataset.train.read(indices[::10])
            indices = np.delete(indices, np.s_[::10])
        return small_classifier.train(*dataset.train.read(indices), *held_out)

    arrays = load_or_make(_directory(config), f"classifier-{config.name}", facts, make)
    return small_classifier.as_network(arrays), float(arrays["accuracy"])


def reference(
    config: DataConfig, dataset: data.Dataset, split: str, network: FeatureNetwork
) -> Reference:
    """Return the features and moments of a split, without flips; the first call computes them.

    Args:
      config: the config of the data.
      dataset: the data.
      split: "train" or "test".
      network: the feature network.

    Raises:
      UserError: no such split.
    """
    source = source_of(dataset, split)
    facts = {
        "data": facts_of_split(config, source, split),
        "network": [network.name, network.digest],
    }

    def make() -> dict[str, np.ndarray]:
        features = make_features(network)
        kept, wanted, start = [], some(len(source), MAX_FEATURES), 0

        def stream() -> Iterator[np.ndarray]:
            nonlocal start
            for images in chunks(source):
                found = features(images)
                kept.append(
                    found[wanted[(wanted >= start) & (wanted < start + len(found))] - start]
                )
                start += len(found)
                yield found

        moments = streamed(stream())
        n = np.array(moments.n)
        return dict(n=n, mean=moments.mean, m2=moments.m2, features=np.concatenate(kept))

    name = f"{network.name}-{config.name}-{split}"
    arrays = load_or_make(_directory(config), name, facts, make)
    moments = Moments(int(arrays["n"]), arrays["mean"], arrays["m2"])
    return Reference(split, moments, arrays["features"])


def _directory(config: DataConfig) -> pathlib.Path:
    return pathlib.Path(data_directory(config.data_dir)) / "quality"
