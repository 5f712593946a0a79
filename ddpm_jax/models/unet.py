"""The U-Net of Ho et al. 2020 (appendix B), with the switches that people expect to set.

A PixelCNN++-like U-Net with GroupNorm in place of weight normalisation: two convolutional residual
blocks a level, self-attention at 16x16 and in the middle, sinusoidal time embedding added in every
residual block, a skip connection from every block of the way down to one of the way up.

    embedding(t) = Dense(swish(Dense([sin(t ω_i), cos(t ω_i)]))),   ω_i = 10000^(-i / (C/2 - 1))
    residual     = x + Conv(dropout(swish(GN(Conv(swish(GN(x))) + Dense(swish(embedding))))))
    attention    = x + Dense(softmax(Q Kᵀ / √d) V),                 Q, K, V = Dense(GN(x))

The last convolution of every block, the output of every attention and the last convolution of the
network start at zero, so the network starts as the zero function. At the CIFAR-10 settings
it has 35,746,307 parameters. It knows nothing of diffusion: t is a number to embed.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.types import Array

# Deviates from Ho's code in name only: its init_scale=0 meant a scale of 1e-10.
_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_zeros = nn.initializers.zeros


def time_embedding(t: Array, dim: int) -> Array:
    """Embed times as sines and cosines of `dim / 2` frequencies (Vaswani et al. 2017, section 3.5).

    Args:
      t: [B] int or float, any range.
      dim: even number of channels.

    Returns:
      [B, dim] float32.
    """
    half = dim // 2
    frequencies = jnp.exp(
        -math.log(10_000) / max(half - 1, 1) * jnp.arange(half, dtype=jnp.float32)
    )
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResidualBlock(nn.Module):
    """GroupNorm, swish, convolution, twice; the embedding enters between."""

    channels: int
    dropout: float
    num_groups: int
    scale_shift: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool) -> Array:
        """Map x [B, H, W, C] and embedding [B, E] to [B, H, W, channels]."""
        conv = dict(kernel_size=(3, 3), dtype=self.dtype)
        norm = dict(num_groups=self.num_groups, dtype=self.dtype)

        h = nn.swish(nn.GroupNorm(**norm, name="norm_1")(x))
        h = nn.Conv(self.channels, **conv, kernel_init=_init, name="conv_1")(h)  # [B, H, W, C']
        width = 2 * self.channels if self.scale_shift else self.channels
        shift = nn.Dense(width, dtype=self.dtype, kernel_init=_init, name="dense")
        shift = shift(nn.swish(embedding))  #                                      [B, C' or 2C']
        shift = shift[:, None, None, :]
        normalise = nn.GroupNorm(**norm, name="norm_2")
        if self.scale_shift:  # FiLM (Perez et al. 2018; Dhariwal & Nichol 2021, eq. 3: AdaGN)
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = normalise(h) * (1 + scale) + shift
        else:
            h = normalise(h + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.swish(h))
        h = nn.Conv(self.channels, **conv, kernel_init=_zeros, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, kernel_init=_init, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels."""

    num_heads: int
    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [B, H, W, C] to the same shape."""
        batch, height, width, channels = x.shape
        h = nn.GroupNorm(num_groups=self.num_groups, dtype=self.dtype, name="norm")(x)
        h = h.reshape(batch, height * width, channels)  #                         [B, HW, C]
        heads = (self.num_heads, channels // self.num_heads)
        q, k, v = (
            nn.DenseGeneral(heads, dtype=self.dtype, kernel_init=_init, name=name)(h)
            for name in ("query", "key", "value")
        )  #                                                                      [B, HW, heads, d]
        h = jax.nn.dot_product_attention(q, k, v)  # softmax in float32
        h = h.reshape(batch, height, width, channels)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=_zeros, name="out")(h)


class UNet(nn.Module):
    """The network of Ho et al. 2020; the defaults are the CIFAR-10 model.

    Attributes:
      out_channels: channels of the output, those of the image.
      channels: width C of the first level.
      channel_multipliers: widths in units of C, one a level; between levels H and W are halved.
      num_res_blocks: residual blocks a level on the way down (one more on the way up).
      attention_resolutions: heights H at which every block is followed by attention.
      num_heads: heads of every attention.
      dropout: rate inside the residual blocks, in training.
      num_groups: groups of every GroupNorm; must divide every level's width.
      scale_shift: the embedding scales and shifts the normalised features instead of being added.
      num_classes: size of the label set; 0 is unconditional.
      dtype: of the computation. Parameters, statistics, softmax and output are float32.
      remat: recompute the residual and attention blocks in the backward pass.
    """

    out_channels: int = 3
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    dropout: float = 0.1
    num_groups: int = 32
    scale_shift: bool = False
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Return the network's output, float32, of the shape of `x`.

        Args:
          x: [B, H, W, C] float; H and W divisible by 2^(levels - 1).
          t: [B] times to embed.
          cond: with `num_classes`, {"label": [B] int32 in {0..num_classes-1}}; a negative label, or
            no label at all, is the learned null class.
          train: whether dropout is on (needs the "dropout" rng).

        Raises:
          UserError: sizes that the levels, groups or heads do not divide.
        """
        self.check_sizes(x.shape[1:3])
        residual, attention = ResidualBlock, AttentionBlock
        if self.remat:  # argument 3 counts self: train
            residual = nn.remat(ResidualBlock, static_argnums=(3,))
            attention = nn.remat(AttentionBlock)

        embedding = self._embed(t, cond)  #                                       [B, 4C]

        def block(h: Array, width: int, name: str, attend: bool) -> Array:
            h = residual(
                width, self.dropout, self.num_groups, self.scale_shift, self.dtype, name=name
            )(h, embedding, train)
            if attend:
                name = f"{name}_attention"
                h = attention(self.num_heads, self.num_groups, self.dtype, name=name)(h)
            return h

        def conv(features: int, name: str, strides: int = 1) -> nn.Conv:
            return nn.Conv(
                features, (3, 3), strides, dtype=self.dtype, kernel_init=_init, name=name
            )

        widths = [self.channels * multiplier for multiplier in self.channel_multipliers]
        last = len(widths) - 1
        h = conv(self.channels, "conv_in")(x.astype(self.dtype))  #               [B, H, W, C]
        skips = [h]
        for level, width in enumerate(widths):
            attend = h.shape[1] in self.attention_resolutions
            for i in range(self.num_res_blocks):
                h = block(h, width, f"down_{level}_{i}", attend)
                skips.append(h)
            if level != last:
                h = conv(width, f"down_{level}_conv", strides=2)(h)  #   [B, H/2, W/2, width]
                skips.append(h)

        h = block(h, widths[-1], "middle_0", attend=True)
        h = block(h, widths[-1], "middle_1", attend=False)

        for level, width in reversed(list(enumerate(widths))):
            attend = h.shape[1] in self.attention_resolutions
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, width, f"up_{level}_{i}", attend)
            if level != 0:
                h = h.repeat(2, axis=1).repeat(2, axis=2)  # nearest neighbour    [B, 2H, 2W, width]
                h = conv(width, f"up_{level}_conv")(h)

        h = nn.swish(nn.GroupNorm(self.num_groups, dtype=self.dtype, name="norm_out")(h))
        out = nn.Conv(self.out_channels, (3, 3), kernel_init=_zeros, name="conv_out")
        return out(h.astype(jnp.float32))  #                                      [B, H, W, C]

    def _embed(self, t: Array, cond: Mapping[str, Array] | None) -> Array:
        """Embed time, and label where the model is conditional, as [B, 4C]."""
        width = 4 * self.channels
        dense = dict(dtype=self.dtype, kernel_init=_init)
        embedding = time_embedding(t, self.channels).astype(self.dtype)
        embedding = nn.Dense(width, **dense, name="time_1")(embedding)
        embedding = nn.Dense(width, **dense, name="time_2")(nn.swish(embedding))
        labels = None if cond is None else cond.get("label")
        if labels is not None and not self.num_classes:
            raise UserError("cond['label'] is given, but the network has no classes")
        if self.num_classes:
            label = jnp.full(t.shape, -1) if labels is None else labels
            label = jnp.where(label < 0, self.num_classes, label)
            table = nn.Embed(self.num_classes + 1, width, dtype=self.dtype, name="label")
            embedding = embedding + table(label)
        return embedding

    def check_sizes(self, image_size: tuple[int, int]) -> None:
        """Raise `UserError` where the settings do not fit images of (H, W), naming the fix."""
        halvings = len(self.channel_multipliers) - 1
        factor = 2**halvings
        height, width = image_size
        if height % factor or width % factor:
            up = [math.ceil(side / factor) * factor for side in image_size]
            raise UserError(
                f"images of {height}x{width} cannot be halved {halvings} times: both sides must be "
                f"divisible by {factor}; resize them to {up[0]}x{up[1]} (data.image_size) or take "
                "fewer model.channel_multipliers"
            )
        resolutions = [height // 2**level for level in range(len(self.channel_multipliers))]
        for resolution in self.attention_resolutions:
            if resolution not in resolutions:
                raise UserError(
                    f"model.attention_resolutions has {resolution}, but images of height {height} "
                    f"pass through the heights {resolutions}; choose among these"
                )
        for multiplier in (1, *self.channel_multipliers):  # 1: of the first convolution
            for name, parts in (("num_groups", self.num_groups), ("num_heads", self.num_heads)):
                if self.channels * multiplier % parts:
                    raise UserError(
                        f"the network has blocks of {self.channels * multiplier} channels "
                        f"(model.channels {self.channels} x {multiplier}), not divisible by "
                        f"model.{name} {parts}; change either"
                    )
