"""Pixels: whole numbers k in 0..255 on the outside, floats x_0 = k / 127.5 - 1 on the inside."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax.errors import NotFiniteError, UserError
from ddpm_jax.types import Array, PRNGKey

SCALE = 127.5  # pixel values in one unit of x_0
HALF_BIN = 0.5 / SCALE  # half the distance in x_0 between two neighbouring pixel values
VALUES = np.arange(256, dtype=np.float32) / SCALE - 1.0  # x_0 of the pixel values 0..255


def to_x_0(image: Any) -> Any:
    """Scale uint8 pixels {0..255} to float32 in [-1, 1] (Ho et al. 2020, section 3.3).

    A numpy array stays on the host.

    Args:
      image: uint8 of any shape.

    Returns:
      float32, in the shape of `image`.
    """
    return image.astype(jnp.float32) / SCALE - 1.0


def check_x_0(x_0: ArrayLike) -> None:
    """Raise `UserError` if x_0 is not an array of floats, such as the pixels of a file."""
    dtype = jnp.result_type(x_0)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"x_0 must be float, in [-1, 1], found {dtype}; convert uint8 pixels with "
            "ddpm_jax.pixels.to_x_0"
        )


def to_uint8(x_0: ArrayLike) -> np.ndarray:
    """Return images in [-1, 1] as uint8 {0..255} on the host, rounded and clipped.

    Args:
      x_0: [B, ...] float; values outside of [-1, 1] are clipped.

    Returns:
      [B, ...] uint8.

    Raises:
      NotFiniteError: a NaN or an infinity, which has no pixel value.
    """
    images = np.asarray(x_0)
    if not (finite := np.isfinite(images)).all():
        index = np.argwhere(~finite)[0]
        bad = np.unique(np.argwhere(~finite)[:, 0]).size
        raise NotFiniteError(
            f"{bad} of {len(images)} images are not finite (NaN or infinity), the first at index "
            f"{tuple(map(int, index))}; if the weights are finite, sample with clip_x_0, with "
            "model.dtype=float32 or with another sampler"
        )
    return rounded(images)


def rounded(x_0: Any) -> Any:
    """Return images in [-1, 1] as uint8 {0..255}, rounded and clipped; NaN has no defined value.

    A numpy array stays on the host. Traced arrays work too.
    """
    return ((x_0 + 1) * SCALE).round().clip(0, 255).astype(np.uint8)


def dequantise(key: PRNGKey, image: Array) -> Array:
    """Return (k + u - 1/2) / 127.5 - 1 of pixels k, u uniform in [0, 1): [B, ...] float32.

    Each bin is centred on the value x_0 = k / 127.5 - 1 that training uses.

    Args:
      key: [B] keys, one for each image (`randomness.image_keys`).
      image: [B, ...] uint8.
    """
    u = jax.vmap(lambda k: jax.random.uniform(k, image.shape[1:]))(key)
    return (jnp.asarray(image, jnp.float32) + (u - 0.5)) / SCALE - 1.0


def psnr(x: Array, other: Array) -> Array:
    """Return the peak signal-to-noise ratio of each pair, 10 log₁₀(2² / MSE), in dB: [B].

    The mean squared error counts as at least 1e-10. So equal images have 106 dB.

    Args:
      x: [B, ...] float, in [-1, 1].
      other: [B, ...] float; values outside of [-1, 1] are clipped.
    """
    error = x - jnp.clip(other, -1.0, 1.0)
    square = jnp.square(error).mean(axis=tuple(range(1, x.ndim)))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(square, 1e-10))
