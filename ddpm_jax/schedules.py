"""Schedules of the forward noise, beta_1 .. beta_T, in numpy float64.

  q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I)        (Ho et al. 2020, eq. 2)

A schedule is a function of the number of timesteps T that returns `betas`: [T] float64, each in
(0, 1). The ends default to Ho's 1e-4 and 0.02 scaled by 1000 / T, so that a chain of any length
ends equally noisy.
"""

import numpy as np

from ddpm_jax.errors import UserError


def linear(T: int, beta_1: float | None = None, beta_T: float | None = None) -> np.ndarray:
    """Return betas that rise linearly from beta_1 to beta_T (Ho et al. 2020, section 4).

    Args:
      T: number of timesteps; T = 1 is beta_1 alone.
      beta_1: first beta; None is 1e-4 * 1000 / T.
      beta_T: last beta; None is 0.02 * 1000 / T, which reaches 1 for T of 20 or less.

    Raises:
      UserError: T is not an integer of at least 1, or an end is not in (0, 1).
    """
    beta_1, beta_T = _ends(T, beta_1, beta_T)
    return np.linspace(beta_1, beta_T, T)


def quadratic(T: int, beta_1: float | None = None, beta_T: float | None = None) -> np.ndarray:
    """Return betas whose square roots rise linearly, beta_1 to beta_T (arguments: `linear`)."""
    beta_1, beta_T = _ends(T, beta_1, beta_T)
    return np.linspace(np.sqrt(beta_1), np.sqrt(beta_T), T) ** 2


def sigmoid(T: int, beta_1: float | None = None, beta_T: float | None = None) -> np.ndarray:
    """Return beta_1 + (beta_T - beta_1) sigmoid(linspace(-6, 6, T)) (arguments: `linear`)."""
    beta_1, beta_T = _ends(T, beta_1, beta_T)
    return beta_1 + (beta_T - beta_1) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, T)))


def cosine(T: int, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Return the betas of ᾱ(t) = cos²((t/T + s)/(1 + s) π/2) (Nichol & Dhariwal 2021, eq. 17).

    Args:
      T: number of timesteps.
      s: offset that keeps beta_1 from vanishing.
      max_beta: upper limit of each beta; the last one would be 1 without it.

    Raises:
      UserError: T is not an integer of at least 1, s < 0, or max_beta is not in (0, 1).
    """
    _check_num_timesteps(T)
    if not s >= 0.0:
        raise UserError(f"cosine: s must be at least 0, found {s}")
    _check_beta("cosine: max_beta", max_beta)
    alphas_cumprod = np.cos((np.arange(T + 1) / T + s) / (1.0 + s) * np.pi / 2.0) ** 2
    return np.minimum(1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1], max_beta)


def constant(T: int, beta: float | None = None) -> np.ndarray:
    """Return T times the same beta; None is the last beta of `linear`, 0.02 * 1000 / T.

    Raises:
      UserError: T is not an integer of at least 1, or beta is not in (0, 1).
    """
    _, beta = _ends(T, None, beta)
    return np.full(T, beta)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Rescale betas so that ᾱ_T = 0: x_T is pure noise (Lin et al. 2023, algorithm 1).

    √ᾱ_t is shifted to end at 0 and scaled to keep √ᾱ_1; T = 1 can only be beta_1 = 1. The last
    beta is exactly 1. A network that predicts eps learns nothing at such a T: predict v or x_0.

    Args:
      betas: [T] float in (0, 1).

    Raises:
      UserError: a beta is not in (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0 or not np.all((betas > 0.0) & (betas < 1.0)):
        raise UserError("zero_terminal_snr: betas must be a list of numbers in (0, 1)")
    if betas.size == 1:
        return np.ones(1)
    root = np.sqrt(np.cumprod(1.0 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas_cumprod = np.concatenate([[1.0], root**2])
    return 1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]


def _ends(T: int, beta_1: float | None, beta_T: float | None) -> tuple[float, float]:
    """Return the checked ends of a schedule, Ho's scaled by 1000 / T where they are not given."""
    _check_num_timesteps(T)
    hint = "" if beta_T is not None else f" with T = {T}: take T > 20, or give both ends"
    beta_T = 0.02 * 1000.0 / T if beta_T is None else beta_T
    beta_1 = 1e-4 * 1000.0 / T if beta_1 is None else beta_1
    _check_beta("beta_1", beta_1)
    _check_beta("beta_T", beta_T, hint)
    return beta_1, beta_T


def _check_beta(name: str, beta: float, hint: str = "") -> None:
    if not 0.0 < beta < 1.0:
        raise UserError(f"{name} must be in (0, 1), found {beta:g}{hint}")


def _check_num_timesteps(T: int) -> None:
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < 1:
        raise UserError(f"num_timesteps must be an integer of at least 1, found {T!r}")
