"""Train a classifier of clean images on examples that are drawn and weighted unequally.

    L = mean of w_i CE(logits(x_i) + a, y_i) over a batch; image i is drawn with probability p_i

Every training of one `Recogniser` has the same network, steps, batch size and optimiser. The
initial weights and the batches are functions of the seed, so trainings with one seed are paired.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.config import OptimConfig
from ddpm_jax.models.image_classifier import image_classifier
from ddpm_jax.pixels import to_x_0
from ddpm_jax.runtime import compiler, rows
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.types import Array, Params

CHUNK = 512  # images that are classified at once
AHEAD = 8  # steps that the host runs ahead of the device


class Examples(NamedTuple):
    """The training images of a classifier.

    Attributes:
      images: [N, H, W, C] uint8.
      labels: [N] int.
      probability: [N] float, how often each image is drawn; their sum is 1.
      weight: [N] float, the weight of each image in the loss.
      adjustment: [K] float, a, added to the logits in the loss; not in `Recogniser.predict`.
      max_shift: images are shifted at random by at most this many pixels.
      flip: images are mirrored left to right at random, half of the time.
    """

    images: np.ndarray
    labels: np.ndarray
    probability: np.ndarray
    weight: np.ndarray
    adjustment: np.ndarray
    max_shift: int = 0
    flip: bool = False


class Recogniser(NamedTuple):
    """A classifier of clean images.

    Attributes:
      train: (examples, seed) -> the weights, as a list of arrays on the host.
      predict: (weights, images uint8 [n, H, W, C]) -> logits [n, K] and features [n, D], on the
        host.
    """

    train: Callable[[Examples, int], list[np.ndarray]]
    predict: Callable[[list[np.ndarray], np.ndarray], tuple[np.ndarray, np.ndarray]]


def make_recogniser(
    num_classes: int,
    image_shape: tuple[int, int, int],
    *,
    channels: int,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
) -> Recogniser:
    """Build a classifier. All its trainings share one compiled step.

    Args:
      num_classes: number of classes, K.
      image_shape: (H, W, C) of the images.
      channels: channels of the first convolution.
      num_steps: number of training steps; the learning rate falls to 0 as a cosine.
      batch_size: images in a step.
      learning_rate: learning rate of the first step.
    """
    network = image_classifier(num_classes, image_shape, channels)
    optim = OptimConfig(
        learning_rate=learning_rate, warmup_steps=0, decay="cosine", clip_norm=0.0
    )  # weighted losses have other norms, so clipping would treat the arms differently
    optimizer = make_optimizer(optim, num_steps)
    tree = jax.tree.structure(jax.eval_shape(network.init, jax.random.key(0)))
    init = jax.jit(network.init, compiler_options=compiler.options(compiler.ONCE))

    def loss(params: Params, batch: dict[str, Array], adjustment: Array) -> Array:
        logits, _ = network.apply(params, to_x_0(batch["image"]), True)
        adjusted = logits + adjustment[None]
        errors = optax.softmax_cross_entropy_with_integer_labels(adjusted, batch["label"])
        return (batch["weight"] * errors).mean()

    def update(
        params: Params, state: Any, batch: dict[str, Array], adjustment: Array
    ) -> tuple[Params, Any]:
        gradient = jax.grad(loss)(params, batch, adjustment)
        moves, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, moves), state

    options = compiler.options(compiler.NETWORK)
    step = jax.jit(update, donate_argnums=(0, 1), compiler_options=options)
    spread = rows.over_local_devices(lambda params, x: network.apply(params, to_x_0(x), False))

    def train(examples: Examples, seed: int) -> list[np.ndarray]:
        params = init(jax.random.key(seed))
        state = optimizer.init(params)
        adjustment = jnp.asarray(examples.adjustment, jnp.float32)
        for i in range(num_steps):
            params, state = step(params, state, draw(examples, batch_size, seed, i), adjustment)
            if i % AHEAD == 0:
                jax.block_until_ready(params)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]

    def predict(weights: list[np.ndarray], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        params, found = jax.tree.unflatten(tree, weights), []
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            both = jax.device_get(spread(params, rows.pad(chunk, CHUNK)))
            found.append([part[: len(chunk)] for part in both])
        logits, features = (np.concatenate(part) for part in zip(*found, strict=True))
        return logits, features

    return Recogniser(train, predict)


def draw(examples: Examples, batch_size: int, seed: int, step: int) -> dict[str, np.ndarray]:
    """Return the batch of a step, a function of (seed, step), with its random shifts and mirrors.

    Args:
      examples: the images.
      batch_size: images in the batch; an image can be drawn twice.
      seed: seed of the training.
      step: number of the step.
    """
    random = np.random.default_rng((seed, step))
    chosen = random.choice(len(examples.labels), batch_size, p=examples.probability)
    images = examples.images[chosen]
    if examples.max_shift:
        most = examples.max_shift
        shifts = random.integers(-most, most + 1, (2, batch_size))
        images = shifted(images, *shifts)
    if examples.flip:
        mirrored = random.random(batch_size) < 0.5
        images[mirrored] = images[mirrored, :, ::-1]
    return {
        "image": images,
        "label": examples.labels[chosen].astype(np.int32),
        "weight": examples.weight[chosen].astype(np.float32),
    }


def shifted(images: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return each image shifted by whole pixels; the pixels of its edge fill what comes in.

    Args:
      images: [B, H, W, C].
      down: [B] int, pixels by which an image moves down.
      right: [B] int, pixels by which an image moves to the right.
    """
    height, width = images.shape[1:3]
    row = np.clip(np.arange(height) - down[:, None], 0, height - 1)
    column = np.clip(np.arange(width) - right[:, None], 0, width - 1)
    each = np.arange(len(images))
    return images[each[:, None, None], row[:, :, None], column[:, None, :]]
