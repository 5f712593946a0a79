"""Score distillation: an image learns from a diffusion model without passing through it.

An image x = g(θ), such as a rendering of a scene, is noised, and the prior's prediction is compared
with the noise (DreamFusion: Poole et al. 2022, eq. 3):

    ∇_θ L = E_{t, ε} [ w(t) (ε̂(x_t; y, t) - ε) ∂x/∂θ ],   x_t = α_t x + σ_t ε

The Jacobian of the network is left out. The expectation is the gradient of a weighted KL between
q(x_t | x) and the prior's marginals (Poole et al. 2022, appendix A.4). It seeks a mode: for a
Gaussian prior, x goes to the mean. Guidance is part of the denoiser (`ddpm_jax.guidance`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess, expand, q_sample
from ddpm_jax.randomness import draw_noise, fold_in
from ddpm_jax.types import Array, DenoiseFn, PRNGKey

LOW, HIGH = 0.02, 0.98  # of T, the range of t (Poole et al. 2022, section 3.2)
T_STREAM, EPS_STREAM = 0, 1  # folded into an image's key

Weighting = Callable[[GaussianProcess, Array], Array]  # (process, t [B]) -> w(t) [B]


def sigma_squared(process: GaussianProcess, t: Array) -> Array:
    """Return w(t) = σ_t² (Poole et al. 2022, section 3.2): [B] float32, for t [B] int32 in 1..T."""
    return jnp.square(process.sqrt_one_minus_alphas_cumprod[t])


def uniform(process: GaussianProcess, t: Array) -> Array:
    """Return w(t) = 1: [B] float32, for t [B] int32 in 1..T."""
    return jnp.ones(jnp.shape(t))


def x_0_error(process: GaussianProcess, t: Array) -> Array:
    """Return w(t) = σ_t / α_t, which makes the gradient x - x̂_0: large t count as much as small t.

    t is [B] int32 in 1..T, and the result [B] float32. It is infinite where α_t = 0.
    """
    return process.sqrt_one_minus_alphas_cumprod[t] / process.sqrt_alphas_cumprod[t]


def draw_times(
    key: PRNGKey, num_timesteps: int, low: ArrayLike = LOW, high: ArrayLike = HIGH
) -> Array:
    """Return t for each image, uniform in {low T .. high T}: [B] int32.

    A lower `high` late in the optimisation adds detail, since large t only move the coarse shape.

    Args:
      key: [B] keys, one for each image.
      num_timesteps: T.
      low, high: in (0, 1], fractions of T with low <= high; they may be traced.
    """
    first = jnp.maximum(1, jnp.round(low * num_timesteps).astype(jnp.int32))
    last = jnp.maximum(first, jnp.round(high * num_timesteps).astype(jnp.int32))
    keys = fold_in(key, T_STREAM)
    return jax.vmap(lambda k: jax.random.randint(k, (), first, last + 1))(keys)


def gradient(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    key: PRNGKey,
    x: Array,
    t: Array,
    weighting: Weighting = sigma_squared,
    *,
    antithetic: bool = False,
) -> Array:
    """Return w(t) (ε̂(x_t; t) - ε) of each image, without a gradient: [B, ...].

    With `antithetic` it is the mean of this for ε and for -ε, with the same t. So all odd powers of
    ε cancel. For a Gaussian prior nothing is left of the noise: the mean is the expected gradient.

    Args:
      process: the chain.
      denoise_fn: the prior, (x_t, t) -> Prediction, with its conditioning and guidance.
      key: [B] keys, one for each image; they draw ε.
      x: [B, ...] float, the images, or their latents for a prior of latents.
      t: [B] int32, in 1..T.
      weighting: w(t).
      antithetic: take ε and -ε, for two calls of the prior on each image.

    Raises:
      UserError: t does not have one number for each image.
    """
    if jnp.shape(t) != (len(x),):
        raise UserError(f"t must have the shape {(len(x),)}, found {jnp.shape(t)}")
    x = jax.lax.stop_gradient(x)
    eps = draw_noise(fold_in(key, EPS_STREAM), x.shape[1:])

    def error(eps: Array) -> Array:
        return denoise_fn(q_sample(process, x, t, eps), t).eps - eps

    found = jax.vmap(error)(jnp.stack([eps, -eps])).mean(axis=0) if antithetic else error(eps)
    return jax.lax.stop_gradient(expand(weighting(process, t), x) * found)


def surrogate(x: Array, gradient: Array) -> Array:
    """Return a scalar whose gradient with respect to θ is the mean of gradient · ∂x/∂θ.

    Its value means nothing. For a prior of latents, x is encode(images of θ), so that the gradient
    goes through the encoder: x = codec.encode(images), with images [B, H, W, C] in [-1, 1].

    Args:
      x: [B, ...] float, a function of θ: what the prior sees, images or latents.
      gradient: [B, ...] float, from `gradient`.
    """
    return (jax.lax.stop_gradient(gradient) * x).sum() / len(x)
