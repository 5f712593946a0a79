"""GroupNorm (Wu & He 2018) in a form whose gradient costs two sums over the pixels.

    y = A x + D,   A = scale / √(var + ε),  D = bias - mean A,   A and D: [B, C]

The statistics of a group are made from those of its channels, so all that mixes channels happens on
[B, C]; of the pixels the backward pass needs Σ g and Σ g x alone. In Flax's form of it XLA's CPU
backend sums seven times over the pixels, and computes what is summed anew each time.

MEASURED
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from ddpm_jax.types import Array


class GroupNorm(nn.Module):
    """What `nn.GroupNorm` does, with its parameters and its ε; statistics are float32."""

    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise x [B, H, W, C]; num_groups divides C."""
        batch, height, width, channels = x.shape
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        moments = jnp.stack([x.mean((1, 2)), (x * x).mean((1, 2))])  #  [2, B, C]
        groups = moments.reshape(2, batch, self.num_groups, -1).mean(-1, keepdims=True)
        groups = jnp.broadcast_to(groups, (2, batch, self.num_groups, channels // self.num_groups))
        mean, square = groups.reshape(2, batch, channels)
        variance = jnp.maximum(0.0, square - mean * mean)
        factor = scale[None] * lax.rsqrt(variance + 1e-6)  #  [B, C]
        shift = bias[None] - mean * factor
        return (x * factor[:, None, None] + shift[:, None, None]).astype(self.dtype)
