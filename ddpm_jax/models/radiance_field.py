"""A radiance field: density and colour at every point of a scene, and pictures of it.

    density τ and albedo = MLP(encoding(x)),   encoding(x) = [x, sin(2^i π x), cos(2^i π x)]

A ray o + s d is cut into N pieces, one sample in each (stratified). With δ_i between samples,

    α_i = 1 - exp(-τ_i δ_i),   T_i = Π_{j<i} (1 - α_j),   w_i = T_i α_i
    colour = Σ w_i c_i + (1 - Σ w_i) background          (Mildenhall et al. 2020, eq. 3)

The albedo is shaded by Lambert's law with the normal n = -∇τ / |∇τ| and a light direction l
(Poole et al. 2022, eq. 4):   c = albedo (ambient + (1 - ambient) max(0, n · l)).
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.types import Array, Params, PRNGKey


class RadianceField(nn.Module):
    """An MLP from a point to its density and albedo.

    Attributes:
      width: units of the hidden layers.
      depth: number of hidden layers.
      frequencies: number of octaves of the encoding.
      blob: density at the origin before training, which falls with the distance (Poole et al. 2022,
        appendix A.2); 0 is none.
    """

    width: int = 64
    depth: int = 3
    frequencies: int = 5
    blob: float = 5.0

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Map points x [..., 3] to density [...], at least 0, and albedo [..., 3] in (0, 1)."""
        h = encoding(x, self.frequencies)
        for i in range(self.depth):
            h = nn.swish(nn.Dense(self.width, name=f"dense_{i}")(h))
        out = nn.Dense(4, name="out")(h)
        radius = jnp.sqrt(jnp.square(x).sum(axis=-1) + 1e-12)
        density = nn.softplus(out[..., 0] + self.blob * (1.0 - radius / 0.5))
        return density, nn.sigmoid(out[..., 1:])


class Picture(NamedTuple):
    """What a camera sees.

    Attributes:
      colour: [..., 3] float in [0, 1].
      opacity: [...] float in [0, 1], Σ w_i of each ray.
      depth: [...] float, Σ w_i s_i.
    """

    colour: Array
    opacity: Array
    depth: Array


def encoding(x: Array, frequencies: int) -> Array:
    """Return [x, sin(2^i π x), cos(2^i π x)] for i < frequencies: [..., 3 (1 + 2 frequencies)]."""
    scaled = [2.0**i * math.pi * x for i in range(frequencies)]
    return jnp.concatenate([x, *map(jnp.sin, scaled), *map(jnp.cos, scaled)], axis=-1)


def weights(density: Array, lengths: Array) -> tuple[Array, Array]:
    """Return w_i [..., N], and the transmittance behind the last piece [...].

    Args:
      density: [..., N] float, τ_i.
      lengths: [..., N] float, δ_i.
    """
    through = jnp.cumsum(density * lengths, axis=-1)
    before = through - density * lengths
    return jnp.exp(-before) - jnp.exp(-through), jnp.exp(-through[..., -1])


def stratified(key: PRNGKey | None, near: float, far: float, n: int, shape: tuple) -> Array:
    """Return n distances along each ray, one in each of n equal pieces: [*shape, n].

    Args:
      key: draws the places; None takes the middles.
      near, far: the ends of the ray.
      n: number of pieces.
      shape: the shape of the rays.
    """
    place = 0.5 if key is None else jax.random.uniform(key, (*shape, n))
    pieces = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32), (*shape, n))
    return near + (far - near) * (pieces + place) / n


def render(
    field: RadianceField,
    params: Params,
    origins: Array,
    directions: Array,
    *,
    near: float,
    far: float,
    num_samples: int,
    background: Array,
    light: Array | None = None,
    ambient: Array | float = 1.0,
    key: PRNGKey | None = None,
) -> Picture:
    """Return the picture along rays.

    Args:
      field: the field.
      params: its parameters.
      origins, directions: [..., 3] float (`scenes.cameras.rays`).
      near, far: the ends of the rays.
      num_samples: N.
      background: [3] float in [0, 1].
      light: [3] float, the unit direction towards the light; None shows the albedo.
      ambient: in [0, 1], the share of the light that comes from everywhere.
      key: draws the places of the samples; None takes the middles.
    """
    s = stratified(key, near, far, num_samples, origins.shape[:-1])
    x = origins[..., None, :] + s[..., None] * directions[..., None, :]  #        [..., N, 3]

    def density_of(x: Array) -> tuple[Array, tuple[Array, Array]]:
        found: Any = field.apply({"params": params}, x)
        density, albedo = found
        return density.sum(), (density, albedo)

    if light is None:
        _, (density, colour) = density_of(x)
    else:
        slope, (density, albedo) = jax.grad(density_of, has_aux=True)(x)
        length = jnp.sqrt(jnp.square(slope).sum(axis=-1, keepdims=True) + 1e-12)
        facing = -(slope / length * light.reshape((1,) * (x.ndim - 1) + (3,))).sum(axis=-1)
        colour = albedo * (ambient + (1.0 - ambient) * jnp.maximum(facing, 0.0))[..., None]
    w, rest = weights(density, jnp.full_like(s, (far - near) / num_samples))
    behind = background.reshape((1,) * (origins.ndim - 1) + (3,))
    shown = (w[..., None] * colour).sum(axis=-2) + rest[..., None] * behind
    return Picture(shown, 1.0 - rest, (w * s).sum(axis=-1))
