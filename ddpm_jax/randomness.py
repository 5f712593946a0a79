"""Random numbers: one key for each image, one key for each step of an image, and noise from keys.

  key of image i          fold_in(key, i)
  key of its step at t    fold_in(key of image i, t),  t in 1..T
  key of its x_T          fold_in(key of image i, 0)
  key of its cond at t    fold_in(fold_in(key of image i, 2^32 - 1), t)

An image depends on its own key only: not on the batch, its size or the devices. Key
implementations such as rbg and unsafe_rbg break this promise, because `jax.vmap` over their keys
draws numbers that depend on the batch. So the functions here convert every key to threefry2x32.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddpm_jax.types import Array, PRNGKey

MAX_SEED = 2**32 - 1  # JAX and `fold_in` count modulo 2^32: a larger number is another one again

_IMPLEMENTATION = "threefry2x32"


def image_keys(key: PRNGKey, index: ArrayLike) -> PRNGKey:
    """Return the keys of images: [n], fold_in(key, index[i]) for image i.

    Args:
      key: one key, of any implementation: from `jax.random.key` or `jax.random.PRNGKey`.
      index: [n] int, the images' numbers, for instance np.arange(start, start + n).
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(threefry(key), jnp.asarray(index, jnp.uint32))


def fold_in(key: PRNGKey, data: ArrayLike) -> PRNGKey:
    """Return fold_in(key[i], data) for each image i: [B] keys.

    Args:
      key: [B] keys, one for each image.
      data: int, a scalar or one number for each image, for instance the timestep.
    """
    numbers = jnp.asarray(data)
    return jax.vmap(jax.random.fold_in, (0, 0 if numbers.ndim else None))(threefry(key), numbers)


def draw_noise(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Draw noise of N(0, I): [B, *shape] float32, each image from its own key.

    Args:
      key: [B] keys, one for each image.
      shape: the shape of one image.
    """
    return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(threefry(key))


def draw_x_T(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Draw x_T of N(0, I): [B, *shape] float32, each image from fold_in(key[i], 0).

    No step leaves t = 0, so x_T is independent of the noise of every step.

    Args:
      key: [B] keys, one for each image.
      shape: the shape of one image.
    """
    return draw_noise(fold_in(key, 0), shape)


def cond_keys(key: PRNGKey, t: ArrayLike) -> PRNGKey:
    """Return the keys of random choices of the conditioning at t: [B] keys.

    They are independent of the noise of every step, because t is below 2^32 - 1.

    Args:
      key: [B] keys, one for each image.
      t: int, a scalar or one number for each image.
    """
    return fold_in(fold_in(key, jnp.uint32(MAX_SEED)), t)


def threefry(key: PRNGKey) -> PRNGKey:
    """Return a key, or an array of keys, as typed keys of threefry2x32.

    Keys of threefry2x32 stay the same keys. The first two words of another key become a key of
    threefry2x32, and the other words are folded in.

    Args:
      key: keys of any implementation, typed (`jax.random.key`) or raw uint32 words of the default
        implementation (`jax.random.PRNGKey`).
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(key)) == _IMPLEMENTATION:
        return key
    words = jax.random.key_data(key)
    key = jax.random.wrap_key_data(words[..., :2], impl=_IMPLEMENTATION)
    fold = jax.random.fold_in
    for _ in range(key.ndim):
        fold = jax.vmap(fold)
    for i in range(2, words.shape[-1]):
        key = fold(key, words[..., i])
    return key
