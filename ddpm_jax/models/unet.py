"""The U-Net of Ho et al. 2020 (appendix B), with the usual options.

A U-Net similar to PixelCNN++, with GroupNorm instead of weight normalisation. It has two residual
blocks per level, and self-attention at 16x16 and in the middle. The sinusoidal time embedding is
added in every residual block. A skip connection goes from every block of the downsampling half to
one block of the upsampling half.

    embedding(t) = Dense(swish(Dense([sin(t ω_i), cos(t ω_i)]))),   ω_i = 10000^(-i / (C/2 - 1))
    residual     = x + Conv(dropout(swish(GN(Conv(swish(GN(x))) + Dense(swish(embedding))))))
    attention    `models.attention`: self-attention, then cross-attention if there is a context

The last convolution of every block, the last Dense of every attention and the last convolution of
the network start at zero. So the network starts as the zero function. With the CIFAR-10 settings
the network has 35,746,307 parameters. The module does not depend on the diffusion process: t is a
number to embed.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.models.attention import fan_avg, zeros
from ddpm_jax.models.blocks import (
    PADDINGS,
    concatenated,
    doubled,
    from_patches,
    halved,
    time_embedding,
    to_patches,
    with_fourier_features,
)
from ddpm_jax.models.convolution import convolution
from ddpm_jax.models.inputs import (
    ContextOrNull,
    EmbeddedVector,
    check_cond,
    concatenate_image,
    label_or_null,
)
from ddpm_jax.models.normalisation import norm_swish
from ddpm_jax.models.recomputation import recomputed
from ddpm_jax.types import Array


class UNet(nn.Module):
    """The network of Ho et al. 2020; the defaults are the CIFAR-10 model.

    Attributes:
      out_channels: channels of the output: those of the image, or twice as many if the network
        predicts a variance as well.
      channels: width C of the first level.
      channel_multipliers: widths in units of C, one per level; H and W halve from level to level.
      patch_size: side p of the square patches of pixels that the first level sees as one pixel.
      num_res_blocks: residual blocks per level while downsampling (one more while upsampling).
      attention_resolutions: heights of the levels at which attention follows every block.
      num_heads: heads of every attention; must divide every level's width.
      head_dim: channels per head, instead of num_heads; must divide the widths that have attention.
        0 uses num_heads.
      middle_attention: "normalised": the middle has self-attention after a GroupNorm, as the levels
        do. "plain": without the GroupNorm. "none": no attention in the middle.
      dropout: rate inside the residual blocks, only in training.
      num_groups: groups of every GroupNorm; must divide every level's width.
      norm_eps: epsilon of every GroupNorm.
      scale_shift: the embedding scales and shifts the normalised features instead of being added.
      freq_shift: 1 or 0; the time is embedded with ω_i = 10000^(-i / (D/2 - freq_shift)).
      time_channels: D, the number of sines and cosines; 0 is `channels`.
      time_scale: a factor of t.
      resample: how the size is halved and doubled. "conv": a convolution of stride 2 with padding
        only at the bottom and the right; pixels repeated, then a convolution. "conv_symmetric": the
        same with padding on all sides. "residual": residual blocks that average or repeat pixels.
      num_classes: number of classes; 0 is no input for a label.
      null_class: whether there is a null class, the label of images without one.
      embedding_dim: width D of a vector per image, added to the time embedding; 0 is none.
      context_dim: width D of a sequence per image, attended to after every self-attention; 0 is
        none.
      image_channels: channels of an image concatenated to x_t; 0 is none.
      fourier_features: exponents n of sin(2^n π x_t), cos(2^n π x_t) concatenated to x_t.
      dtype: dtype of the computation. Parameters, statistics, softmax and output are float32.
      remat: whether the residual and attention blocks are recomputed in the backward pass.
      remat_keep: with remat, which outputs are kept: "nothing" or "convolutions".
    """

    out_channels: int = 3
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    patch_size: int = 1
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    head_dim: int = 0
    middle_attention: str = "normalised"
    dropout: float = 0.1
    num_groups: int = 32
    norm_eps: float = 1e-6
    scale_shift: bool = False
    freq_shift: int = 1
    time_channels: int = 0
    time_scale: float = 1.0
    resample: str = "conv"
    num_classes: int = 0
    null_class: bool = True
    embedding_dim: int = 0
    context_dim: int = 0
    image_channels: int = 0
    fourier_features: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    remat_keep: str = "nothing"

    @nn.compact
    def __call__(
        self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Return the network's output, float32 [B, H, W, out_channels].

        Args:
          x: [B, H, W, C] float; H and W divisible by p 2^(levels - 1).
          t: [B] times to embed.
          cond: any of "label" [B] int32 in {0..num_classes-1} (negative is the null class),
            "embedding" [B, D], "context" [B, L, D] with "context_mask" bool [B, L], "image"
            [B, H, W, C']. `models.inputs` defines the null forms. Required are only "image", if
            the network has an input for it, and "label", if there are classes but no null class.
          train: whether dropout is on (needs the "dropout" rng).

        Raises:
          UserError: the levels, groups or heads do not divide a size; or an entry of cond is
            unknown, of another shape, or missing.
        """
        self.check_sizes((x.shape[1], x.shape[2]))
        cond = {} if cond is None else cond
        check_cond(cond, self._cond_shapes(x.shape))
        x = with_fourier_features(x, self.fourier_features)
        if self.image_channels:
            x = concatenate_image(x, cond.get("image"), self.image_channels, self.is_initializing())
        residual, attention = recomputed(self.remat, self.remat_keep)

        embedding = self._embed(t, cond)  #                                       [B, 4C]
        context = ()
        if self.context_dim:
            nothing = jnp.zeros((x.shape[0], 0, self.context_dim)), jnp.zeros((x.shape[0], 0), bool)
            context = (cond["context"], cond["context_mask"]) if "context" in cond else nothing
            context = ContextOrNull(name="context")(*context)  #  [B, 1 + L, D], [B, 1 + L]

        norm: dict[str, Any] = dict(dtype=self.dtype, norm_eps=self.norm_eps)

        def block(h: Array, width: int, name: str, attend: bool, **how: Any) -> Array:
            settings = (width, self.dropout, self.num_groups, self.scale_shift)
            h = residual(*settings, **norm, **how, name=name)(h, embedding, train)
            return attended(h, f"{name}_attention", self.num_groups) if attend else h

        def attended(h: Array, name: str, num_groups: int) -> Array:
            heads = h.shape[-1] // self.head_dim if self.head_dim else self.num_heads
            h = attention(heads, num_groups, **norm, name=name)(h)
            if self.context_dim:
                to_context = attention(heads, self.num_groups, **norm, name=f"{name}_to_context")
                h = to_context(h, *context)
            return h

        how: dict[str, Any] = dict(conv_general_dilated_cls=convolution(train))

        def conv(features: int, name: str, strides: int = 1, padding: Any = "SAME") -> nn.Conv:
            own: dict[str, Any] = dict(dtype=self.dtype, kernel_init=fan_avg, name=name)
            return nn.Conv(features, (3, 3), strides, padding, **own, **how)

        def halve(h: Array, width: int, name: str) -> Array:
            if self.resample == "residual":
                return block(h, width, f"{name}_resize", attend=False, resize=halved)
            return conv(width, f"{name}_conv", 2, PADDINGS[self.resample])(h)

        def double(h: Array, width: int, name: str) -> Array:
            if self.resample == "residual":
                return block(h, width, f"{name}_resize", attend=False, resize=doubled)
            return conv(width, f"{name}_conv")(doubled(h))

        widths = [self.channels * multiplier for multiplier in self.channel_multipliers]
        last = len(widths) - 1
        x = to_patches(x, self.patch_size)
        h = conv(self.channels, "conv_in")(x.astype(self.dtype))  #       [B, H/p, W/p, C]
        skips = [h]
        for level, width in enumerate(widths):
            attend = h.shape[1] in self.attention_resolutions
            for i in range(self.num_res_blocks):
                h = block(h, width, f"down_{level}_{i}", attend)
                skips.append(h)
            if level != last:
                h = halve(h, width, f"down_{level}")  #                  [B, H/2, W/2, width]
                skips.append(h)

        h = block(h, widths[-1], "middle_0", attend=False)
        if self.middle_attention != "none":
            num_groups = self.num_groups if self.middle_attention == "normalised" else 0
            h = attended(h, "middle_0_attention", num_groups)
        h = block(h, widths[-1], "middle_1", attend=False)

        for level, width in reversed(list(enumerate(widths))):
            attend = h.shape[1] in self.attention_resolutions
            for i in range(self.num_res_blocks + 1):
                h = concatenated(h, skips.pop(), train)
                h = block(h, width, f"up_{level}_{i}", attend)
            if level != 0:
                h = double(h, width, f"up_{level}")  #                   [B, 2H, 2W, width]

        last_norm: dict[str, Any] = dict(num_groups=self.num_groups, epsilon=self.norm_eps)
        h = norm_swish(h, train, **last_norm, dtype=self.dtype, name="norm_out")
        features = self.patch_size**2 * self.out_channels
        out = nn.Conv(features, (3, 3), kernel_init=zeros, name="conv_out", **how)
        return from_patches(out(h.astype(jnp.float32)), self.patch_size)  #       [B, H, W, C]

    def _embed(self, t: Array, cond: Mapping[str, Array]) -> Array:
        """Embed t, and the label and the vector if the network has inputs for them: [B, 4D]."""
        channels = self.time_channels or self.channels
        width = 4 * channels
        dense: dict[str, Any] = dict(dtype=self.dtype, kernel_init=fan_avg)
        embedding = time_embedding(t, channels, self.freq_shift, self.time_scale)
        embedding = embedding.astype(self.dtype)
        embedding = nn.Dense(width, **dense, name="time_1")(embedding)
        embedding = nn.Dense(width, **dense, name="time_2")(nn.swish(embedding))
        if self.num_classes:
            known = (t.shape, self.null_class, self.is_initializing())
            label = label_or_null(cond.get("label"), *known)
            label = jnp.where(label < 0, self.num_classes, label)  # without a null class: no row
            rows = self.num_classes + self.null_class
            table = nn.Embed(rows, width, dtype=self.dtype, name="label")
            embedding = embedding + table(label)
        if self.embedding_dim:
            vector = cond.get("embedding", jnp.zeros((t.shape[0], self.embedding_dim)))
            embedding = embedding + EmbeddedVector(width, self.dtype, name="vector")(vector)
        return embedding

    def _cond_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int | None, ...]]:
        """Return the shape of each cond entry that the network has an input for; x has `shape`."""
        batch, height, width, _ = shape
        shapes: dict[str, tuple[int | None, ...]] = {}
        if self.num_classes:
            shapes["label"] = (batch,)
        if self.embedding_dim:
            shapes["embedding"] = (batch, self.embedding_dim)
        if self.context_dim:
            shapes["context"] = (batch, None, self.context_dim)
            shapes["context_mask"] = (batch, None)
        if self.image_channels:
            shapes["image"] = (batch, height, width, self.image_channels)
        return shapes

    def check_sizes(self, image_size: tuple[int, int]) -> None:
        """Check that the settings fit images of size (H, W).

        Raises:
          UserError: a size cannot be halved often enough, no level has the height of an attention,
            or the groups or heads do not divide a width. The message says what to change.
        """
        halvings, patch = len(self.channel_multipliers) - 1, self.patch_size
        factor = patch * 2**halvings
        height, width = image_size
        if height % factor or width % factor:
            up = [math.ceil(side / factor) * factor for side in image_size]
            patches = f" in patches of {patch}x{patch}" if patch > 1 else ""
            raise UserError(
                f"images of {height}x{width}{patches} cannot be halved {halvings} times: both "
                f"sides must be divisible by {factor}; resize them to {up[0]}x{up[1]} "
                "(data.image_size) or set fewer model.channel_multipliers"
                + (" or a smaller model.patch_size" if patch > 1 else "")
            )
        resolutions = [height // (patch * 2**i) for i in range(len(self.channel_multipliers))]
        for resolution in self.attention_resolutions:
            if resolution not in resolutions:
                raise UserError(
                    f"model.attention_resolutions has {resolution}, but images of height {height} "
                    f"only pass through the heights {resolutions}; choose among these"
                )
        self._check_heads([h in self.attention_resolutions for h in resolutions])
        for multiplier in (1, *self.channel_multipliers):  # 1 is the first convolution
            for name, parts in (("num_groups", self.num_groups), ("num_heads", self.num_heads)):
                if self.channels * multiplier % parts:
                    raise UserError(
                        f"the network has blocks of {self.channels * multiplier} channels "
                        f"(model.channels {self.channels} x {multiplier}), which model.{name} = "
                        f"{parts} does not divide; change model.channels or model.{name}"
                    )

    def _check_heads(self, attends: list[bool]) -> None:
        """Raise `UserError` if head_dim does not divide a width, or num_heads is set too.

        Args:
          attends: for each level, whether it has attention.
        """
        if not self.head_dim:
            return
        if self.num_heads != 1:
            raise UserError(
                f"model.num_heads is {self.num_heads}, but model.head_dim={self.head_dim} sets the "
                "number of heads; leave model.num_heads at 1, or set model.head_dim=0"
            )
        attends = [*attends[:-1], attends[-1] or self.middle_attention != "none"]
        for multiplier, attends_here in zip(self.channel_multipliers, attends, strict=True):
            if attends_here and (width := self.channels * multiplier) % self.head_dim:
                raise UserError(
                    f"the network has attention with {width} channels (model.channels "
                    f"{self.channels} x {multiplier}), which model.head_dim = {self.head_dim} does "
                    "not divide; change model.channels or model.head_dim"
                )
