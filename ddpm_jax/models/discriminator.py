"""A discriminator of patches: a number for each overlapping patch of an image, above 0 for real.

It is PatchGAN (Isola et al. 2017, section 3.2.2), as in the autoencoders of Rombach et al. 2022.

Deviates from them: GroupNorm instead of BatchNorm, so an image does not depend on its batch.
And the padding is "SAME", not one pixel on each side, so there are fewer patches.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.types import Array

MAX_MULTIPLIER = 8  # of the channels
GROUPS = 8  # at most


class Discriminator(nn.Module):
    """Convolutions of 4x4 with stride 2, then two with stride 1.

    Attributes:
      channels: channels of the first convolution; they double with each layer, up to 8 times.
      layers: number of convolutions with stride 2.
      dtype: dtype of the computation; the output is float32.
    """

    channels: int = 64
    layers: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map images [B, H, W, C] to one number per patch, [B, H', W', 1] float32."""
        how: dict[str, Any] = dict(kernel_size=(4, 4), dtype=self.dtype)
        h = nn.Conv(self.channels, strides=2, **how, name="conv_0")(x.astype(self.dtype))
        h = nn.leaky_relu(h, 0.2)
        for i in range(1, self.layers + 1):
            width = self.channels * min(2**i, MAX_MULTIPLIER)
            strides = 2 if i < self.layers else 1
            h = nn.Conv(width, strides=strides, use_bias=False, **how, name=f"conv_{i}")(h)
            groups = max(g for g in range(1, GROUPS + 1) if width % g == 0)
            h = nn.GroupNorm(groups, dtype=self.dtype, name=f"norm_{i}")(h)
            h = nn.leaky_relu(h, 0.2)
        return nn.Conv(1, kernel_size=(4, 4), name="conv_out")(h.astype(jnp.float32))
