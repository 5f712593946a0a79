"""Reference values for the tests: the papers' mathematics by another route than the library's.

The library sums logarithms. Here the chain is solved as a linear system in float64, and posteriors
come from inverted covariance matrices. The denoisers are exact for known data distributions.
"""

import functools

import jax.numpy as jnp
import numpy as np

from ddpm_jax import schedules
from ddpm_jax.types import Prediction

LENGTHS = (1, 2, 10, 700, 1000)
BASE_SCHEDULES = ("linear", "cosine", "quadratic", "sigmoid", "constant")
SCHEDULES = (*BASE_SCHEDULES, "linear_zero_snr", "cosine_zero_snr")
CHAINS = [(schedule, T) for schedule in SCHEDULES for T in LENGTHS]


def is_zero_snr(schedule: str) -> bool:
    """Return whether alpha_bar_T is 0; then a network cannot predict eps."""
    return schedule.endswith("_zero_snr")


def kinds(schedule: str) -> tuple[str, ...]:
    """Return the kinds of prediction that a chain with this schedule allows."""
    return ("x_0", "v") if is_zero_snr(schedule) else ("eps", "x_0", "v")


def betas(schedule: str, T: int) -> np.ndarray:
    """Return the betas of a named chain; if T <= 20, with ends that keep every beta below 1."""
    if is_zero_snr(schedule):
        return schedules.zero_terminal_snr(betas(schedule.removesuffix("_zero_snr"), T))
    ends = {} if T > 20 else dict(beta_1=0.05, beta_T=0.6)
    if schedule == "constant":
        return schedules.constant(T, 0.3 if T <= 20 else None)
    if schedule == "cosine":
        return schedules.cosine(T)
    return getattr(schedules, schedule)(T, **ends)


@functools.cache
def chain_moments(schedule: str, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [T+1] and covariance [T+1, T+1] of (x_0, x_1 .. x_T) given x_0 = 1.

    The chain x_t - sqrt(1 - beta_t) x_{t-1} = sqrt(beta_t) z_t is a linear system M x = noise. So
    the mean is M^-1 e_0, and the covariance is M^-1 diag(0, betas) M^-T.
    """
    b = betas(schedule, T)
    inverse = np.linalg.inv(np.eye(T + 1) - np.diag(np.sqrt(1.0 - b), -1))
    return inverse[:, 0], (inverse * np.append(0.0, b)) @ inverse.T


def posterior(schedule: str, T: int, t: int, s: int) -> tuple[float, float, float]:
    """Return (c_1, c_2, variance) of q(x_s | x_t, x_0) = N(c_1 x_0 + c_2 x_t, variance).

    Needs 1 <= s < t. The values come from the precision matrix of (x_s, x_t) given x_0: its (s, s)
    entry is 1 / variance.
    """
    mean, covariance = chain_moments(schedule, T)
    precision = np.linalg.inv(covariance[np.ix_([s, t], [s, t])])
    c_2 = -precision[0, 1] / precision[0, 0]
    return mean[s] - c_2 * mean[t], c_2, 1.0 / precision[0, 0]


def gaussian_kl(mean_1, variance_1, mean_2, variance_2):
    """Return KL(N(mean_1, variance_1) || N(mean_2, variance_2)) in nats, elementwise."""
    ratio = variance_1 / variance_2
    return 0.5 * (ratio - 1.0 - np.log(ratio) + (mean_1 - mean_2) ** 2 / variance_2)


# Bayes-optimal denoisers: E[x_0 | x_t] for known data, in the dtype of the process.


def tables(process, t):
    """Return the scalars alpha_t and sigma_t."""
    return process.sqrt_alphas_cumprod[t], process.sqrt_one_minus_alphas_cumprod[t]


def gaussian_denoiser(process, covariance=((1.0,),), mean=0.0):
    """Return the exact denoiser of data N(mean, covariance); covariance is over the last axis."""
    variances, axes = np.linalg.eigh(np.asarray(covariance))

    def denoise_fn(x_t, t):
        alpha_t, sigma_t = tables(process, t)
        v, q = jnp.asarray(variances, x_t.dtype), jnp.asarray(axes, x_t.dtype)
        gain = (q * jnp.expand_dims(alpha_t * v / (alpha_t**2 * v + sigma_t**2), 0)) @ q.T
        centred = x_t - alpha_t * mean
        x_0 = mean + centred @ gain
        rest = (q * jnp.expand_dims(sigma_t / (alpha_t**2 * v + sigma_t**2), 0)) @ q.T
        return Prediction(x_0, centred @ rest)

    return denoise_fn


def point_denoiser(process, point=0.6):
    """Return the exact denoiser of data that are one point: every pixel is `point`."""

    def denoise_fn(x_t, t):
        alpha_t, sigma_t = tables(process, t)
        return Prediction(jnp.full_like(x_t, point), (x_t - alpha_t * point) / sigma_t)

    return denoise_fn


def mixture_denoiser(process, modes=((0.3, -0.8, 0.2), (0.7, 0.5, 0.3))):
    """Return the exact denoiser of independent pixels from a mixture of Gaussians.

    modes: (weight, mean, standard deviation) of each Gaussian.
    """

    def denoise_fn(x_t, t):
        alpha_t, sigma_t = tables(process, t)
        log, means = [], []
        for weight, mean, deviation in modes:
            spread = (alpha_t * deviation) ** 2 + sigma_t**2
            centred = x_t - alpha_t * mean
            log.append(np.log(weight) - 0.5 * jnp.log(spread) - centred**2 / (2.0 * spread))
            means.append(mean + alpha_t * deviation**2 / spread * centred)
        log = jnp.stack(log)
        posterior = jnp.exp(log - log.max(axis=0, keepdims=True))
        x_0 = (posterior * jnp.stack(means)).sum(axis=0) / posterior.sum(axis=0)
        return Prediction(x_0, (x_t - alpha_t * x_0) / sigma_t)

    return denoise_fn
