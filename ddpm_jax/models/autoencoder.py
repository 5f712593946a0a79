"""The autoencoder of latent diffusion: images to a small grid of Gaussians, and back.

    encoder   x [B, H, W, C] -> mean μ(x) and log variance log σ²(x), [B, H/f, W/f, c] each
    decoder   z [B, H/f, W/f, c] -> x̂ [B, H, W, C]

(Rombach et al. 2022, section 3.1 and appendix G.) The blocks are those of the U-Net, without a
time and without skip connections. f = p 2^(levels - 1), where p is the side of a patch. With p = 1
the layers are those of diffusers' `AutoencoderKL`, in the same order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.models.attention import fan_avg
from ddpm_jax.models.blocks import from_patches, to_patches
from ddpm_jax.models.convolution import convolution
from ddpm_jax.models.recomputation import recomputed
from ddpm_jax.types import Array, Params, PRNGKey

LOG_VARIANCES = (-30.0, 20.0)  # σ² stays inside exp of these, as in the authors' code


class Autoencoder(NamedTuple):
    """An autoencoder as pure functions.

    Attributes:
      init: key -> params, a tree of float32 arrays.
      encode: (params, x [B, H, W, C], *, train, key) -> (mean, log_variance), [B, h, w, c] each.
      decode: (params, z [B, h, w, c], *, train, key) -> images [B, H, W, C].
      latent_shape: (h, w, c).
    """

    init: Callable[[PRNGKey], Params]
    encode: Callable[..., tuple[Array, Array]]
    decode: Callable[..., Array]
    latent_shape: tuple[int, int, int]


class _Half(nn.Module):
    """What the encoder and the decoder share; the attributes mean the same as in `UNet`."""

    channels: int
    channel_multipliers: tuple[int, ...]
    patch_size: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_heads: int
    num_groups: int
    dropout: float
    dtype: jnp.dtype
    remat: bool
    remat_keep: str

    def layers(self, train: bool) -> tuple[Callable[..., Array], Callable[..., Array]]:
        """Return block(h, width, name, attend=False) and conv(h, features, name, strides=1)."""
        residual, attention = recomputed(self.remat, self.remat_keep)

        def block(h: Array, width: int, name: str, attend: bool = False) -> Array:
            h = residual(width, self.dropout, self.num_groups, False, self.dtype, name=name)(
                h, None, train
            )
            if attend:
                name = f"{name}_attention"
                h = attention(self.num_heads, self.num_groups, self.dtype, name=name)(h)
            return h

        def conv(h: Array, features: int, name: str, strides: int = 1) -> Array:
            how: dict[str, Any] = dict(conv_general_dilated_cls=convolution(train))
            own: dict[str, Any] = dict(dtype=self.dtype, kernel_init=fan_avg, name=name)
            return nn.Conv(features, (3, 3), strides, **own, **how)(h)

        return block, conv

    def normalised(self, h: Array) -> Array:
        """Return swish(GroupNorm(h)), which comes before the last convolution."""
        return nn.swish(nn.GroupNorm(self.num_groups, dtype=self.dtype, name="norm_out")(h))

    @property
    def widths(self) -> list[int]:
        """The channels of each level."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]


class Encoder(_Half):
    """Images to the mean and the log variance of their latents.

    Attributes:
      latent_channels: c, channels of the latents.
    """

    latent_channels: int = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
        """Map x [B, H, W, C] to (mean, log_variance), float32 [B, H/f, W/f, c] each."""
        block, conv = self.layers(train)
        last = len(self.widths) - 1
        h = conv(to_patches(x, self.patch_size).astype(self.dtype), self.channels, "conv_in")
        for level, width in enumerate(self.widths):
            attend = h.shape[1] in self.attention_resolutions
            for i in range(self.num_res_blocks):
                h = block(h, width, f"down_{level}_{i}", attend)
            if level != last:
                h = conv(h, width, f"down_{level}_conv", strides=2)
        h = block(h, self.widths[-1], "middle_0", attend=True)
        h = block(h, self.widths[-1], "middle_1")
        features = 2 * self.latent_channels
        h = conv(self.normalised(h), features, "conv_out").astype(jnp.float32)
        moments = nn.Dense(features, kernel_init=fan_avg, name="quant")(h)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCES)


class Decoder(_Half):
    """Latents to images.

    Attributes:
      out_channels: C, channels of the images.
    """

    out_channels: int = 3

    @nn.compact
    def __call__(self, z: Array, *, train: bool = False) -> Array:
        """Map z [B, h, w, c] to images, float32 [B, f h, f w, C]."""
        block, conv = self.layers(train)
        h = nn.Dense(z.shape[-1], kernel_init=fan_avg, name="post_quant")(z)
        h = conv(h.astype(self.dtype), self.widths[-1], "conv_in")
        h = block(h, self.widths[-1], "middle_0", attend=True)
        h = block(h, self.widths[-1], "middle_1")
        for level, width in reversed(list(enumerate(self.widths))):
            attend = h.shape[1] in self.attention_resolutions
            for i in range(self.num_res_blocks + 1):
                h = block(h, width, f"up_{level}_{i}", attend)
            if level != 0:
                h = h.repeat(2, axis=1).repeat(2, axis=2)  # nearest neighbour
                h = conv(h, width, f"up_{level}_conv")
        features = self.patch_size**2 * self.out_channels
        h = conv(self.normalised(h), features, "conv_out").astype(jnp.float32)
        return from_patches(h, self.patch_size)


def make_autoencoder(
    image_shape: tuple[int, int, int], latent_channels: int, **sizes: Any
) -> Autoencoder:
    """Build an autoencoder; its parameters are {"encoder": ..., "decoder": ...}.

    Args:
      image_shape: (H, W, C); f must divide H and W (`UNet.check_sizes`).
      latent_channels: c.
      **sizes: the attributes that the encoder and the decoder share.
    """
    height, width, channels = image_shape
    factor = sizes["patch_size"] * 2 ** (len(sizes["channel_multipliers"]) - 1)
    latent_shape = (height // factor, width // factor, latent_channels)
    encoder = Encoder(latent_channels=latent_channels, **sizes)
    decoder = Decoder(out_channels=channels, **sizes)

    def init(key: PRNGKey) -> Params:
        keys = jax.random.split(key)
        x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        z = jax.ShapeDtypeStruct((1, *latent_shape), jnp.float32)
        return {
            "encoder": encoder.lazy_init(keys[0], x)["params"],
            "decoder": decoder.lazy_init(keys[1], z)["params"],
        }

    def half(module: nn.Module, name: str) -> Callable[..., Any]:
        def apply(
            params: Params, x: Array, *, train: bool = False, key: PRNGKey | None = None
        ) -> Any:
            rngs: Any = {"dropout": key} if train else None
            return module.apply({"params": params[name]}, x, train=train, rngs=rngs)

        return apply

    return Autoencoder(init, half(encoder, "encoder"), half(decoder, "decoder"), latent_shape)
