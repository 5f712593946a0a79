"""The X-UNet of Watson et al. 2022 ("Novel View Synthesis with Diffusion Models", section 2.3).

Two frames, the noisy target and a clean view of the same object, pass through the same weights. The
frames meet in two places: the statistics of every GroupNorm are those of both frames, and the
queries of one frame attend to the keys of the other, after self-attention within each frame.

    FiLM of frame i at level l     embedding(t_i) + Conv_l(rays_i)
    rays_i      [γ_15(o), γ_8(d)] of every pixel,   γ_n(x) = [x, sin(2^k x), cos(2^k x)], k < n

o and d are origin and direction of a pixel's ray (`scenes.cameras`). Conv_l has a stride of 2^l.

The null form is a pose of zeros. Then the network receives no view and no camera: both frames have
rays of zeros, the view is zero, and a learned vector replaces its time embedding. Deviates from the
paper, which replaces the view by noise: so the output is a function of its inputs.

Deviates from the paper in the noise levels: the paper embeds the log-SNR of each frame, λ. With
u = 2/π arctan(e^(-λ/2)) it embeds 1000 u, which is t for the cosine schedule with T = 1000. Here
the network receives t, and embeds the time of clean data, -1, for the view. It also deviates from
the paper's code in three details: sums are not divided by √2; a block that halves or doubles the
size does so before its convolutions; there is no learned embedding of the pixel or of the frame.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.models.attention import fan_avg, zeros
from ddpm_jax.models.blocks import doubled, halved, time_embedding
from ddpm_jax.models.convolution import convolution
from ddpm_jax.models.inputs import check_cond
from ddpm_jax.models.recomputation import recomputed
from ddpm_jax.scenes.cameras import Camera, rays
from ddpm_jax.types import Array

CLEAN = -1  # the time of a clean frame: the network receives the papers' t, minus 1
FREQUENCIES = (15, 8)  # of the origins and of the directions


def positions(x: Array, count: int) -> Array:
    """Return γ(x) = [x, sin(2^k x), cos(2^k x)], k < count: [..., D (1 + 2 count)], of x [..., D].

    (Mildenhall et al. 2020, eq. 4, without its factor π.)
    """
    angles = [2.0**k * x for k in range(count)]
    waves = [wave(angle) for wave in (jnp.sin, jnp.cos) for angle in angles]
    return jnp.concatenate([x, *waves], axis=-1)


class FrameAttention(nn.Module):
    """Attention within each frame, or from each frame to the other one.

    Attributes:
      num_heads: number of heads; must divide C.
      num_groups: groups of the GroupNorm, whose statistics are those of both frames.
      dtype: dtype of the computation; the softmax is float32.
      norm_eps: epsilon of the GroupNorm.
      cross: whether the keys and values are those of the other frame.
    """

    num_heads: int
    num_groups: int
    dtype: jnp.dtype
    norm_eps: float
    cross: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [B, 2, H, W, C] to an array of the same shape."""
        *_, height, width, channels = x.shape
        norm: dict[str, Any] = dict(epsilon=self.norm_eps, dtype=self.dtype, name="norm")
        h = nn.GroupNorm(self.num_groups, **norm)(x)
        attended = h[:, ::-1] if self.cross else h
        heads = (self.num_heads, channels // self.num_heads)
        q, k, v = (
            nn.DenseGeneral(heads, dtype=self.dtype, kernel_init=fan_avg, name=name)(
                source.reshape(-1, height * width, channels)
            )
            for name, source in (("query", h), ("key", attended), ("value", attended))
        )  #                                                               [2B, HW, heads, d]
        h = jax.nn.dot_product_attention(q, k, v)  # computes the softmax in float32
        out = nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")
        return x + out(h.reshape(x.shape))


class TwoFrames(nn.Module):
    """The network on two frames: swapped inputs give swapped outputs.

    The attributes are those of `XUNet`.
    """

    out_channels: int
    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_heads: int
    dropout: float
    num_groups: int
    norm_eps: float
    dtype: jnp.dtype
    remat: bool
    remat_keep: str

    @nn.compact
    def __call__(self, frames: Array, time: Array, rays: Array, train: bool) -> Array:
        """Return the output of both frames, float32 [B, 2, H, W, out_channels].

        Args:
          frames: [B, 2, H, W, C].
          time: [B, 2, E], the embedded noise level of each frame.
          rays: [B, 2, H, W, R], the encoded rays.
          train: whether dropout is on.
        """
        residual, attention = recomputed(self.remat, self.remat_keep, FrameAttention)
        norm: dict[str, Any] = dict(dtype=self.dtype, norm_eps=self.norm_eps)
        how: dict[str, Any] = dict(conv_general_dilated_cls=convolution(train))
        films = []
        for level in range(len(self.channel_multipliers)):
            own: dict[str, Any] = dict(dtype=self.dtype, kernel_init=fan_avg)
            stride = 2**level
            conv = nn.Conv(time.shape[-1], (3, 3), stride, **own, **how, name=f"rays_{level}")
            films.append(time[:, :, None, None, :] + conv(rays))  #       [B, 2, h, w, E]

        def resized(h: Array, level: int, name: str, resize: Any) -> Array:
            settings = (h.shape[-1], self.dropout, self.num_groups, True)
            return residual(*settings, **norm, resize=resize, name=name)(h, films[level], train)

        def block(h: Array, level: int, name: str) -> Array:
            width = self.channels * self.channel_multipliers[level]
            settings = (width, self.dropout, self.num_groups, True)
            h = residual(*settings, **norm, name=name)(h, films[level], train)
            if h.shape[2] in self.attention_resolutions:
                for cross, kind in ((False, "self"), (True, "cross")):
                    settings = (self.num_heads, self.num_groups)
                    h = attention(*settings, **norm, cross=cross, name=f"{name}_{kind}")(h)
            return h

        levels, last = range(len(films)), len(films) - 1
        first: dict[str, Any] = dict(dtype=self.dtype, kernel_init=fan_avg, name="conv_in")
        h = nn.Conv(self.channels, (3, 3), **first, **how)(frames.astype(self.dtype))
        skips = [h]
        for level in levels:
            for i in range(self.num_res_blocks):
                h = block(h, level, f"down_{level}_{i}")
                skips.append(h)
            if level != last:
                h = resized(h, level + 1, f"down_{level}_resize", halved)
                skips.append(h)
        h = block(h, last, "middle")
        for level in reversed(levels):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, level, f"up_{level}_{i}")
            if level != 0:
                h = resized(h, level - 1, f"up_{level}_resize", doubled)
        last_norm: dict[str, Any] = dict(epsilon=self.norm_eps, dtype=self.dtype, name="norm_out")
        h = nn.swish(nn.GroupNorm(self.num_groups, **last_norm)(h)).astype(jnp.float32)
        return nn.Conv(self.out_channels, (3, 3), kernel_init=zeros, name="conv_out", **how)(h)


