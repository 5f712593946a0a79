"""Euler's and Heun's methods in σ̄ = sigma_t/alpha_t over x̄ = x_t/alpha_t, with optional churn.

  dx̄/dσ̄ = ε̂(x_t, t)                                  the probability-flow ODE
  churn:  t̂ >= t with σ̄_t̂ ≈ (1+γ) σ̄_t,  x̄_t̂ = x̄_t + √(σ̄_t̂² - σ̄_t²) S_noise z
  Euler:  x̄_s = x̄_t̂ + (σ̄_s - σ̄_t̂) ε̂_t̂
  Heun:   x̄_s = x̄_t̂ + (σ̄_s - σ̄_t̂) (ε̂_t̂ + ε̂_s) / 2,  ε̂_s at Euler's x_s
                                        (Karras et al. 2022, algorithms 1 and 2, eq. 5's σ)

Deviates from algorithm 2: the network knows the table's timesteps only. Churn therefore goes to the
timestep nearest in ln σ̄ to (1+γ) σ̄_t. If t is the nearest itself, no noise is added. With
S_noise = 1 churn is a step of the forward chain, x_t̂ ~ q(x_t̂ | x_t).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess, alpha_sigma, jump, read
from ddpm_jax.samplers.base import Noise, Sampler, with_options
from ddpm_jax.samplers.ode import interval, nearest
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey

MAX_GAMMA = math.sqrt(2.0) - 1.0  # the cap of algorithm 2


class EDMState(NamedTuple):
    """The sample, [B, ...] float32."""

    x: Array


def euler(
    process: GaussianProcess,
    gamma: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Sampler:
    """Build Euler's method (Karras et al. 2022, algorithm 2 without its second half).

    One evaluation a step; order 1.

    Limits: gamma = 0 is `ddim` at eta = 0. The last step returns x̂_0. If all data are one point,
    the sampler returns it exactly.

    Args:
      process: the chain.
      gamma: γ in [0, √2 - 1], the churn of a step: S_churn / num_steps in the paper. 0 draws no
        noise.
      s_min: S_tmin >= 0. There is no churn if σ̄ = sigma_t/alpha_t is below it.
      s_max: S_tmax >= s_min. There is no churn if σ̄ is above it.
      s_noise: S_noise > 0, the scale of the churn's noise; about 1.

    Raises:
      UserError: an argument is out of its range.
    """
    return _edm(process, gamma, s_min, s_max, s_noise, second_order=False)


def heun(
    process: GaussianProcess,
    gamma: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Sampler:
    """Build Heun's method (Karras et al. 2022, algorithm 1; with churn algorithm 2).

    Two evaluations a step and one in the last, 2 num_steps - 1 in all; order 2. The step to s = 0
    is Euler's, as in the paper. With zero terminal SNR the step from t = T is Euler's too, because
    it is infinitely long in σ̄.

    Limits: the last step returns x̂_0. If all data are one point, the sampler returns it exactly.
    Arguments and errors as in `euler`.
    """
    return _edm(process, gamma, s_min, s_max, s_noise, second_order=True)


def _edm(
    process: GaussianProcess,
    gamma: float,
    s_min: float,
    s_max: float,
    s_noise: float,
    second_order: bool,
) -> Sampler:
    if not 0.0 <= gamma <= MAX_GAMMA:
        raise UserError(f"gamma must be in [0, {MAX_GAMMA:.4f}] (√2 - 1), found {gamma}")
    if not 0.0 <= s_min <= s_max:
        raise UserError(
            f"s_min and s_max must satisfy 0 <= s_min <= s_max, found {s_min} and {s_max}"
        )
    if not s_noise > 0.0:
        raise UserError(f"s_noise must be > 0, found {s_noise}")

    options = dict(
        gamma=float(gamma), s_min=float(s_min), s_max=float(s_max), s_noise=float(s_noise)
    )
    advance = with_options(_advance, second_order=second_order, **options)
    return Sampler(process, EDMState, advance)


def _advance(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    noise: Noise,
    key: PRNGKey,
    state: EDMState,
    t: Array,
    s: Array,
    *,
    gamma: float,
    s_min: float,
    s_max: float,
    s_noise: float,
    second_order: bool,
) -> tuple[EDMState, Prediction]:
    x = state.x
    if gamma:
        t, t_start = _churned(process, t, gamma, s_min, s_max), t
        ratio, beta = jump(process, t, t_start)
        added = s_noise * jnp.sqrt(beta) * noise(key, t_start, x.shape)
        x = jnp.where(t == t_start, x, ratio * x + added)
    prediction = denoise_fn(x, t)
    alpha_s, sigma_s = alpha_sigma(process, s, x)
    x_s = alpha_s * prediction.x_0 + sigma_s * prediction.eps  # Euler's step, in x
    if not second_order:
        return EDMState(x_s), prediction
    alpha_t, sigma_t = alpha_sigma(process, t, x)

    def correct(x_s: Array) -> Array:
        length = interval(process, t, s).gain * (sigma_t / alpha_t)  # alpha_s (σ̄_t - σ̄_s)
        slope = denoise_fn(x_s, jnp.maximum(s, 1)).eps - prediction.eps
        return x_s - 0.5 * length * slope

    is_euler = (s == 0) | (read(process.alphas_cumprod, t) == 0.0)
    return EDMState(jax.lax.cond(is_euler, lambda x_s: x_s, correct, x_s)), prediction


def _churned(process: GaussianProcess, t: Array, gamma: float, s_min: float, s_max: float) -> Array:
    """Return t̂, the timestep to which churn raises t; int32 scalar, equal to t without churn."""
    log_snr = read(process.log_snr, t)
    T = jnp.int32(process.num_timesteps)
    t_hat = nearest(process, log_snr - 2.0 * math.log1p(gamma), t, T)
    sigma_bar = jnp.exp(-0.5 * log_snr)
    inside = (s_min <= sigma_bar) & (sigma_bar <= s_max) & (t < T)
    return jnp.where(inside, t_hat, t)
