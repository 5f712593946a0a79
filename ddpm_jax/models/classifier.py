"""A classifier of noisy images: the downsampling half of the U-Net, a middle, and a pooled head.

It is the half U-Net of Dhariwal & Nichol 2021 (section 4.1) with the residual and attention blocks
of `models.unet`. The logits start at zero. The module does not depend on the diffusion process: t
is a number to embed.

Deviates from Dhariwal & Nichol, who pool by attention, in the default: the mean over the pixels.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.attention import fan_avg
from ddpm_jax.models.blocks import PADDINGS, halved, time_embedding, to_patches
from ddpm_jax.models.convolution import convolution
from ddpm_jax.models.recomputation import recomputed
from ddpm_jax.types import Array


class AttentionPool(nn.Module):
    """Pool by attention: the mean of the pixels gives the query (Radford et al. 2021, section 2.4).

    Attributes:
      head_dim: channels per head; must divide C.
    """

    head_dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [B, H, W, C] to [B, C], the input of the last Dense."""
        batch, height, width, channels = x.shape
        rows = x.reshape(batch, height * width, channels)
        rows = jnp.concatenate([rows.mean(axis=1, keepdims=True), rows], axis=1)
        shape = (height * width + 1, channels)
        position = self.param("position", nn.initializers.normal(channels**-0.5), shape)
        rows = rows + position[None]  #                                           [B, 1 + HW, C]
        heads = (channels // self.head_dim, self.head_dim)
        q, k, v = (
            nn.DenseGeneral(heads, kernel_init=fan_avg, name=name)(source)
            for name, source in (("query", rows[:, :1]), ("key", rows), ("value", rows))
        )
        return jax.nn.dot_product_attention(q, k, v).reshape(batch, channels)


class Classifier(nn.Module):
    """A network from noisy images to the logits of `num_classes` classes.

    `pool` is "mean", the mean over the pixels, or "attention", which needs `head_dim`. The other
    attributes mean the same as in `UNet`; `UNet.check_sizes` checks them.
    """

    num_classes: int
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    patch_size: int = 1
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    head_dim: int = 0
    dropout: float = 0.1
    num_groups: int = 32
    norm_eps: float = 1e-6
    scale_shift: bool = False
    freq_shift: int = 1
    time_channels: int = 0
    time_scale: float = 1.0
    resample: str = "conv"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    remat_keep: str = "nothing"
    pool: str = "mean"

    @nn.compact
    def __call__(
        self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Return the logits [B, num_classes] float32.

        Args:
          x: [B, H, W, C] float; H and W divisible by p 2^(levels - 1).
          t: [B] times to embed.
          cond: ignored, because the label is the thing to predict.
          train: whether dropout is on (needs the "dropout" rng).
        """
        residual, attention = recomputed(self.remat, self.remat_keep)
        channels = self.time_channels or self.channels
        dense: dict[str, Any] = dict(features=4 * channels, dtype=self.dtype)
        conv: dict[str, Any] = dict(
            kernel_size=(3, 3), dtype=self.dtype, conv_general_dilated_cls=convolution(train)
        )

        embedding = time_embedding(t, channels, self.freq_shift, self.time_scale)
        embedding = nn.Dense(**dense, name="time_1")(embedding.astype(self.dtype))
        embedding = nn.Dense(**dense, name="time_2")(nn.swish(embedding))  #      [B, 4D]

        norm: dict[str, Any] = dict(dtype=self.dtype, norm_eps=self.norm_eps)

        def block(h: Array, width: int, name: str, attend: bool, **how: Any) -> Array:
            settings = (width, self.dropout, self.num_groups, self.scale_shift)
            h = residual(*settings, **norm, **how, name=name)(h, embedding, train)
            if attend:
                heads = width // self.head_dim if self.head_dim else self.num_heads
                h = attention(heads, self.num_groups, **norm, name=f"{name}_attention")(h)
            return h

        def halve(h: Array, width: int, name: str) -> Array:
            if self.resample == "residual":
                return block(h, width, f"{name}_resize", attend=False, resize=halved)
            how: dict[str, Any] = dict(strides=2, padding=PADDINGS[self.resample])
            return nn.Conv(width, **conv, **how, name=f"{name}_conv")(h)

        widths = [self.channels * multiplier for multiplier in self.channel_multipliers]
        x = to_patches(x, self.patch_size).astype(self.dtype)  #              [B, H/p, W/p, p p C]
        h = nn.Conv(self.channels, **conv, name="conv_in")(x)
        for level, width in enumerate(widths):
            attend = h.shape[1] in self.attention_resolutions
            for i in range(self.num_res_blocks):
                h = block(h, width, f"down_{level}_{i}", attend)
            if level != len(widths) - 1:
                h = halve(h, width, f"down_{level}")
        h = block(h, widths[-1], "middle_0", attend=True)
        h = block(h, widths[-1], "middle_1", attend=False)

        last_norm: dict[str, Any] = dict(epsilon=self.norm_eps, dtype=self.dtype, name="norm_out")
        h = nn.swish(nn.GroupNorm(self.num_groups, **last_norm)(h))
        h = h.astype(jnp.float32)
        if self.pool == "attention":
            h = AttentionPool(self.head_dim, name="pool")(h)  #                   [B, width]
        else:
            h = h.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="logits")(h)
