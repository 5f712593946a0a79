"""Grids of timesteps, which samplers walk down.

A grid is a numpy int32 array of num_steps + 1 timesteps, strictly descending from T to 0. A sampler
takes one step from each entry to the next. The first entry is T, pure noise; only `leading`
starts lower. The last entry is 0, clean data.
"""

from typing import Any

import numpy as np
from jax.core import Tracer

from ddpm_jax.errors import UserError


def uniform(T: int, num_steps: int) -> np.ndarray:
    """Return num_steps evenly spaced timesteps from T to 1, then 0 (improved DDPM's respacing).

    The last step leaves t = 1, where x_t has almost no noise. `trailing` does not spend a step
    there. num_steps = T gives every timestep.

    Args:
      T: number of timesteps of the process.
      num_steps: number of sampling steps, in 1..T.

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


def leading(T: int, num_steps: int) -> np.ndarray:
    """Return steps of equal length that start below T and end at 1, then 0 (Song et al. 2021).

      t = 1 + (T // num_steps) i,  i = num_steps - 1 .. 0

    This is the default of diffusers. It is the only grid that starts below T: x_T then stands for
    an x_t that is not pure noise (Lin et al. 2023, section 3.3, show the harm). Arguments, result
    and errors as in `uniform`.
    """
    _check_num_steps(T, num_steps)
    return _grid(1 + T // num_steps * np.arange(num_steps)[::-1])


def quadratic(T: int, num_steps: int) -> np.ndarray:
    """Return timesteps with evenly spaced square roots: denser towards 0 (Song et al. 2021, D.3).

    Deviates from DDIM's code, which starts at 0.8 T and repeats timesteps where they are dense.
    This grid starts at T. A timestep that is already taken moves up to the next free one.
    Arguments, result and errors as in `uniform`.
    """
    _check_num_steps(T, num_steps)
    return _distinct(np.round(np.linspace(np.sqrt(T), 1.0, num_steps) ** 2), T)


def karras(log_snr: np.ndarray, num_steps: int, rho: float = 7.0) -> np.ndarray:
    """Return timesteps evenly spaced in σ̄^(1/ρ), σ̄ = sigma_t/alpha_t (Karras et al. 2022, eq. 5).

      σ̄_i = (σ̄_T^(1/ρ) + i/(num_steps-1) (σ̄_1^(1/ρ) - σ̄_T^(1/ρ)))^ρ

    Each σ̄_i becomes the nearest timestep of the table, on that scale. A timestep that is already
    taken moves up to the next free one. With zero terminal SNR σ̄_T is infinite. The grid is then
    spaced from T - 1, and T replaces its first entry.

    Args:
      log_snr: [T+1] float, strictly falling, the table of a process (`process.log_snr`).
      num_steps: number of sampling steps, in 1..T.
      rho: ρ > 0; 7 in the paper. A larger ρ is denser towards 0.

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
    """Return timesteps evenly spaced in the log-SNR (Lu et al. 2022, DPM-Solver, section 3.3).

    This is the limit rho -> inf of `karras`. Arguments, result, errors, timesteps that are already
    taken and zero terminal SNR as there.
    """
    return _even(-np.asarray(log_snr, np.float64), num_steps)


def check_grid(
    timesteps: Any, T: int | None = None, direction: str = "down", *, whole: bool = False
) -> Any:
    """Return the grid as an int32 array, if it keeps the rules.

    Args:
      timesteps: [K+1] whole numbers in 0..T, K >= 1. A traced array is returned unchecked.
      T: number of timesteps of the process; None allows any.
      direction: "down": the grid must descend strictly. "up": it must ascend strictly. "both":
        neighbours must differ.
      whole: if True, the grid must lead from T to 0, or be that of `leading`. This needs T and
        "down".

    Raises:
      UserError: the grid breaks one of these rules.
    """
    if isinstance(timesteps, Tracer):
        return timesteps
    grid = np.asarray(timesteps)
    allowed = "0 or more" if T is None else f"in 0..{T} (T)"
    if grid.dtype.kind not in "iuf" or not np.all(np.isfinite(grid) & (grid == np.round(grid))):
        raise UserError(f"timesteps must be whole numbers {allowed}, found {_first_wrong(grid)}")
    steps = np.diff(np.atleast_1d(grid).astype(np.float64))
    ordered = {"down": steps < 0, "up": steps > 0, "both": steps != 0}[direction]
    rule = {"down": "descend strictly", "up": "ascend strictly", "both": "change at every step"}
    good = grid.ndim == 1 and grid.size >= 2 and ordered.all()
    if whole and not (good and grid[-1] == 0 and (grid[0] == T or _leads(grid, T))):
        raise UserError(f"timesteps must descend strictly from T = {T} to 0, found {_show(grid)}")
    if not good:
        raise UserError(
            f"timesteps must be a list of at least 2 that {rule[direction]}, found {_show(grid)}"
        )
    if grid.min() < 0 or (T is not None and grid.max() > T):
        raise UserError(f"timesteps must be {allowed}, found {_show(grid)}")
    return grid.astype(np.int32)


def _leads(grid: np.ndarray, T: int | None) -> bool:
    """Return whether the grid is that of `leading`."""
    num_steps = grid.size - 1
    return T is not None and num_steps <= T and np.array_equal(grid, leading(T, num_steps))


def _first_wrong(grid: np.ndarray) -> str:
    """Return the first entry that is not a whole number, or the type if it is not numeric."""
    if grid.dtype.kind != "f":
        return f"{grid.dtype}"
    return f"{grid[~(np.isfinite(grid) & (grid == np.round(grid)))][0]:g}"


def _show(grid: np.ndarray) -> str:
    """Return the grid as one line of text."""
    return np.array2string(grid, threshold=8, max_line_width=1000).replace("\n", "")


def _even(scale: np.ndarray, num_steps: int) -> np.ndarray:
    """Return the timesteps nearest to even steps on `scale`.

    Args:
      scale: [T+1] float, rising with t from t = 1.
      num_steps: number of sampling steps, in 1..T.
    """
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
    """Return the grid of descending timesteps in 1..T.

    Equal timesteps move up to the next free one. If none is free, they move down.
    """
    index = np.arange(len(descending))
    room = np.maximum.accumulate(descending[::-1] - index)  # t minus the number of entries below it
    return _grid((np.minimum(room, T - index[-1]) + index)[::-1])


def _grid(descending: np.ndarray) -> np.ndarray:
    return np.append(descending, 0).astype(np.int32)


def _check_num_steps(T: int, num_steps: int) -> None:
    if not isinstance(num_steps, (int, np.integer)) or not 1 <= num_steps <= T:
        raise UserError(f"num_steps must be an integer in 1..{T} (T), found {num_steps!r}")
