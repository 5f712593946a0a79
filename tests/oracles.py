"""What the tests hold the library against: the papers' mathematics by another route, in float64.

The library cumulates logarithms; here the chain is solved as a linear system, conditioned by
inverting covariance matrices, and integrated against known data distributions.
"""

import functools

import numpy as np

from ddpm_jax import schedules

LENGTHS = (1, 2, 10, 700, 1000)
BASE_SCHEDULES = ("linear", "cosine", "quadratic", "sigmoid", "constant")
SCHEDULES = (*BASE_SCHEDULES, "linear_zero_snr", "cosine_zero_snr")
CHAINS = [(schedule, T) for schedule in SCHEDULES for T in LENGTHS]


def is_zero_snr(schedule: str) -> bool:
    """Whether alpha_bar_T is 0, so that eps cannot be the kind."""
    return schedule.endswith("_zero_snr")


def kinds(schedule: str) -> tuple[str, ...]:
    """The kinds that a chain of this schedule can use."""
    return ("x_0", "v") if is_zero_snr(schedule) else ("eps", "x_0", "v")


def betas(schedule: str, T: int) -> np.ndarray:
    """The betas of a named chain; where the default ends would reach 1, ends of our own."""
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
    """Mean (per unit of x_0) and covariance of (x_0, x_1 .. x_T) given x_0, entry 0 being x_0.

    The chain x_t - sqrt(1 - beta_t) x_{t-1} = sqrt(beta_t) z_t is one linear system M x = noise,
    so the mean is M^-1 e_0 and the covariance M^-1 diag(0, betas) M^-T.
    """
    b = betas(schedule, T)
    inverse = np.linalg.inv(np.eye(T + 1) - np.diag(np.sqrt(1.0 - b), -1))
    return inverse[:, 0], (inverse * np.append(0.0, b)) @ inverse.T


def posterior(schedule: str, T: int, t: int, s: int) -> tuple[float, float, float]:
    """(c_1, c_2, variance) of q(x_s | x_t, x_0) = N(c_1 x_0 + c_2 x_t, variance), for 1 <= s < t.

    By the precision matrix of (x_s, x_t) given x_0: its s, s entry is 1 / variance.
    """
    mean, covariance = chain_moments(schedule, T)
    precision = np.linalg.inv(covariance[np.ix_([s, t], [s, t])])
    c_2 = -precision[0, 1] / precision[0, 0]
    return mean[s] - c_2 * mean[t], c_2, 1.0 / precision[0, 0]


def gaussian_kl(mean_1, variance_1, mean_2, variance_2):
    """KL(N(mean_1, variance_1) || N(mean_2, variance_2)), elementwise."""
    ratio = variance_1 / variance_2
    return 0.5 * (ratio - 1.0 - np.log(ratio) + (mean_1 - mean_2) ** 2 / variance_2)
