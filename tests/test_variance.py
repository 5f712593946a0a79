import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax import timesteps
from ddpm_jax.errors import UserError
from ddpm_jax.types import Prediction
from ddpm_jax.variance import VARIANCES, fixed_large, fixed_small, learned_range

chains = pytest.mark.parametrize(("schedule", "T"), oracles.CHAINS)


@jax.jit
def both(process, t, s):
    return fixed_small(process, t, s), fixed_large(process, t, s)


def process_of(schedule, T):
    return ddpm_jax.make_process(oracles.betas(schedule, T))


@chains
def test_on_the_full_chain_they_are_hos_tables(schedule, T):
    process, betas = process_of(schedule, T), oracles.betas(schedule, T)
    t = np.arange(1, T + 1)
    tilde = [oracles.posterior(schedule, T, i, i - 1)[2] for i in range(2, min(T, 60) + 1)]
    first = tilde[:1] if T > 1 else betas[:1]  # entry 1 is a copy of entry 2
    small, large = np.exp(both(process, t, t - 1), dtype=np.float64)
    np.testing.assert_allclose(small[: len(tilde) + 1], [*first, *tilde], rtol=3e-6)
    np.testing.assert_allclose(large, [*first, *betas[1:]], rtol=3e-6)


@pytest.mark.parametrize("num_steps", [2, 10, 100])
@pytest.mark.parametrize("schedule", oracles.SCHEDULES)
def test_on_a_grid_they_are_those_of_the_chain_that_visits_only_the_grid(schedule, num_steps):
    process = process_of(schedule, 1000)
    grid = timesteps.uniform(1000, num_steps)
    short = ddpm_jax.respace(process, grid[-2::-1])
    i = np.arange(num_steps, 1, -1)  # only s > 0: at s = 0 the variance is 0
    pairs, neighbours = both(process, grid[:-2], grid[1:-1]), both(short, i, i - 1)
    np.testing.assert_allclose(pairs, neighbours, rtol=1e-6, atol=1e-6)


@chains
def test_small_is_the_smaller_and_both_are_finite_for_every_jump(schedule, T):
    process = process_of(schedule, T)
    rng = np.random.default_rng(0)
    t = rng.integers(1, T + 1, 400)
    s = np.where(rng.uniform(size=400) < 0.2, 0, rng.integers(0, t))
    lower, upper = np.asarray(both(process, t, s))
    assert np.all(np.isfinite(lower)) and np.all(np.isfinite(upper))
    assert np.all(lower <= upper + 1e-6) and np.all(upper <= 1e-6)
    np.testing.assert_array_equal(lower[s == 0], upper[s == 0])
    a = process.alphas_cumprod
    gap = (s > 0) & (a[s] - a[t] > 1e-5)  # otherwise (1-a_s)/(1-a_t) rounds to 1
    assert np.all(lower[gap] < upper[gap])


def learned(process, t, s, fraction):
    x = jnp.zeros(fraction.shape)
    return learned_range(process, t, s, Prediction(x, x, fraction))


@chains
def test_the_ends_of_learned_range_are_fixed_small_and_beta(schedule, T):
    process, betas = process_of(schedule, T), oracles.betas(schedule, T)
    t = np.arange(1, min(T, 50) + 1)
    shape = (t.size, 2)
    small, large = both(process, t, t - 1)
    low, high = (learned(process, t, t - 1, jnp.full(shape, f)) for f in (0.0, 1.0))
    np.testing.assert_array_equal(low, np.broadcast_to(small[:, None], shape))
    np.testing.assert_allclose(high[:, 0], np.log(betas[: t.size]), rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(high[1:, 0], large[1:], rtol=1e-6, atol=1e-6)


def test_half_of_learned_range_is_the_geometric_mean_of_each_pixel():
    process, t = process_of("linear", 100), jnp.array([5, 70])
    small, large = (np.exp(v, dtype=np.float64) for v in both(process, t, t - 3))
    fraction = jnp.array([[0.5, 0.0], [0.5, 1.0]])
    found = np.exp(learned(process, t, t - 3, fraction), dtype=np.float64)
    middle = np.sqrt(small * large)
    np.testing.assert_allclose(found, [[middle[0], small[0]], [middle[1], large[1]]], rtol=1e-5)


@pytest.mark.parametrize("prediction", [None, Prediction(jnp.zeros(2), jnp.zeros(2))])
def test_learned_range_of_a_network_that_says_nothing_is_refused(prediction):
    with pytest.raises(UserError, match="learned_range.*twice the channels"):
        learned_range(process_of("linear", 10), 3, 2, prediction)


def test_there_is_one_table_of_names():
    assert VARIANCES == {
        "fixed_small": fixed_small,
        "fixed_large": fixed_large,
        "learned_range": learned_range,
    }
