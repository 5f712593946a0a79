import functools

import numpy as np
import oracles
import pytest

from ddpm_jax import timesteps
from ddpm_jax.errors import UserError
from ddpm_jax.process import make_process


@functools.cache
def log_snr(T, schedule="linear"):
    """The table of the process."""
    return np.asarray(make_process(oracles.betas(schedule, T)).log_snr)


def karras(T, num_steps):
    return timesteps.karras(log_snr(T), num_steps)


def log_snr_uniform(T, num_steps):
    return timesteps.log_snr_uniform(log_snr(T), num_steps)


GRIDS = [timesteps.uniform, timesteps.trailing, timesteps.quadratic, karras, log_snr_uniform]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("T", [1, 2, 3, 10, 97, 1000])
def test_grids_descend_strictly_from_T_to_0_for_every_number_of_steps(grid, T):
    for num_steps in range(1, T + 1):
        steps = grid(T, num_steps)
        assert steps.dtype == np.int32 and steps.shape == (num_steps + 1,)
        assert steps[0] == T and steps[-1] == 0 and np.all(np.diff(steps) < 0)


@pytest.mark.parametrize("grid", GRIDS)
def test_all_steps_are_the_whole_chain(grid):
    np.testing.assert_array_equal(grid(700, 700), np.arange(700, -1, -1))


def test_the_spacing_is_what_the_name_says():
    np.testing.assert_array_equal(timesteps.uniform(1000, 4), [1000, 667, 334, 1, 0])
    np.testing.assert_array_equal(timesteps.trailing(1000, 4), [1000, 750, 500, 250, 0])
    np.testing.assert_array_equal(timesteps.leading(1000, 4), [751, 501, 251, 1, 0])
    np.testing.assert_array_equal(timesteps.leading(10, 3), [7, 4, 1, 0])
    np.testing.assert_array_equal(timesteps.leading(10, 10), np.arange(10, -1, -1))
    np.testing.assert_array_equal(timesteps.quadratic(900, 4), [900, 413, 114, 1, 0])
    np.testing.assert_array_equal(timesteps.quadratic(9, 8), [9, 7, 6, 5, 4, 3, 2, 1, 0])


@pytest.mark.parametrize("schedule", oracles.SCHEDULES)
@pytest.mark.parametrize("T", [1, 2, 3, 10, 97])
def test_grids_of_every_process_descend_strictly_for_every_number_of_steps(schedule, T):
    table = log_snr(T, schedule)
    for num_steps in range(1, T + 1):
        for steps in (
            timesteps.karras(table, num_steps),
            timesteps.karras(table, num_steps, rho=1.0),
            timesteps.log_snr_uniform(table, num_steps),
        ):
            assert steps.dtype == np.int32 and steps.shape == (num_steps + 1,)
            assert steps[0] == T and steps[-1] == 0 and np.all(np.diff(steps) < 0)
            assert num_steps == 1 or steps[-2] == 1  # the least noise of all


def test_karras_and_log_snr_are_the_nearest_timesteps_to_the_papers_noise_levels():
    """Karras et al. 2022, eq. 5; sigma_max and sigma_min are the ends of the chain."""
    T, table = 1000, np.float64(log_snr(1000))
    sigma = np.exp(-0.5 * table[1:])
    for num_steps in (5, 20):
        i = np.arange(num_steps) / (num_steps - 1)
        eq_5 = (sigma[-1] ** (1 / 7) + i * (sigma[0] ** (1 / 7) - sigma[-1] ** (1 / 7))) ** 7
        ours = timesteps.karras(table, num_steps)[:-1]
        nearest = np.abs(sigma[:, None] ** (1 / 7) - eq_5 ** (1 / 7)).argmin(axis=0)
        np.testing.assert_array_equal(ours, 1 + nearest)
        even = np.linspace(table[T], table[1], num_steps)
        ours = timesteps.log_snr_uniform(table, num_steps)[:-1]
        np.testing.assert_array_equal(ours, 1 + np.abs(table[1:, None] - even).argmin(axis=0))


def test_a_large_rho_is_uniform_in_log_snr():
    table = log_snr(1000)
    np.testing.assert_array_equal(
        timesteps.karras(table, 20, rho=1e6), timesteps.log_snr_uniform(table, 20)
    )


def test_with_zero_terminal_snr_T_takes_the_place_of_T_minus_1():
    finite = log_snr(1000, "linear_zero_snr")[:-1]
    for num_steps in (2, 5):
        for grid in (timesteps.karras, timesteps.log_snr_uniform):
            ours = grid(log_snr(1000, "linear_zero_snr"), num_steps)
            np.testing.assert_array_equal(ours[1:], grid(finite, num_steps)[1:])
            assert ours[0] == 1000


@pytest.mark.parametrize("rho", [0.0, -1.0])
def test_a_rho_that_is_not_positive_is_an_error(rho):
    with pytest.raises(UserError, match="rho must be > 0, found"):
        timesteps.karras(log_snr(100), 10, rho)


def test_only_leading_may_start_below_T():
    grid = timesteps.leading(1000, 4)
    np.testing.assert_array_equal(timesteps.check_grid(grid, 1000, whole=True), grid)
    for wrong in ([751, 501, 250, 1, 0], [999, 0], grid[:-1], [2000, 1, 0]):
        with pytest.raises(UserError, match="must descend strictly from T = 1000 to 0"):
            timesteps.check_grid(wrong, 1000, whole=True)


@pytest.mark.parametrize("num_steps", [7, 10, 33, 250])
def test_no_timestep_is_further_than_a_half_from_the_even_spacing(num_steps):
    for ours, exact in [
        (timesteps.uniform(1000, num_steps)[:-1], np.linspace(1000, 1, num_steps)),
        (timesteps.trailing(1000, num_steps), np.linspace(1000, 0, num_steps + 1)),
    ]:
        assert np.abs(ours - exact).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("grid", [*GRIDS, timesteps.leading])
@pytest.mark.parametrize("num_steps", [0, -1, 101, 2.5, "3"])
def test_a_number_of_steps_outside_1_to_T_is_an_error(grid, num_steps):
    with pytest.raises(UserError, match=r"num_steps must be an integer in 1..100 \(T\), found"):
        grid(100, num_steps)
