"""Parts of the U-Net: time embedding, Fourier features, patches, halving and the residual block."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.models.attention import fan_avg, zeros
from ddpm_jax.models.convolution import convolution
from ddpm_jax.types import Array


def time_embedding(t: Array, dim: int, freq_shift: int = 1, scale: float = 1.0) -> Array:
    """Embed times as sines and cosines of `dim / 2` frequencies (Vaswani et al. 2017, section 3.5).

        [sin(t ω_0), .., sin(t ω_n), cos(t ω_0), .., cos(t ω_n)],   ω_i = 10000^(-i / n),
        n = dim/2 - freq_shift

    Args:
      t: [B] int or float, any range.
      dim: number of channels, even.
      freq_shift: 1 as in Ho's code, so that the last frequency is 1e-4; 0 as in Vaswani et al.
      scale: a factor of t.

    Returns:
      [B, dim] float32.
    """
    half = dim // 2
    frequencies = jnp.exp(
        -math.log(10_000) / max(half - freq_shift, 1) * jnp.arange(half, dtype=jnp.float32)
    )
    angles = scale * t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def with_fourier_features(x: Array, exponents: tuple[int, ...]) -> Array:
    """Append the channels sin(2^n π x) and cos(2^n π x) to x (Kingma et al. 2021, appendix C).

    They amplify small differences between pixel values, which matter for the likelihood.

    Args:
      x: [B, H, W, C] float.
      exponents: the values of n; () returns x.

    Returns:
      [B, H, W, C (1 + 2 len(exponents))].
    """
    angles = [2.0**n * math.pi * x for n in exponents]
    waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate([x, *waves], axis=-1) if waves else x


def to_patches(x: Array, size: int) -> Array:
    """Move the pixels of each patch into the channels (space to depth).

    A network on patches costs about 1/size² as much as one on pixels (Hoogeboom et al. 2023).

    Args:
      x: [B, H, W, C]; H and W divisible by `size`.
      size: p, the side of a patch in pixels; 1 returns x.

    Returns:
      [B, H/p, W/p, p p C]; the channels are ordered by row, column, channel of the patch.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height // size, width // size, -1)


def from_patches(x: Array, size: int) -> Array:
    """Move the channels back into the pixels of each patch, the inverse of `to_patches`.

    Args:
      x: [B, h, w, p p C].
      size: p.

    Returns:
      [B, p h, p w, C].
    """
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, size, size, -1)
    return x.swapaxes(2, 3).reshape(batch, height * size, width * size, -1)


def halved(x: Array) -> Array:
    """Return the means of x [..., 2H, 2W, C] over squares of 2x2 pixels: [..., H, W, C]."""
    *leading, height, width, channels = x.shape
    return x.reshape(*leading, height // 2, 2, width // 2, 2, channels).mean(axis=(-4, -2))


def doubled(x: Array) -> Array:
    """Repeat each pixel of x [..., H, W, C] twice in both directions: [..., 2H, 2W, C]."""
    return x.repeat(2, axis=-3).repeat(2, axis=-2)


# model.resample -> padding of the convolution of stride 2. "residual" has no such convolution
PADDINGS = {"conv": "SAME", "conv_symmetric": ((1, 1), (1, 1)), "residual": None}


class ResidualBlock(nn.Module):
    """The residual block: twice GroupNorm, swish and convolution, with the embedding in between.

        h = Conv(swish(GN(x))) + Dense(swish(embedding))
        y = x + Conv(dropout(swish(GN(h)))),     with Dense(x) instead of x if the channels change

    Attributes:
      channels: C', channels of the output.
      dropout: rate of the dropout in training, in [0, 1).
      num_groups: groups of both GroupNorms; must divide C and C'.
      scale_shift: the embedding scales and shifts the normalised features instead of being added.
      dtype: dtype of the computation.
      norm_eps: epsilon of both GroupNorms.
      resize: `halved` or `doubled`, applied to x and before the first convolution; None is neither.
    """

    channels: int
    dropout: float
    num_groups: int
    scale_shift: bool
    dtype: jnp.dtype
    norm_eps: float = 1e-6
    resize: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None, train: bool) -> Array:
        """Map x [B, H, W, C] to [B, H', W', C']; the size changes only by `resize`.

        Args:
          x: [B, H, W, C]; or frames [B, F, H, W, C], which share the statistics of the GroupNorms.
          embedding: [B, E]; or one per pixel of the output, [B, H', W', E] or [B, F, H', W', E];
            None in a network without times, where h gets no Dense.
          train: whether dropout is on.
        """
        conv: dict[str, Any] = dict(
            kernel_size=(3, 3), dtype=self.dtype, conv_general_dilated_cls=convolution(train)
        )
        norm: dict[str, Any] = dict(
            num_groups=self.num_groups, epsilon=self.norm_eps, dtype=self.dtype
        )

        h = nn.swish(nn.GroupNorm(**norm, name="norm_1")(x))
        if self.resize:
            h, x = self.resize(h), self.resize(x)
        h = nn.Conv(self.channels, **conv, kernel_init=fan_avg, name="conv_1")(h)  # [B, H', W', C']
        normalise = nn.GroupNorm(**norm, name="norm_2")
        if embedding is None:
            h = normalise(h)
        else:
            width = 2 * self.channels if self.scale_shift else self.channels
            shift = nn.Dense(width, dtype=self.dtype, kernel_init=fan_avg, name="dense")
            shift = shift(nn.swish(embedding))
            if embedding.ndim == 2:
                shift = shift[:, None, None, :]  #                             [B, 1, 1, C' or 2C']
            if self.scale_shift:  # FiLM (Perez et al. 2018; Dhariwal & Nichol 2021, eq. 3: AdaGN)
                scale, shift = jnp.split(shift, 2, axis=-1)
                h = normalise(h) * (1 + scale) + shift
            else:
                h = normalise(h + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.swish(h))
        h = nn.Conv(self.channels, **conv, kernel_init=zeros, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, kernel_init=fan_avg, name="shortcut")(x)
        return x + h
