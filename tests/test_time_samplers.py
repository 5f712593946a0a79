import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import time_samplers

UNIFORM = [time_samplers.uniform, time_samplers.stratified]
SAMPLERS = [*UNIFORM, time_samplers.loss_second_moment]


def draw(sampler, key, batch_size, state=None):
    return sampler.draw(sampler.init() if state is None else state, key, batch_size)


@pytest.mark.parametrize("build", SAMPLERS)
@pytest.mark.parametrize(("T", "batch_size"), [(1, 7), (10, 1), (1000, 4096)])
def test_t_is_int32_in_1_to_T_and_a_function_of_the_key(build, T, batch_size):
    sampler = build(T)
    t, weight = draw(sampler, jax.random.key(0), batch_size)
    assert t.shape == weight.shape == (batch_size,)
    assert t.dtype == np.int32 and weight.dtype == np.float32
    assert t.min() >= 1 and t.max() <= T
    np.testing.assert_allclose(weight, 1.0, rtol=1e-5)  # 1 before any update
    np.testing.assert_array_equal(t, draw(sampler, jax.random.key(0), batch_size)[0])
    if batch_size * T > 10_000:
        assert np.any(t != draw(sampler, jax.random.key(1), batch_size)[0])


@pytest.mark.parametrize("build", SAMPLERS)
def test_each_t_of_a_batch_is_uniform_over_1_to_T(build):
    T, batch_size, draws = 10, 8, 4000
    keys = jax.random.split(jax.random.key(2), draws)
    t = np.asarray(jax.vmap(lambda key: draw(build(T), key, batch_size)[0])(keys))
    for column in t.T:  # one position in the batch, over all draws
        count = np.bincount(column, minlength=T + 1)[1:]
        standard_error = np.sqrt(draws / T * (1 - 1 / T))
        assert np.abs(count - draws / T).max() < 5 * standard_error


def test_stratified_draws_one_t_from_each_part():
    for seed in range(20):
        t = np.sort(draw(time_samplers.stratified(1000), jax.random.key(seed), 100)[0])
        np.testing.assert_array_equal((t - 1) // 10, np.arange(100))


def test_uniform_does_not_stratify():
    t = np.sort(draw(time_samplers.uniform(1000), jax.random.key(0), 100)[0])
    assert np.any((t - 1) // 10 != np.arange(100))


@pytest.mark.parametrize("build", UNIFORM)
def test_the_uniform_ones_have_nothing_to_remember(build):
    sampler = build(10)
    assert sampler.init() == () == sampler.update((), jnp.ones(3, jnp.int32), jnp.ones(3))


# Importance sampling


def remembered(losses, T=4, remember=3):
    """Return `loss_second_moment` and its state after updates with batches of (t, loss)."""
    sampler = time_samplers.loss_second_moment(T, remember=remember)
    state = sampler.init()
    for t, loss in losses:
        state = jax.jit(sampler.update)(state, jnp.array(t, jnp.int32), jnp.array(loss))
    return sampler, state


def test_the_last_losses_of_each_t_are_kept_in_order_however_they_fall_into_batches():
    rng = np.random.default_rng(0)
    batches = [(rng.integers(1, 5, 9), rng.normal(size=9).astype(np.float32)) for _ in range(6)]
    _, state = remembered(batches)
    t, loss = (np.concatenate(part) for part in zip(*batches, strict=True))
    for i in range(1, 5):
        mine = loss[t == i]
        assert state.counts[i - 1] == mine.size > 3
        np.testing.assert_array_equal(np.sort(state.losses[i - 1]), np.sort(mine[-3:]))


def test_a_batch_of_one_t_alone_keeps_its_last():
    _, state = remembered([([2] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])])
    np.testing.assert_array_equal(np.sort(state.losses[1]), [3.0, 4.0, 5.0])
    np.testing.assert_array_equal(state.counts, [0, 5, 0, 0])


def test_it_is_uniform_until_every_t_is_known():
    known = [([t] * 3, [float(t)] * 3) for t in (1, 2, 3)]
    sampler, state = remembered(known)
    np.testing.assert_allclose(draw(sampler, jax.random.key(0), 50, state)[1], 1.0, rtol=1e-5)
    sampler, state = remembered([*known, ([4] * 3, [4.0] * 3)])
    assert np.std(draw(sampler, jax.random.key(0), 50, state)[1]) > 0.1


def test_t_is_drawn_in_proportion_to_the_root_of_the_second_moment():
    values = np.array([[3.0, 0.0, 4.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [10.0, 10.0, 10.0]])
    sampler, state = remembered([([i + 1] * 3, row) for i, row in enumerate(values)])
    root = np.sqrt((values**2).mean(1))
    p = 0.999 * root / root.sum() + 0.001 / 4
    n = 200_000
    t, weight = draw(sampler, jax.random.key(0), n, state)
    np.testing.assert_allclose(weight, 1.0 / (4 * p[t - 1]), rtol=1e-4)
    share = np.bincount(t, minlength=5)[1:] / n
    assert np.all(np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / n))


def test_the_weighted_mean_is_that_of_uniform_times_with_less_variance():
    T, n = 50, 40_000
    loss = np.exp(-np.arange(1, T + 1) / 4.0).astype(np.float32)  # the same at every draw
    sampler = time_samplers.loss_second_moment(T)
    state = sampler.init()
    everyone = jnp.arange(1, T + 1, dtype=jnp.int32)
    for _ in range(10):
        state = sampler.update(state, everyone, jnp.asarray(loss))
    t, weight = draw(sampler, jax.random.key(1), n, state)
    estimates = np.asarray(weight) * loss[t - 1]
    error = estimates.std() / np.sqrt(n)
    assert abs(estimates.mean() - loss.mean()) < 5 * error
    assert estimates.std() < 0.1 * loss.std()
