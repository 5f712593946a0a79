"""A classifier of clean images: 3x3 convolutions with stride 2, a mean over the pixels, a head."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.convolution import convolution
from ddpm_jax.types import Array, Params, PRNGKey

LEVELS = 3  # convolutions; each halves height and width and doubles the channels
GROUPS = 8  # of a GroupNorm, at most


class ImageClassifier(NamedTuple):
    """The network as two pure functions.

    Attributes:
      init: key -> params, a tree of float32 arrays.
      apply: (params, x [B, H, W, C] in [-1, 1], train) -> logits [B, K] and features [B, D].
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[[Params, Array, bool], tuple[Array, Array]]


def image_classifier(
    num_classes: int, image_shape: tuple[int, int, int], channels: int
) -> ImageClassifier:
    """Return the network.

    Args:
      num_classes: number of logits, K.
      image_shape: (H, W, C) of an image.
      channels: channels of the first convolution.
    """
    network = _Network(num_classes, channels)

    def init(key: PRNGKey) -> Params:
        return network.lazy_init(key, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))[
            "params"
        ]

    def apply(params: Params, x: Array, train: bool = False) -> tuple[Array, Array]:
        found: Any = network.apply({"params": params}, x, train)
        return found

    return ImageClassifier(init, apply)


class _Network(nn.Module):
    num_classes: int
    channels: int

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        h = x
        for level in range(LEVELS):
            width = self.channels * 2**level
            h = nn.Conv(
                width,
                kernel_size=(3, 3),
                strides=2,
                conv_general_dilated_cls=convolution(train),
                name=f"conv_{level}",
            )(h)
            groups = max(g for g in range(1, GROUPS + 1) if width % g == 0)
            h = nn.relu(nn.GroupNorm(groups, name=f"norm_{level}")(h))
        features = h.mean(axis=(1, 2))  #                                        [B, 4 channels]
        return nn.Dense(self.num_classes, name="logits")(features), features
