"""Pixels: whole numbers 0..255 on the outside, floats in [-1, 1] on the inside."""

import jax.numpy as jnp

from ddpm_jax.types import Array


def to_x_0(image: Array) -> Array:
    """Scale uint8 pixels {0..255} to float32 in [-1, 1] (Ho et al. 2020, section 3.3)."""
    return image.astype(jnp.float32) / 127.5 - 1.0
