"""DDIM: sampling with any amount of noise, and the way back from data to noise.

  x_s = alpha_s x̂_0 + √(sigma_s² - σ²) ε̂ + σ z,  z ~ N(0, I)       (Song et al. 2021, eq. 12)
  σ   = η √β̃ = η √((1-ᾱ_s)/(1-ᾱ_t)) √(1-ᾱ_t/ᾱ_s)                   (eq. 16)

for any s < t. η = 0 solves the probability-flow ODE by Euler's method (eqs. 13, 14). The same ODE
walked upwards encodes x_0 as an x_T (section 4.3). Sampling from this x_T returns x_0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.pixels import check_x_0
from ddpm_jax.process import GaussianProcess, alpha_sigma
from ddpm_jax.samplers.base import Noise, Sampler, sample_loop, with_options
from ddpm_jax.samplers.ode import interval
from ddpm_jax.timesteps import check_grid
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey, Timesteps


class DDIMState(NamedTuple):
    """The sample, [B, ...] float32."""

    x: Array


def ddim(process: GaussianProcess, eta: float = 0.0) -> Sampler:
    """Build the DDIM sampler (Song et al. 2021, eqs. 12 and 16); one evaluation a step.

    Limits: eta = 1 is ancestral sampling with fixed_small. The last step returns x̂_0. If all data
    are one point, the sampler returns it exactly. eta = 0 has order 1.

    Args:
      process: the chain.
      eta: η in [0, 1], the noise of a step relative to the posterior's. 0 draws no noise.

    Raises:
      UserError: eta is not in [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta must be in [0, 1], found {eta}")

    return Sampler(process, DDIMState, with_options(_advance, eta=float(eta)))


def _advance(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    noise: Noise,
    key: PRNGKey,
    state: DDIMState,
    t: Array,
    s: Array,
    *,
    eta: float,
) -> tuple[DDIMState, Prediction]:
    prediction = denoise_fn(state.x, t)
    alpha_s, sigma_s = alpha_sigma(process, s, state.x)
    if eta == 0.0:
        return DDIMState(alpha_s * prediction.x_0 + sigma_s * prediction.eps), prediction
    way = interval(process, t, s)
    # √(sigma_s² - σ²), with sigma_s² written as sigma_s² (e^{-2h} + 1 - e^{-2h}): nothing cancels
    kept = jnp.sqrt(jnp.exp(-2.0 * way.h) + (1.0 - eta**2) * way.fraction)
    added = eta * jnp.sqrt(way.fraction) * noise(key, t, state.x.shape)
    x_s = alpha_s * prediction.x_0 + sigma_s * (kept * prediction.eps + added)
    return DDIMState(x_s), prediction


def ddim_inversion(process: GaussianProcess) -> Sampler:
    """Build the inverse of `ddim` at eta = 0, for `sample_loop` on an ascending grid from x_0.

      x_s = alpha_s x̂_0(x_t, t) + sigma_s ε̂(x_t, t),  s > t          (Song et al. 2021, eq. 14)

    One evaluation a step. At t = 0 the network cannot be called, but x_0 is known. There ε̂ is taken
    at s, from the mean of x_s: x_s = alpha_s x_0 + sigma_s ε̂(alpha_s x_0, s).

    Limits: sampling by `ddim` on the same grid returns the image, but not exactly. The error is of
    order 1 in the length of the steps. Use a denoiser with `clip_x_0=False`.
    """
    return Sampler(process, DDIMState, _advance_inversion, direction="up")


def _advance_inversion(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    noise: Noise,
    key: PRNGKey,
    state: DDIMState,
    t: Array,
    s: Array,
) -> tuple[DDIMState, Prediction]:
    alpha_s, sigma_s = alpha_sigma(process, s, state.x)
    clean = t == 0
    prediction = denoise_fn(jnp.where(clean, alpha_s * state.x, state.x), jnp.where(clean, s, t))
    x_0 = jnp.where(clean, state.x, prediction.x_0)
    return DDIMState(alpha_s * x_0 + sigma_s * prediction.eps), prediction


def encode(
    process: GaussianProcess, denoise_fn: DenoiseFn, timesteps: Timesteps, x_0: Array
) -> Array:
    """Return the x_T from which `ddim` samples x_0: [B, ...] (Song et al. 2021, section 4.3).

    Args:
      process: the chain.
      denoise_fn: the denoiser, without clipping.
      timesteps: [K+1] int32, the grid of the sampler, strictly descending to 0. The inversion walks
        it upwards.
      x_0: [B, ...] float, clean data.

    Raises:
      UserError: the grid is wrong, or x_0 is not float.
    """
    check_x_0(x_0)
    timesteps = check_grid(timesteps, process.num_timesteps)
    unused = jax.random.split(jax.random.key(0), x_0.shape[0])
    return sample_loop(ddim_inversion(process), denoise_fn, unused, timesteps[::-1], x_0)
