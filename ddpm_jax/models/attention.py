"""Attention: of the pixels to each other, and of the pixels to a sequence such as a text.

    self    x + Dense(softmax(Q Kᵀ / √d) V),   Q, K, V = Dense(GN(x))          (Ho et al. 2020)
    cross   the same with K, V = Dense(context)              (Rombach et al. 2022, section 3.3)

Either output starts at zero, so a new block is the identity. A context is a set: nothing tells the
order of its positions but what is in them, so permuting it with its mask changes nothing.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.types import Array

# Deviates from Ho's code in name only: its init_scale=0 meant a scale of 1e-10.
fan_avg = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nn.initializers.zeros


class AttentionBlock(nn.Module):
    """Attention of all pixels to all pixels, or to a context."""

    num_heads: int
    num_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None) -> Array:
        """Map x [B, H, W, C] to the same shape.

        Args:
          x: the pixels, which ask.
          context: [B, L, D] what they ask; None is the pixels themselves.
          mask: with context, bool [B, L]: which positions can be seen, at least one a row.
        """
        batch, height, width, channels = x.shape
        h = nn.GroupNorm(num_groups=self.num_groups, dtype=self.dtype, name="norm")(x)
        h = h.reshape(batch, height * width, channels)  #                         [B, HW, C]
        heads = (self.num_heads, channels // self.num_heads)
        seen = h if context is None else context.astype(self.dtype)  #            [B, L, D]
        q, k, v = (
            nn.DenseGeneral(heads, dtype=self.dtype, kernel_init=fan_avg, name=name)(source)
            for name, source in (("query", h), ("key", seen), ("value", seen))
        )  #                                                                      [B, HW, heads, d]
        mask = None if mask is None else mask[:, None, None, :]
        h = jax.nn.dot_product_attention(q, k, v, mask=mask)  # softmax in float32
        h = h.reshape(batch, height, width, channels)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")(h)
