"""Exact moments through the real step, without Monte Carlo.

The step is affine in x and in its noise. A denoiser that is affine in x_t therefore carries a
Gaussian to a Gaussian.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax import samplers, timesteps
from ddpm_jax.denoise import make_denoise_fn
from ddpm_jax.errors import UserError
from ddpm_jax.process import alpha_sigma
from ddpm_jax.randomness import draw_noise, draw_x_T
from ddpm_jax.types import Prediction

chains = pytest.mark.parametrize(("schedule", "T"), oracles.CHAINS)
POINT = 0.6


def process_of(schedule, T):
    return ddpm_jax.make_process(oracles.betas(schedule, T))


def gaussian_denoiser(process):
    """Bayes-optimal for data N(0, 1): E[x_0 | x_t] = alpha_t x_t."""

    def denoise_fn(x_t, t):
        alpha_t, sigma_t = alpha_sigma(process, t, x_t)
        return Prediction(alpha_t * x_t, sigma_t * x_t)

    return denoise_fn


def point_denoiser(process):
    """Bayes-optimal for data that are one point."""

    def denoise_fn(x_t, t):
        alpha_t, sigma_t = alpha_sigma(process, t, x_t)
        return Prediction(jnp.full_like(x_t, POINT), (x_t - alpha_t * POINT) / sigma_t)

    return denoise_fn


@functools.partial(jax.jit, static_argnames=("variance", "denoiser"))
def affine_steps(process, t, s, variance, denoiser):
    """(a, b, c) of each step t -> s, x_s = a x_t + b z + c, measured on the sampler's own step."""
    sampler = samplers.ancestral(process, variance)
    denoise_fn = denoiser(process)
    key = jax.random.split(jax.random.key(0), 2)
    x = jnp.zeros((2, 3))
    z = draw_noise(key, (3,))

    def one(t, s):
        def step(x):
            return sampler.step(denoise_fn, key, sampler.init(x), t, s)[0].x

        x_s, a = jax.jvp(step, (x,), (jnp.ones_like(x),))
        b = jnp.mean((z - z.mean()) * x_s) / z.var()  # regression of x_s on z
        c = x_s.mean() - b * z.mean()
        return a, b, c, jnp.abs(b * z + c - x_s).max()

    return jax.vmap(one)(t, s)


def steps_of(process, grids, variance, denoiser):
    """(a, b, c) of the steps of each grid, all grids in one compiled call."""
    t, s = (np.concatenate([grid[i : len(grid) - 1 + i] for grid in grids]) for i in (0, 1))
    a, b, c, residual = affine_steps(process, t, s, variance, denoiser)
    assert np.all(residual < 1e-5)  # x_s is affine in x_t and in one draw from the key
    np.testing.assert_allclose(a, a[:, :1, :1] + np.zeros_like(a), rtol=1e-6)
    columns = np.stack([a[:, 0, 0], b, c]).astype(np.float64)
    return np.split(columns, np.cumsum([len(grid) - 1 for grid in grids])[:-1], axis=1)


def grids_of(T):
    """The full chain, and every sub-sequence that the chain has room for."""
    yield np.arange(T, -1, -1)
    for grid in (timesteps.uniform, timesteps.trailing, timesteps.quadratic):
        for num_steps in (1, 2, 3, 10):
            if num_steps <= T:
                yield grid(T, num_steps)