class XUNet(nn.Module):
    """The X-UNet; the defaults are the paper's for 128x128.

    Attributes:
      out_channels: channels of the output: those of the image, or twice as many if the network
        predicts a variance as well.
      channels: width C of the first level.
      channel_multipliers: widths in units of C, one per level; H and W halve from level to level.
      num_res_blocks: residual blocks per level while downsampling (one more while upsampling).
      attention_resolutions: heights of the levels at which attention follows every block.
      num_heads: heads of every attention; must divide every level's width.
      dropout: rate inside the residual blocks, only in training.
      num_groups: groups of every GroupNorm; must divide every level's width.
      norm_eps: epsilon of every GroupNorm.
      freq_shift, time_channels, time_scale: of the time embedding, as in `models.unet`.
      dtype: dtype of the computation. Parameters, statistics, softmax and output are float32.
      remat: whether the residual and attention blocks are recomputed in the backward pass.
      remat_keep: with remat, which outputs are kept: "nothing" or "convolutions".
    """

    out_channels: int = 3
    channels: int = 256
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (8, 16, 32)
    num_heads: int = 4
    dropout: float = 0.1
    num_groups: int = 32
    norm_eps: float = 1e-6
    freq_shift: int = 1
    time_channels: int = 0
    time_scale: float = 1.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    remat_keep: str = "nothing"

    @nn.compact
    def __call__(
        self, x: Array, t: Array, cond: Mapping[str, Array] | None = None, *, train: bool = False
    ) -> Array:
        """Return the output of the noisy frame, float32 [B, H, W, out_channels].

        Args:
          x: [B, H, W, C] float, the noisy frame; H and W divisible by 2^(levels - 1).
          t: [B] times to embed.
          cond: "view" [B, H, W, C] float, the clean frame, and the cameras of both frames, the
            noisy one first: "pose" [B, 2, 4, 4], "focal" [B, 2] and "centre" [B, 2, 2]. All of
            them, or none for the null form of all images; a pose of zeros is that of one image.
          train: whether dropout is on (needs the "dropout" rng).

        Raises:
          UserError: an entry of cond is unknown, missing or of another shape.
        """
        (batch, height, width, _), cond = x.shape, {} if cond is None else cond
        shapes: dict[str, tuple[int | None, ...]] = {
            "view": x.shape,
            "pose": (batch, 2, 4, 4),
            "focal": (batch, 2),
            "centre": (batch, 2, 2),
        }
        check_cond(cond, shapes)
        if missing := [name for name in shapes if name not in cond]:
            if cond:
                raise UserError(
                    f"cond has no {' and no '.join(map(repr, missing))}; pass all of "
                    f"{', '.join(shapes)}, or none of them"
                )
            cond = {name: jnp.zeros(shape) for name, shape in shapes.items()}  # pyright: ignore
        pose = cond["pose"].astype(jnp.float32)
        given = jnp.any(pose != 0, axis=(1, 2, 3))  #                             [B]
        frames = jnp.stack([x, _only(given, cond["view"]).astype(x.dtype)], axis=1)
        # Without a view, any finite rays: they are then replaced by zeros.
        pose = jnp.where(given[:, None, None, None], pose, jnp.eye(4))
        focal = jnp.where(given[:, None], cond["focal"], 1.0)
        origins, directions = rays(Camera(pose, focal, cond["centre"]), height, width)
        encoded = [
            positions(*part) for part in zip((origins, directions), FREQUENCIES, strict=True)
        ]
        encoded = _only(given, jnp.concatenate(encoded, axis=-1)).astype(self.dtype)

        channels = self.time_channels or self.channels
        dense: dict[str, Any] = dict(dtype=self.dtype, kernel_init=fan_avg)
        times = jnp.stack([t, jnp.full_like(t, CLEAN)], axis=1).reshape(-1)
        time = time_embedding(times, channels, self.freq_shift, self.time_scale)
        time = nn.Dense(4 * channels, **dense, name="time_1")(time.astype(self.dtype))
        time = nn.Dense(4 * channels, **dense, name="time_2")(nn.swish(time))
        time = time.reshape(batch, 2, 4 * channels)
        null = self.param("null", nn.initializers.normal(1.0), (4 * channels,))
        view_time = jnp.where(given[:, None], time[:, 1], null.astype(self.dtype))
        time = jnp.stack([time[:, 0], view_time], axis=1)

        out = TwoFrames(
            self.out_channels,
            self.channels,
            self.channel_multipliers,
            self.num_res_blocks,
            self.attention_resolutions,
            self.num_heads,
            self.dropout,
            self.num_groups,
            self.norm_eps,
            self.dtype,
            self.remat,
            self.remat_keep,
            name="frames",
        )(frames, time, encoded, train)
        return out[:, 0]


def _only(given: Array, rows: Array) -> Array:
    """Return the rows where `given` [B] is True, and zeros elsewhere."""
    return jnp.where(given.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0.0)
