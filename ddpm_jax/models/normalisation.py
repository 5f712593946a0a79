"""GroupNorm followed by swish, with a gradient of its own on GPUs.

    y = swish(z),   z = γ x̂ + β,   x̂ = (x - μ) / √(σ² + ε)           (Wu & He 2018; μ, σ² per group)

XLA's gradient for GPUs writes several arrays in float32 that have the size of x. Here the forward
pass keeps only x, μ and 1/√(σ² + ε), and the backward pass computes x̂ and z again, twice:

    dz = dy swish'(z),   dγ = Σ dz x̂,   dβ = Σ dz
    dx = (γ dz - mean(γ dz) - x̂ mean(γ dz x̂)) / √(σ² + ε)             (means over the group)

The barriers keep XLA from sharing dz between the sums and dx, which would write dz in float32. So
the sums over the pixels have two stages: first some rows, then all of them. `benchmarks/program.py`
shows the bytes of a train step: CIFAR-10 moves 5 % less (benchmarks/README.md).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ddpm_jax.runtime.platform import platform
from ddpm_jax.types import Array

IN_A_THREAD, IN_A_BLOCK = 31, 256  # pixels that the first stage of a sum adds, see `_over_pixels`


def norm_swish(
    x: Array, train: bool, *, num_groups: int, epsilon: float, dtype: Any, name: str
) -> Array:
    """Return swish(GN(x)), of the shape of x, inside a Flax module.

    The parameters `scale` and `bias` have the same names and values on every platform.

    Args:
      x: [B, H, W, C]; or frames [B, F, H, W, C], which share the statistics.
      train: whether this is training. Only then a GPU has its own gradient, because it has no
        forward mode.
      num_groups: number of groups; must divide C.
      epsilon: ε.
      dtype: dtype of the output; the statistics are float32.
      name: name of the parameters.
    """
    if train and platform() == "gpu":
        return _NormSwish(num_groups, epsilon, dtype, name=name)(x)
    norm: dict[str, Any] = dict(num_groups=num_groups, epsilon=epsilon, dtype=dtype, name=name)
    return nn.swish(nn.GroupNorm(**norm)(x))


class _NormSwish(nn.Module):
    num_groups: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        shape = (1, 1, 1, channels)
        rows = x.reshape(x.shape[0], -1, *x.shape[-2:])  #                         [B, FH, W, C]
        arrays = rows, scale.reshape(shape), bias.reshape(shape)
        y: Any = with_own_gradient(self.num_groups, self.epsilon, self.dtype, *arrays)
        return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def with_own_gradient(
    groups: int, epsilon: float, dtype: Any, x: Array, scale: Array, bias: Array
) -> Array:
    """Return swish(GN(x)), with the gradient of this module.

    Args:
      groups, epsilon, dtype: as in `norm_swish`.
      x: [B, H, W, C].
      scale, bias: γ and β, float32 [1, 1, 1, C].
    """
    return _forward(groups, epsilon, dtype, x, scale, bias)[0]


def _forward(
    groups: int, epsilon: float, dtype: Any, x: Array, scale: Array, bias: Array
) -> tuple[Array, tuple]:
    wide = x.astype(jnp.float32)
    sums = _over_pixels(wide), _over_pixels(jnp.square(wide))
    mean, square = (_of_groups(s, groups, x.shape) for s in sums)
    rate = lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + epsilon)
    z = _x_hat(x, mean, rate) * scale + bias
    return nn.swish(z).astype(dtype), (x, mean, rate, scale, bias)


def _backward(groups: int, epsilon: float, dtype: Any, kept: tuple, dy: Array) -> tuple:
    x, mean, rate, scale, bias = kept

    def dz_and_x_hat(x: Array) -> tuple[Array, Array]:
        x_hat = _x_hat(x, mean, rate)
        z = x_hat * scale + bias
        gate = nn.sigmoid(z)
        return dy.astype(jnp.float32) * gate * (1.0 + z * (1.0 - gate)), x_hat

    dz, x_hat = dz_and_x_hat(x)
    sums = _over_pixels(dz), _over_pixels(dz * x_hat)
    x, *sums = lax.optimization_barrier((x, *sums))
    first, second = (_of_groups(scale[0, 0] * s, groups, x.shape) for s in sums)
    dz, x_hat = dz_and_x_hat(x)
    dx = _wide(rate, x) * (scale * dz - _wide(first, x) - x_hat * _wide(second, x))
    of_bias, of_scale = (s.sum(axis=0).reshape(scale.shape) for s in sums)
    return dx.astype(x.dtype), of_scale, of_bias


with_own_gradient.defvjp(_forward, _backward)


def _over_pixels(x: Array) -> Array:
    """Sum [B, H, W, C] over the pixels, in two stages: [B, C].

    The first stage adds whole rows. XLA adds up to IN_A_THREAD pixels in one thread. More pixels go
    through shared memory, at a cost for each block of threads, so a block gets several rows.
    """
    batch, height, width, channels = x.shape
    most = max(1, IN_A_BLOCK // width) if width > IN_A_THREAD else 1
    rows = max(n for n in range(1, most + 1) if height % n == 0)
    parts = x.reshape(batch, height // rows, rows * width, channels)
    return lax.optimization_barrier(parts.sum(axis=2)).sum(axis=1)


def _of_groups(sums: Array, groups: int, shape: tuple[int, ...]) -> Array:
    """Return the means over the groups of images of a shape, from sums over the pixels [B, C]."""
    batch, height, width, channels = shape
    return sums.reshape(batch, groups, -1).sum(axis=2) / (height * width * channels // groups)


def _x_hat(x: Array, mean: Array, rate: Array) -> Array:
    return (x.astype(jnp.float32) - _wide(mean, x)) * _wide(rate, x)


def _wide(values: Array, x: Array) -> Array:
    """Repeat [B, groups] for the channels of each group of x: [B, 1, 1, C]."""
    return jnp.repeat(values, x.shape[-1] // values.shape[1], axis=1)[:, None, None, :]