@chains
def test_fixed_large_keeps_n_0_1_data_exact(schedule, T):
    """Ho et al. 2020, section 3.2: with the optimal denoiser every x_s is N(0, 1) again."""
    alpha, covariance = oracles.chain_moments(schedule, T)
    grids = list(grids_of(T))
    steps = steps_of(process_of(schedule, T), grids, "fixed_large", gaussian_denoiser)
    for grid, (a, b, c) in zip(grids, steps, strict=True):
        np.testing.assert_allclose(c, 0.0, atol=1e-6)
        # not only the marginals: cov(x_t, x_s) is the forward chain's, with x_0 ~ N(0, 1)
        t, s = grid[:-1], grid[1:]
        forward = covariance[t, s] + alpha[t] * alpha[s]
        np.testing.assert_allclose(a, forward, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose((a**2 + b**2)[:-1], 1.0, atol=2e-6)
        assert b[-1] == pytest.approx(0.0, abs=1e-7)  # the last step returns the mean of x_0
        variance = 1.0  # of x_T
        for i in range(len(a) - 1):
            variance = a[i] ** 2 * variance + b[i] ** 2
            assert variance == pytest.approx(1.0, abs=3e-5)


@chains
def test_fixed_small_is_exact_for_a_point(schedule, T):
    """Ho et al. 2020, section 3.2: with the optimal denoiser every x_s is q(x_s | x_0) again."""
    alpha, covariance = oracles.chain_moments(schedule, T)
    grids = list(grids_of(T))
    steps = steps_of(process_of(schedule, T), grids, "fixed_small", point_denoiser)
    for grid, (a, b, c) in zip(grids, steps, strict=True):
        mean, variance = alpha[T] * POINT, covariance[T, T]
        for i, s in enumerate(grid[1:]):
            mean, variance = a[i] * mean + c[i], a[i] ** 2 * variance + b[i] ** 2
            assert mean == pytest.approx(alpha[s] * POINT, abs=1e-5), s
            assert variance == pytest.approx(covariance[s, s], rel=1e-4, abs=1e-9), s
        assert (a[-1], b[-1]) == pytest.approx((0.0, 0.0), abs=1e-7)  # the point itself


def test_fixed_small_is_too_narrow_for_n_0_1_data():
    """Guard the two tests above: they must see a difference between the variances."""
    grid = timesteps.uniform(1000, 10)
    [(a, b, _)] = steps_of(process_of("linear", 1000), [grid], "fixed_small", gaussian_denoiser)
    assert (a**2 + b**2)[:-1].min() < 0.9


@pytest.mark.parametrize("schedule", oracles.SCHEDULES)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_walking_a_grid_is_walking_the_respaced_chain(schedule, variance):
    process, grid = process_of(schedule, 1000), timesteps.uniform(1000, 10)
    short = ddpm_jax.respace(process, grid[-2::-1])
    [jumps] = steps_of(process, [grid], variance, point_denoiser)
    [chain] = steps_of(short, [np.arange(10, -1, -1)], variance, point_denoiser)
    np.testing.assert_allclose(jumps, chain, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_last_step_returns_x_0_hat_bit_for_bit(variance):
    process = process_of("linear", 1000)
    sampler = samplers.ancestral(process, variance)
    x_hat = jnp.array([[0.1, -1.0, 0.3]])
    for t in (1, 2, 17, 1000):
        state, prediction = sampler.step(
            lambda x_t, t: Prediction(x_hat, x_t),
            jax.random.split(jax.random.key(0), 1),
            sampler.init(jnp.array([[3.0, -2.0, 0.5]])),
            t,
            0,
        )
        np.testing.assert_array_equal(state.x, x_hat)
        assert prediction.x_0 is x_hat


def test_an_unknown_variance_is_an_error_with_the_nearest_name():
    with pytest.raises(UserError, match="unknown variance 'fixed-large'; did you mean 'fixed_la"):
        samplers.ancestral(process_of("linear", 10), "fixed-large")


# The loop, driven by a sampler that records its arguments.


class Trail(NamedTuple):
    x: jax.Array  # [B, 1], the sum of the noise so far
    count: jax.Array  # steps taken


def advance(process, denoise_fn, noise, key, state, t, s):
    prediction = denoise_fn(state.x, t)
    return Trail(state.x + noise(key, t, state.x.shape), state.count + 1), prediction


TRAIL = samplers.Sampler(process_of("linear", 1000), lambda x_T: Trail(x_T, jnp.int32(0)), advance)


def keep_all(t, s, state, prediction):
    return dict(t=t, s=s, count=state.count, x=state.x, x_0=prediction.x_0)


def run_trail(grid, collect=None, num_frames=None, seed=5):
    keys = jax.random.split(jax.random.key(seed), 2)
    return samplers.sample_loop(
        TRAIL,
        lambda x_t, t: Prediction(x_t * 0 + t.astype(jnp.float32), x_t),
        keys,
        grid,
        jnp.zeros((2, 1)),
        collect,
        num_frames,
    )


def test_the_loop_walks_the_grid_and_ends_at_the_last_state():
    grid = np.array([9, 7, 4, 1, 0])
    x, kept = run_trail(grid, keep_all)
    np.testing.assert_array_equal(kept["t"], grid[:-1])
    np.testing.assert_array_equal(kept["s"], grid[1:])
    np.testing.assert_array_equal(kept["count"], [1, 2, 3, 4])
    np.testing.assert_array_equal(kept["x"][-1], x)  # the state after the step, at s
    np.testing.assert_array_equal(kept["x_0"][:, :, 0], np.stack([grid[:-1]] * 2, 1))  # made at t
    np.testing.assert_array_equal(run_trail(grid), x)


def test_each_image_draws_from_its_own_key_folded_with_t():
    grid = np.array([9, 4, 0])
    keys = jax.random.split(jax.random.key(5), 2)
    expected = [
        sum(jax.random.normal(jax.random.fold_in(key, t), (1,)) for t in (9, 4)) for key in keys
    ]
    np.testing.assert_allclose(run_trail(grid), expected, rtol=1e-6)
    x_T = [jax.random.normal(jax.random.fold_in(key, 0), (3, 2)) for key in keys]
    np.testing.assert_array_equal(draw_x_T(keys, (3, 2)), x_T)


def test_a_chain_can_start_below_T_and_be_walked_in_two_parts():
    whole = run_trail(np.array([9, 4, 2, 0]))
    parts = run_trail(np.array([9, 4])) + run_trail(np.array([4, 2, 0]))
    np.testing.assert_allclose(whole, parts, rtol=1e-6)


@pytest.mark.parametrize(
    ("num_steps", "num_frames", "last"),
    [
        (1, 1, [0]),
        (7, 7, [0, 1, 2, 3, 4, 5, 6]),
        (7, 3, [2, 4, 6]),  # parts of 3, 2 and 2 steps
        (10, 4, [2, 4, 7, 9]),
    ],
)
def test_num_frames_keeps_the_last_step_of_each_equal_part(num_steps, num_frames, last):
    grid = timesteps.trailing(1000, num_steps)
    _, every = run_trail(grid, keep_all)
    _, kept = run_trail(grid, keep_all, num_frames)
    jax.tree.map(lambda k, e: np.testing.assert_array_equal(k, e[np.array(last)]), kept, every)
    assert kept["s"][-1] == 0


def test_frames_take_memory_by_their_number_and_not_by_the_steps():
    jaxpr = str(jax.make_jaxpr(lambda: run_trail(np.arange(1000, -1, -1), keep_all, 3))())
    assert "f32[3,2,1]" in jaxpr and "f32[1000,2,1]" not in jaxpr


def test_frames_that_cannot_be_kept_are_errors():
    grid = np.array([9, 4, 0])
    with pytest.raises(UserError, match="num_frames is 2, but collect is not given; pass"):
        run_trail(grid, None, 2)
    for num_frames in (0, 3):
        with pytest.raises(UserError, match=r"num_frames must be in 1..2 \(steps\), found"):
            run_trail(grid, keep_all, num_frames)


@pytest.mark.parametrize("collect", [None, keep_all])
def test_the_network_is_traced_once_however_long_the_chain(collect):
    process, traces = process_of("linear", 1000), []

    def network(params, x_t, t, cond, *, train, key):
        traces.append(t.shape)
        return x_t

    @jax.jit
    def run(keys):
        return samplers.sample_loop(
            samplers.ancestral(process),
            make_denoise_fn(process, network, None),
            keys,
            np.arange(1000, -1, -1),
            draw_x_T(keys, (2,)),
            collect and (lambda t, s, state, prediction: state.x),
            collect and 3,
        )

    jax.block_until_ready(run(jax.random.split(jax.random.key(0), 4)))
    assert traces == [(4,)]


def test_samples_of_a_mixture_have_its_moments():
    """Monte Carlo of the whole chain: two narrow modes, Bayes-optimal denoiser."""
    process, n = process_of("linear", 1000), 8192
    weight, modes, tau = 0.3, (-0.8, 0.5), 0.1

    def network(params, x_t, t, cond, *, train, key):  # predicts x_0
        alpha_t, sigma_t = alpha_sigma(process, t + 1, x_t)
        spread = (alpha_t * tau) ** 2 + sigma_t**2
        log = [
            jnp.log(p) - (x_t - alpha_t * m) ** 2 / (2 * spread)
            for p, m in zip((weight, 1 - weight), modes, strict=True)
        ]
        first = jax.nn.sigmoid(log[0] - log[1])
        means = [m + alpha_t * tau**2 / spread * (x_t - alpha_t * m) for m in modes]
        return first * means[0] + (1 - first) * means[1]

    sample = ddpm_jax.make_sample(
        process,
        network,
        shape=(1,),
        sampler=samplers.ancestral(process, "fixed_small"),
        kind="x_0",
        clip_x_0=False,
    )
    x = np.asarray(sample(None, jax.random.key(0), n))[:, 0]
    # Even with the optimal denoiser fixed_small makes a mode a little too narrow. A recursion gives
    # its variance: x_s = (c_1 k + c_2) x_t + ..., where k is the slope of E[x_0 | x_t] in a mode.
    expected = 1.0
    a = np.cumprod(np.append(1.0, 1.0 - oracles.betas("linear", 1000)))
    for t in range(1000, 0, -1):
        alpha, c = a[t] / a[t - 1], 1.0 - a[t]
        slope = np.sqrt(a[t]) * tau**2 / (a[t] * tau**2 + c)
        slope = (np.sqrt(a[t - 1]) * (1 - alpha) * slope + np.sqrt(alpha) * (1 - a[t - 1])) / c
        expected = slope**2 * expected + (1 - alpha) * (1 - a[t - 1]) / c
    assert 0.8 * tau**2 < expected < tau**2

    left, right = x[x < -0.15], x[x > -0.15]
    assert abs(left.size / n - weight) < 4 * np.sqrt(weight * (1 - weight) / n)
    for mode, part in zip(modes, (left, right), strict=True):
        assert abs(part.mean() - mode) < 4 * tau / np.sqrt(part.size)
        # a sample variance of m normal draws has standard error tau^2 sqrt(2 / m)
        assert abs(part.var() - expected) < 4 * expected * np.sqrt(2 / part.size)
