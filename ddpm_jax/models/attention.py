"""Self-attention among the pixels, and cross-attention from the pixels to a context.

    self    x + Dense(softmax(Q Kᵀ / √d) V),   Q, K, V = Dense(GN(x))          (Ho et al. 2020)
    cross   the same with K, V = Dense(context)              (Rombach et al. 2022, section 3.3)

The last Dense starts at zero, so a new block is the identity. A context is a sequence of vectors,
such as the tokens of a text. No position embedding is added here, so a permutation of the context
together with its mask changes nothing.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.types import Array

# Deviates from Ho's code: its init_scale=0 means a scale of 1e-10, here the weights are exactly 0.
fan_avg = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nn.initializers.zeros


class AttentionBlock(nn.Module):
    """Attention from all pixels to all pixels, or to a context.

    Attributes:
      num_heads: number of heads; must divide C.
      num_groups: groups of the GroupNorm; must divide C. 0 is no GroupNorm.
      dtype: dtype of the computation; the softmax is float32.
      norm_eps: epsilon of the GroupNorm.
    """

    num_heads: int
    num_groups: int
    dtype: jnp.dtype
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None) -> Array:
        """Map x to an array of the same shape, [B, H, W, C].

        Args:
          x: [B, H, W, C], the pixels: they give the queries.
          context: [B, L, D], gives the keys and values; None is self-attention.
          mask: bool [B, L], only with a context: True where a position may be attended to, at
            least once per row.
        """
        batch, height, width, channels = x.shape
        norm: dict[str, Any] = dict(epsilon=self.norm_eps, dtype=self.dtype, name="norm")
        h = nn.GroupNorm(self.num_groups, **norm)(x) if self.num_groups else x
        h = h.reshape(batch, height * width, channels)  #                         [B, HW, C]
        heads = (self.num_heads, channels // self.num_heads)
        attended = h if context is None else context.astype(self.dtype)  #        [B, L, D]
        q, k, v = (
            nn.DenseGeneral(heads, dtype=self.dtype, kernel_init=fan_avg, name=name)(source)
            for name, source in (("query", h), ("key", attended), ("value", attended))
        )  #                                                   [B, HW, heads, d]; k, v: [B, L, ..]
        mask = None if mask is None else mask[:, None, None, :]
        h = jax.nn.dot_product_attention(q, k, v, mask=mask)  # computes the softmax in float32
        h = h.reshape(batch, height, width, channels)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")(h)
