"""Quality of pictures of Fashion-MNIST: the same features and distances for every library.

    python -m benchmarks.fashion_quality SAMPLES.npz ...      each file is one seed of sampling
    python -m benchmarks.fashion_quality                      the floor: train against test split

A file has an array `images`, uint8 [n, 28, 28, 1] or [n, 32, 32, 1] (a border of 2 pixels is cut
off). All files together are one row: mean and standard error over the files. The features are the
64 hidden units of a small convolutional network, trained here to tell the ten classes apart. The
first call trains it in a few minutes and keeps it in the data directory. It has no random choice
but its seed, so the numbers of two libraries can be compared on one machine.
"""

import functools
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from ddpm_jax import data
from ddpm_jax.config import DataConfig
from ddpm_jax.data.prepared import data_directory
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import references, table
from ddpm_jax.evaluation.features import FeatureNetwork, make_features
from ddpm_jax.models import digest
from ddpm_jax.models.convolution import convolution
from ddpm_jax.pixels import to_x_0
from ddpm_jax.runtime.files import load_or_make
from ddpm_jax.types import Array

EPOCHS = 12
BATCH = 128
DATA = DataConfig(name="fashion_mnist", flip=False)


class Features(nn.Module):
    """Three convolutions and a hidden layer of 64: [B, 28, 28, 1] in [-1, 1] -> [B, 64]."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        how: dict[str, Any] = dict(conv_general_dilated_cls=convolution(train))
        x = nn.relu(nn.Conv(24, (3, 3), **how)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(48, (3, 3), **how)(x))
        x = nn.relu(nn.Conv(48, (3, 3), **how)(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.relu(nn.Dense(64)(x))


class Classifier(nn.Module):
    """The features and their logits."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        return nn.Dense(10, name="head")(Features(name="features")(x, train))


def train_classifier(train: data.Source, test: data.Source) -> dict[str, np.ndarray]:
    """Train the classifier; return its parameters, flat by name, and its `accuracy` on `test`."""
    model, rng = Classifier(), np.random.default_rng(0)
    params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    steps = len(train) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, EPOCHS * steps))
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, images: Array, labels: Array, key: Array) -> tuple[Any, Any]:
        def loss(params: Any) -> Array:
            logits = model.apply(params, to_x_0(images), True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        moves, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, moves), state

    key = jax.random.key(1)
    for epoch in track(range(EPOCHS), "training the classifier of the features"):
        order = rng.permutation(len(train))[: steps * BATCH].reshape(steps, BATCH)
        for i, indices in enumerate(order):
            images, labels = train.read(indices)
            mirrored = rng.random(BATCH) < 0.5
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
            each = jax.random.fold_in(key, epoch * steps + i)
            params, state = step(params, state, images, labels, each)
    images, labels = test.read(np.arange(len(test)))
    predict = jax.jit(lambda params, x: model.apply(params, to_x_0(x)).argmax(-1))
    found = np.concatenate([predict(params, x) for x in np.array_split(images, 20)])
    flat = {"/".join(path): a for path, a in _flatten(params["params"])}
    return flat | {"accuracy": np.array(np.mean(found == labels))}


def _flatten(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], np.ndarray]]:
    if not isinstance(tree, dict):
        return [(path, np.asarray(tree))]
    return [row for name, value in tree.items() for row in _flatten(value, (*path, name))]


def feature_network(config: DataConfig = DATA) -> tuple[FeatureNetwork, float]:
    """Return the feature network and its accuracy; the first call trains it."""
    dataset = data.open_dataset(config)
    directory = pathlib.Path(data_directory(config.data_dir)) / "quality"
    facts = {"benchmark": "fashion_quality", "epochs": EPOCHS, "batch": BATCH, "version": 1}

    def make() -> dict[str, np.ndarray]:
        return train_classifier(dataset.train, dataset.test)

    arrays = load_or_make(directory, "fashion-features", facts, make)
    params: dict[str, Any] = {}
    for name, value in arrays.items():
        *path, last = name.split("/")
        if path and path[0] == "features":
            functools.reduce(lambda tree, key: tree.setdefault(key, {}), path[1:], params)[last] = (
                value
            )
    head = arrays["head/kernel"], arrays["head/bias"]

    def apply(params: Any, images: Array) -> Array:
        return Features().apply({"params": params}, to_x_0(images))

    network = FeatureNetwork("fashion", digest((params, head)), apply, params, head)
    return network, float(arrays["accuracy"])


def judge(seeds: list[np.ndarray], split: str, config: DataConfig = DATA) -> list[table.Row]:
    """Measure samples against a split.

    Args:
      seeds: for each seed of sampling, images [n, 28, 28, 1] uint8; n is the same for all.
      split: "train" or "test".
      config: the data; only `data_dir` may differ from `DATA`.

    Returns:
      The rows of `experiments.evaluate`: Fréchet and kernel distance, precision, recall and so on.
    """
    network, _ = feature_network(config)
    dataset = data.open_dataset(config)
    reference = references.reference(config, dataset, split, network)
    features = make_features(network)
    measured = [
        table.compare(
            features(images),
            reference.moments,
            reference.features,
            network=network.name,
            split=split,
            head=network.head,
            seed=seed,
        )
        for seed, images in enumerate(seeds)
    ]
    return table.over_seeds(measured, len(seeds[0]))


def read_images(path: str) -> np.ndarray:
    """Read the images of an .npz file: uint8 [n, 28, 28, 1], without the border of 32x32."""
    with np.load(path) as file:
        images = file["images"]
    if images.dtype != np.uint8 or images.shape[1:] not in ((28, 28, 1), (32, 32, 1)):
        raise UserError(
            f"{path}: images must be uint8 [n, 28, 28, 1] or [n, 32, 32, 1], found "
            f"{images.dtype} {list(images.shape)}"
        )
    return without_border(images)


def without_border(images: np.ndarray) -> np.ndarray:
    """Return the inner 28x28 pixels of images [n, H, W, 1]; H = W is 28 or 32."""
    border = (images.shape[1] - 28) // 2
    return images[:, border : border + 28, border : border + 28]


def main(paths: list[str]) -> None:
    network, accuracy = feature_network()
    print(f"features: classifier of {accuracy:.2%} of the test split, digest {network.digest}")
    if paths:
        seeds = [read_images(path) for path in paths]
    else:
        test = data.open_dataset(DATA).test
        seeds = [test.read(np.arange(len(test)))[0]]
    for split in ("train", "test") if paths else ("train",):
        for row in judge(seeds, split):
            value = "--" if row.value is None else f"{row.value:.4g}"
            error = "" if row.error is None else f" ± {row.error:.2g}"
            print(f"{row.name:32} {value}{error}")


if __name__ == "__main__":
    main(sys.argv[1:])
