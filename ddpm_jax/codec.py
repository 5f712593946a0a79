"""A codec: images to standardised latents and back, for latent diffusion.

    z = μ(x) + σ(x) ε,   x_0 = (z - m) / s,   x̂ = decoder(s x_0 + m)

The encoder gives μ and σ (Rombach et al. 2022, section 3.1). m and s are the mean and the standard
deviation of each channel of z over the training set. So the latents that a process adds noise to
have mean 0 and deviation 1, as the schedules expect.

Deviates from Rombach et al., who divide all channels by one number and do not subtract a mean
(section 4.3.2 and appendix G).
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Array, Params, PRNGKey


class Scale(NamedTuple):
    """Mean m and standard deviation s of each channel of the latents: [c] float32 each."""

    mean: Array | np.ndarray
    deviation: Array | np.ndarray

    def standardise(self, z: Array) -> Array:
        """Return (z - m) / s, for z [B, h, w, c]."""
        mean, deviation = (jnp.asarray(part)[None, None, None] for part in self)
        return (z - mean) / deviation

    def restore(self, x_0: Array) -> Array:
        """Return s x_0 + m, the inverse of `standardise`."""
        mean, deviation = (jnp.asarray(part)[None, None, None] for part in self)
        return x_0 * deviation + mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codec:
    """An autoencoder with its weights and the scale of its latents; a pytree.

    Attributes:
      params: the weights.
      scale: the scale of the latents.
      encoder: (params, images [B, H, W, C] in [-1, 1]) -> (mean, log_variance), [B, h, w, c] each.
      decoder: (params, z [B, h, w, c]) -> images [B, H, W, C].
      image_shape: (H, W, C).
      latent_shape: (h, w, c).
      digest: a hash of the weights, the identity of the codec.
    """

    params: Params
    scale: Scale
    encoder: Callable = dataclasses.field(metadata=dict(static=True))
    decoder: Callable = dataclasses.field(metadata=dict(static=True))
    image_shape: tuple[int, int, int] = dataclasses.field(metadata=dict(static=True))
    latent_shape: tuple[int, int, int] = dataclasses.field(metadata=dict(static=True))
    digest: str = dataclasses.field(metadata=dict(static=True))

    def moments(self, images: Array) -> Array:
        """Return the mean and the log variance of the latents, side by side: [B, h, w, 2c]."""
        return jnp.concatenate(self.encoder(self.params, images), axis=-1)

    def encode(self, images: Array, key: PRNGKey | None = None) -> Array:
        """Return standardised latents [B, h, w, c] of images [B, H, W, C] in [-1, 1].

        Args:
          images: [B, H, W, C] float.
          key: draws z; None takes the mean.
        """
        return standardised(self.scale, self.moments(images), key)

    def decode(self, x_0: Array) -> Array:
        """Return the images [B, H, W, C] of standardised latents [B, h, w, c]."""
        return self.decoder(self.params, self.scale.restore(x_0))


def latent(mean: Array, log_variance: Array, eps: Array) -> Array:
    """Return z = μ + σ ε, with σ² = exp(log_variance); all arrays are [B, h, w, c] float."""
    return mean + jnp.exp(0.5 * log_variance) * eps


def standardised(scale: Scale, moments: Array, key: PRNGKey | None) -> Array:
    """Return standardised latents, float32 [B, h, w, c].

    Args:
      scale: the scale of the latents.
      moments: [B, h, w, 2c], the mean and the log variance.
      key: draws z; None takes the mean.
    """
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    if key is None:
        return scale.standardise(mean)
    return scale.standardise(latent(mean, log_variance, jax.random.normal(key, mean.shape)))


def kl(mean: Array, log_variance: Array) -> Array:
    """Return KL(N(μ, σ²) | N(0, I)) = ½ Σ (μ² + σ² - 1 - log σ²), in nats: [B].

    Args:
      mean: [B, ...].
      log_variance: [B, ...].
    """
    terms = jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance
    return 0.5 * terms.sum(axis=tuple(range(1, mean.ndim)))


def scale_of(chunks: Iterable[np.ndarray]) -> Scale:
    """Return the mean and the deviation of each channel of z over a set, on the host.

    The variance of z is the mean of σ² plus the variance of μ.

    Args:
      chunks: the moments of the whole set, [n, h, w, 2c] each.
    """
    count, sums = 0, np.zeros(())
    for chunk in chunks:
        mean, log_variance = np.split(chunk.astype(np.float64), 2, axis=-1)
        count += mean[..., 0].size
        found = np.stack([mean, np.square(mean), np.exp(log_variance)])
        sums = sums + found.sum(axis=(1, 2, 3))  #                                 [3, c]
    mean, square, variance = sums / count
    deviation = np.sqrt(np.maximum(square - np.square(mean), 0.0) + variance)
    return Scale(mean.astype(np.float32), deviation.astype(np.float32))
