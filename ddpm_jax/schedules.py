"""Noise schedules of the forward process: beta_1 .. beta_T, in numpy float64.

  q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I)        (Ho et al. 2020, eq. 2)

A schedule is a function of T, the number of timesteps. It returns `betas`: [T] float64, each in
(0, 1). By default beta_1 and beta_T are 1e-4 and 0.02, as in Ho et al., times 1000 / T: a chain of
any length then ends equally noisy.
"""

import numpy as np

from ddpm_jax.errors import UserError


def linear(T: int, beta_1: float | None = None, beta_T: float | None = None) -> np.ndarray:
    """Return betas that rise linearly from beta_1 to beta_T (Ho et al. 2020, section 4).

    Args:
      T: number of timesteps, at least 1; with T = 1 the only beta is beta_1.
      beta_1: first beta, in (0, 1); by default 1e-4 * 1000 / T.
      beta_T: last beta, in (0, 1); by default 0.02 * 1000 / T, which is 1 or more if T <= 20.

    Returns:
      [T] float64.

    Raises:
      UserError: T is not an integer of at least 1, or beta_1 or beta_T is not in (0, 1).
    """
    beta_1, beta_T = _ends(T, beta_1, beta_T)
    return np.linspace(beta_1, beta_T, T)


def quadratic(T: int, beta_1: float | None = None, beta_T: float | None = None) -> np.ndarray:
    """Return betas with square roots that rise linearly from √beta_1 to √beta_T.

    This is "quad" in Ho's code. Arguments and errors as in `linear`.
    """
    beta_1, beta_T = _ends(T, beta_1, beta_T)
    return np.linspace(np.sqrt(beta_1), np.sqrt(beta_T), T) ** 2


def sigmoid(T: int, beta_1: float | None = None, beta_T: float | None = None) -> np.ndarray:
    """Return beta_1 + (beta_T - beta_1) sigmoid(linspace(-6, 6, T)).

    This is "sigmoid" in the code of DDIM (Song et al. 2021). Arguments and errors as in `linear`.
    """
    beta_1, beta_T = _ends(T, beta_1, beta_T)
    return beta_1 + (beta_T - beta_1) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, T)))


def cosine(T: int, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Return the betas of ᾱ(t) = cos²((t/T + s)/(1 + s) π/2) (Nichol & Dhariwal 2021, eq. 17).

    Args:
      T: number of timesteps, at least 1.
      s: offset, at least 0; without it beta_1 would be almost 0.
      max_beta: upper limit of each beta, in (0, 1); without it the last beta would be 1.

    Returns:
      [T] float64.

    Raises:
      UserError: T is not an integer of at least 1, s < 0, or max_beta is not in (0, 1).
    """
    _check_num_timesteps(T)
    if not s >= 0.0:
        raise UserError(f"cosine: s must be at least 0, found {s}; the paper takes 0.008")
    _check_beta("cosine: max_beta", max_beta)
    alphas_cumprod = np.cos((np.arange(T + 1) / T + s) / (1.0 + s) * np.pi / 2.0) ** 2
    return np.minimum(1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1], max_beta)


def constant(T: int, beta: float | None = None) -> np.ndarray:
    """Return the same beta T times.

    Args:
      T: number of timesteps, at least 1.
      beta: in (0, 1); by default the last beta of `linear`, 0.02 * 1000 / T.

    Returns:
      [T] float64.

    Raises:
      UserError: T is not an integer of at least 1, or beta is not in (0, 1).
    """
    _, beta = _ends(T, None, beta)
    return np.full(T, beta)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Rescale betas so that ᾱ_T = 0 and x_T is pure noise (Lin et al. 2023, algorithm 1).

    √ᾱ_t is shifted so that it ends at 0, and scaled so that √ᾱ_1 stays. The last beta is then
    exactly 1. With T = 1 the result is beta_1 = 1. A network that predicts eps learns nothing at
    t = T: predict v or x_0.

    Args:
      betas: [T] float in (0, 1).

    Returns:
      [T] float64.

    Raises:
      UserError: betas has another shape, or a beta is not in (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0 or not np.all((betas > 0.0) & (betas < 1.0)):
        found = np.array2string(betas.ravel(), threshold=10, max_line_width=1000)
        raise UserError(
            f"zero_terminal_snr: betas must be a list of T >= 1 numbers in (0, 1), found {found} "
            f"of shape {betas.shape}; take one of ddpm_jax.schedules"
        )
    if betas.size == 1:
        return np.ones(1)
    root = np.sqrt(np.cumprod(1.0 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas_cumprod = np.concatenate([[1.0], root**2])
    return 1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]


def _ends(T: int, beta_1: float | None, beta_T: float | None) -> tuple[float, float]:
    """Return beta_1 and beta_T, checked; by default 1e-4 and 0.02, times 1000 / T."""
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
