"""Grids of timesteps, which samplers walk down.

A grid is a numpy int32 array of num_steps + 1 timesteps, strictly descending from T to 0;
a sampler takes one step, one look at the network, from each entry to the next. The last entry is 0,
clean data, and the first is always T, where the noise is.
"""

import numpy as np

from ddpm_jax.errors import UserError


def uniform(T: int, num_steps: int) -> np.ndarray:
    """Return num_steps timesteps evenly from T to 1, then 0 (improved DDPM's respacing).

    The last step leaves t = 1, where almost no noise is left; `trailing` does not spend a step
    there. num_steps = T is every timestep.

    Args:
      T: number of timesteps of the process.
      num_steps: network evaluations, in 1..T.

    Returns:
      [num_steps + 1] int32, strictly descending from T to 0.

    Raises:
      UserError: num_steps is not an integer in 1..T.
    """
    _check_num_steps(T, num_steps)
    return _grid(1.0 + np.round(np.linspace(T - 1, 0, num_steps)))


def trailing(T: int, num_steps: int) -> np.ndarray:
    """Return steps of equal length T / num_steps from T to 0 (Lin et al. 2023, section 3.3).

    Arguments, result and errors as in `uniform`.
    """
    _check_num_steps(T, num_steps)
    return _grid(np.round(np.arange(num_steps, 0, -1) * T / num_steps))


def quadratic(T: int, num_steps: int) -> np.ndarray:
    """Return timesteps whose square roots are even: denser towards 0 (Song et al. 2021, D.3).

    Deviates from DDIM's code, which starts at 0.8 T and repeats timesteps where they are dense:
    this starts at T, and timesteps that would fall together move up to the next free one.
    Arguments, result and errors as in `uniform`.
    """
    _check_num_steps(T, num_steps)
    return _distinct(np.round(np.linspace(np.sqrt(T), 1.0, num_steps) ** 2), T)


def karras(log_snr: np.ndarray, num_steps: int, rho: float = 7.0) -> np.ndarray:
    """Return timesteps even in σ̄^(1/ρ), σ̄ = sigma_t/alpha_t (Karras et al. 2022, eq. 5).

      σ̄_i = (σ̄_T^(1/ρ) + i/(num_steps-1) (σ̄_1^(1/ρ) - σ̄_T^(1/ρ)))^ρ

    Each is the nearest of the table, on that scale; those that would fall together move up to the
    next free one. With zero terminal SNR σ̄_T is infinite, and T takes the place of T - 1.

    Args:
      log_snr: [T+1] float, strictly falling, the table of a process (`process.log_snr`).
      num_steps: steps, in 1..T.
      rho: ρ > 0; 7 in the paper, larger is denser towards 0.

    Returns:
      [num_steps + 1] int32, strictly descending from T to 0.

    Raises:
      UserError: num_steps is not an integer in 1..T; rho is not positive.
    """
    if not rho > 0.0:
        raise UserError(f"rho must be > 0, found {rho}")
    log_snr = np.asarray(log_snr, np.float64)
    return _even(np.exp(-0.5 / rho * log_snr), num_steps)


def log_snr_uniform(log_snr: np.ndarray, num_steps: int) -> np.ndarray:
    """Return timesteps even in the log-SNR (Lu et al. 2022, DPM-Solver, section 3.3).

    Each is the nearest of the table. Arguments, ties, zero terminal SNR, result and errors as in
    `karras`, of which this is the limit rho -> inf.
    """
    return _even(-np.asarray(log_snr, np.float64), num_steps)


def _even(scale: np.ndarray, num_steps: int) -> np.ndarray:
    """Return the timesteps nearest to even steps on a scale: [T+1], rising with t from t = 1."""
    T = scale.size - 1
    _check_num_steps(T, num_steps)
    if num_steps == 1:
        return _grid(np.array([T]))
    top = T if np.isfinite(scale[T]) else T - 1
    middles = 0.5 * (scale[1:top] + scale[2 : top + 1])
    t = 1 + np.searchsorted(middles, np.linspace(scale[top], scale[1], num_steps))
    t[0] = T
    return _distinct(t, T)


def _distinct(descending: np.ndarray, T: int) -> np.ndarray:
    """Return the grid of some timesteps in 1..T; equal ones move up to the next free, or down."""
    index = np.arange(len(descending))
    room = np.maximum.accumulate(descending[::-1] - index)  # t less what must lie below it
    return _grid((np.minimum(room, T - index[-1]) + index)[::-1])


def _grid(descending: np.ndarray) -> np.ndarray:
    return np.append(descending, 0).astype(np.int32)


def _check_num_steps(T: int, num_steps: int) -> None:
    if not isinstance(num_steps, (int, np.integer)) or not 1 <= num_steps <= T:
        raise UserError(f"num_steps must be an integer in 1..{T} (T), found {num_steps!r}")
