import math

import numpy as np
import oracles
import pytest

from ddpm_jax import schedules
from ddpm_jax.errors import UserError

WITH_ENDS = (schedules.linear, schedules.quadratic, schedules.sigmoid)


def by_definition(schedule, T, t, beta_1, beta_T):
    """Return beta_t as one number, from the formula of its definition."""
    u = 0.0 if T == 1 else (t - 1) / (T - 1)
    if schedule is schedules.linear:
        return (1 - u) * beta_1 + u * beta_T
    if schedule is schedules.quadratic:
        return ((1 - u) * math.sqrt(beta_1) + u * math.sqrt(beta_T)) ** 2
    return beta_1 + (beta_T - beta_1) * (0.5 + 0.5 * math.tanh((-6 + 12 * u) / 2))


@pytest.mark.parametrize("T", oracles.LENGTHS)
@pytest.mark.parametrize("schedule", WITH_ENDS)
def test_betas_are_the_papers(schedule, T):
    expected = [by_definition(schedule, T, t, 0.01, 0.7) for t in range(1, T + 1)]
    np.testing.assert_allclose(schedule(T, 0.01, 0.7), expected, rtol=1e-12)


@pytest.mark.parametrize("T", [21, 100, 700, 1000, 4000])
@pytest.mark.parametrize("schedule", WITH_ENDS)
def test_default_ends_scale_with_1000_over_T(schedule, T):
    scaled = schedule(T, 1e-4 * 1000 / T, 0.02 * 1000 / T)
    np.testing.assert_array_equal(schedule(T), scaled)


def test_linear_1000_is_ho():
    betas = schedules.linear(1000)
    assert betas[0] == 1e-4 and betas[-1] == 0.02
    # The prior term L_T is about 1e-5 bits per dimension if the mean square of a pixel is 1/4:
    # KL(N(sqrt(a) x, 1 - a) || N(0, 1)) = a x^2 / 2 - (a + ln(1 - a)) / 2.
    a = math.prod(1.0 - betas)
    assert a == pytest.approx(math.exp(-np.sum(betas + betas**2 / 2 + betas**3 / 3)), rel=1e-4)
    bits = (a * 0.25 / 2 - (a + math.log1p(-a)) / 2) / math.log(2)
    assert 0.5e-5 < bits < 1.5e-5


@pytest.mark.parametrize("schedule", [*WITH_ENDS, schedules.constant])
def test_a_chain_of_any_length_ends_equally_noisy(schedule):
    # -ln alpha_bar_T = sum(beta) + sum(beta^2)/2 + ..., and sum(beta) does not depend on T.
    log_end = [np.log1p(-schedule(T)).sum() for T in (500, 1000, 4000)]
    np.testing.assert_allclose(log_end, log_end[1], rtol=0.03)


@pytest.mark.parametrize("T", oracles.LENGTHS)
def test_cosine_has_the_closed_form_alpha_bar_until_the_clip(T):
    def f(t):
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = schedules.cosine(T)
    assert betas[-1] == 0.999 and betas.max() == 0.999
    product = np.cumprod(1.0 - betas)
    for t in range(1, T):
        assert product[t - 1] == pytest.approx(f(t) / f(0), rel=1e-9)


def test_cosine_options():
    assert schedules.cosine(100, max_beta=0.5).max() == 0.5
    assert schedules.cosine(100, s=0.1)[0] > schedules.cosine(100)[0]


@pytest.mark.parametrize("T", oracles.LENGTHS)
def test_constant(T):
    np.testing.assert_array_equal(schedules.constant(T, 0.25), [0.25] * T)
    if T > 20:
        np.testing.assert_array_equal(schedules.constant(T), [schedules.linear(T)[-1]] * T)


@pytest.mark.parametrize(("schedule", "T"), oracles.CHAINS)
def test_betas_are_float64_in_the_unit_interval(schedule, T):
    betas = oracles.betas(schedule, T)
    assert betas.shape == (T,) and betas.dtype == np.float64
    assert np.all(betas > 0)
    assert np.all(betas[:-1] < 1) and betas[-1] <= 1


@pytest.mark.parametrize("T", oracles.LENGTHS)
@pytest.mark.parametrize("schedule", oracles.BASE_SCHEDULES)
def test_zero_terminal_snr_moves_the_end_to_zero_and_keeps_the_first(schedule, T):
    before = oracles.betas(schedule, T)
    after = schedules.zero_terminal_snr(before)
    assert after[-1] == 1.0  # exactly, so alpha_bar_T = 0
    if T > 1:
        assert after[0] == pytest.approx(before[0], rel=1e-9)
    if T > 2:  # sqrt(alpha_bar) is the same curve, shifted and scaled
        old, new = np.sqrt(np.cumprod(1 - before)), np.sqrt(np.cumprod(1 - after))
        slope = (new[0] - new[-1]) / (old[0] - old[-1])
        np.testing.assert_allclose(new, slope * (old - old[-1]), atol=1e-12)


@pytest.mark.parametrize("schedule", oracles.BASE_SCHEDULES)
@pytest.mark.parametrize("T", [0, -3, 2.5, 10.0, "10", True, None])
def test_a_length_that_is_not_a_positive_integer_is_an_error(schedule, T):
    with pytest.raises(UserError, match="num_timesteps must be an integer of at least 1, found"):
        getattr(schedules, schedule)(T)


@pytest.mark.parametrize("schedule", [*WITH_ENDS, schedules.constant])
@pytest.mark.parametrize("T", [1, 2, 10, 20])
def test_a_T_so_small_that_a_beta_reaches_1_is_an_error_that_says_so(schedule, T):
    with pytest.raises(UserError, match=rf"beta_T must be in \(0, 1\), found .* with T = {T}: "):
        schedule(T)
    assert schedule(21).max() < 1


@pytest.mark.parametrize("schedule", WITH_ENDS)
@pytest.mark.parametrize("end", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_an_end_outside_the_unit_interval_is_an_error_that_names_it(schedule, end):
    with pytest.raises(UserError, match=r"beta_1 must be in \(0, 1\)"):
        schedule(100, end, 0.5)
    with pytest.raises(UserError, match=r"beta_T must be in \(0, 1\)"):
        schedule(100, 0.1, end)
    with pytest.raises(UserError, match=r"beta_T must be in \(0, 1\)"):
        schedule(100, None, end)


def test_other_options_outside_their_range_are_errors():
    with pytest.raises(UserError, match="s must be at least 0"):
        schedules.cosine(10, s=-0.1)
    with pytest.raises(UserError, match="max_beta must be in"):
        schedules.cosine(10, max_beta=1.0)
    with pytest.raises(UserError, match="beta_T must be in"):
        schedules.constant(10, 1.0)
    for betas in ([], [[0.1]], [0.1, 1.0], [0.0, 0.1], [0.1, math.nan]):
        with pytest.raises(UserError, match="zero_terminal_snr: betas must be"):
            schedules.zero_terminal_snr(betas)
