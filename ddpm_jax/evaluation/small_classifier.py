"""A small classifier of the data set. Its hidden layer gives features without a download.

  f = max(0, W₁ᵀ x + b₁) [64],   logits = W₂ᵀ f + b₂,   x: the pixels in [-1, 1]

scikit-learn trains it (cross-entropy, Adam, an L2 penalty); JAX runs it. Images larger than 32
pixels are made smaller first. The classifier ignores what does not help to separate the classes.
Its distances therefore rank models of one data set. They cannot be compared with FID or across data
sets.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.models import digest
from ddpm_jax.pixels import to_x_0
from ddpm_jax.types import Array

VERSION = 1  # part of the key of the cache; raise it if the code below changes
HIDDEN = 64
SIDE = 32  # pixels; larger images are made smaller
MAX_IMAGES = 10_000  # training images at most
MAX_EPOCHS = 300
BUDGET = 6e10  # images x inputs x hidden x epochs, at most: half a minute on two cores


def pixels(images: Array) -> Array:
    """Return the inputs of the classifier for images uint8 [B, H, W, C]: [B, D] float32."""
    return inputs(to_x_0(images))


def inputs(x: Array) -> Array:
    """Return the inputs of the classifier, [B, D].

    Args:
      x: [B, H, W, C] float, images in [-1, 1].
    """
    batch, height, width, channels = x.shape
    if max(height, width) > SIDE:
        shape = (batch, min(height, SIDE), min(width, SIDE), channels)
        x = jax.image.resize(x, shape, "linear", antialias=True)
    return x.reshape(batch, -1)


def train(
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Train the classifier; the same images and seed give the same weights on one machine.

    Args:
      images: [n, H, W, C] uint8.
      labels: [n] int, the classes of `images`.
      test_images: [m, H, W, C] uint8, held out.
      test_labels: [m] int, the classes of `test_images`.
      seed: seed of the initial weights and of the order of the images.

    Returns:
      Arrays `weights_1, bias_1, weights_2, bias_2` float32, and `accuracy` on `test_images`.

    Raises:
      UserError: fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    if len(np.unique(labels)) < 2:
        raise UserError(
            "a classifier needs images of at least two classes, and the data have one; pass "
            "--features=inception"
        )
    x, x_test = np.asarray(jax.jit(pixels)(images)), np.asarray(jax.jit(pixels)(test_images))
    epochs = int(np.clip(BUDGET / (x.size * HIDDEN), 10, MAX_EPOCHS))
    classifier = MLPClassifier((HIDDEN,), alpha=1e-2, max_iter=epochs, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the accuracy shows the quality
        classifier.fit(x, labels)
    (weights_1, weights_2), (bias_1, bias_2) = classifier.coefs_, classifier.intercepts_
    if weights_2.shape[1] == 1:  # for two classes scikit-learn has only the logits' difference
        weights_2, bias_2 = (np.concatenate([0 * a, a], axis=-1) for a in (weights_2, bias_2))
    arrays = dict(weights_1=weights_1, bias_1=bias_1, weights_2=weights_2, bias_2=bias_2)
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    return arrays | {"accuracy": np.array(classifier.score(x_test, test_labels))}


def as_network(arrays: dict[str, np.ndarray]) -> FeatureNetwork:
    """Return the trained classifier as a feature network with a head.

    Args:
      arrays: the result of `train`.
    """
    params = {name: arrays[name] for name in ("weights_1", "bias_1")}
    head = arrays["weights_2"], arrays["bias_2"]
    return FeatureNetwork("classifier", digest((params, head)), _apply, params, head)


def _apply(params: Any, images: Array) -> Array:
    return hidden(params, to_x_0(images))


def hidden(params: Any, x: Array) -> Array:
    """Return the hidden layer f [B, 64] of images x in [-1, 1], float [B, H, W, C]."""
    found = jnp.matmul(inputs(x), params["weights_1"], precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(found + params["bias_1"][None], 0.0)
