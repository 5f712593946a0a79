"""Editing with denoisers of Gaussian data: affine maps with exactly known slopes and moments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax import editing, samplers, timesteps
from ddpm_jax.errors import UserError
from ddpm_jax.process import alpha_sigma
from ddpm_jax.randomness import draw_x_T
from ddpm_jax.samplers.base import sample_loop
from ddpm_jax.types import Prediction

T, SHAPE = 100, (2, 3, 1)
PROCESS = ddpm_jax.make_process(oracles.betas("linear", T))
SAMPLER = samplers.ancestral(PROCESS, "fixed_large")
GRID = np.arange(T, -1, -1)
KEYS = jax.random.split(jax.random.key(0), 4)
X_0, OTHER = np.random.default_rng(0).normal(size=(2, 4, *SHAPE)).astype(np.float32)


def normal_denoiser(x_t, t, process=PROCESS):
    """Bayes-optimal for N(0, 1): with fixed_large the reverse chain is exact."""
    alpha_t, sigma_t = alpha_sigma(process, t, x_t)
    return Prediction(alpha_t * x_t, sigma_t * x_t)


def sdedit(x_0, depth, keys=KEYS):
    grid = editing.from_depth(GRID, depth)
    return editing.sdedit(PROCESS, SAMPLER, normal_denoiser, keys, x_0, grid)


# Depth


def test_from_depth_keeps_the_rest_of_the_grid():
    grid = timesteps.uniform(100, 5)  # 100, 75, 50, 26, 1, 0
    np.testing.assert_array_equal(editing.from_depth(grid, 100), grid)
    np.testing.assert_array_equal(editing.from_depth(grid, 50), [50, 26, 1, 0])
    np.testing.assert_array_equal(editing.from_depth(grid, 49), [49, 26, 1, 0])
    np.testing.assert_array_equal(editing.from_depth(grid, 1), [1, 0])
    for depth in (0, 101):
        with pytest.raises(UserError, match=rf"depth must be in 1..100 \(T\), found {depth}"):
            editing.from_depth(grid, depth)


# SDEdit


@pytest.mark.parametrize("depth", [1, 30, 100])
def test_sdedit_remembers_alpha_bar_of_the_image(depth):
    """For N(0, 1) data cov(x_0, edited) = ᾱ_depth: α on the way up, α on the way down."""
    a = oracles.chain_moments("linear", T)[0][depth]
    edited, slope = jax.jvp(lambda x: sdedit(x, depth), (jnp.asarray(X_0),), (jnp.ones_like(X_0),))
    np.testing.assert_allclose(slope, np.full(X_0.shape, a**2), rtol=1e-5)
    if depth == 1:  # t -> 0 is the image, up to σ_1 z shrunk by α_1
        np.testing.assert_allclose(edited, X_0, atol=5 * np.sqrt(1 - a**2))


def test_sdedit_at_zero_terminal_snr_is_a_plain_sample():
    process = ddpm_jax.make_process(oracles.betas("linear_zero_snr", 10))
    sampler, grid = samplers.ancestral(process), np.arange(10, -1, -1)
    denoise_fn = lambda x_t, t: normal_denoiser(x_t, t, process)  # noqa: E731
    edited = editing.sdedit(process, sampler, denoise_fn, KEYS, X_0, grid)
    plain = sample_loop(sampler, denoise_fn, KEYS, grid, draw_x_T(KEYS, SHAPE))
    np.testing.assert_allclose(edited, plain, atol=1e-6)


def test_each_image_is_edited_with_its_own_key():
    others = jax.random.split(jax.random.key(1), 4).at[2].set(KEYS[2])
    first, second = sdedit(X_0, 30), sdedit(X_0, 30, others)
    np.testing.assert_array_equal(first[2], second[2])
    assert np.abs(first - second)[np.array([0, 1, 3])].min(axis=0).max() > 0.1


# Interpolation


def interpolate(weight, mix="lerp", depth=30):
    grid = editing.from_depth(GRID, depth)
    return editing.interpolate(
        PROCESS, SAMPLER, normal_denoiser, KEYS, X_0, OTHER, weight, grid, mix
    )


@pytest.mark.parametrize("mix", ["lerp", "slerp"])
def test_the_ends_of_an_interpolation_are_the_ends_reconstructed(mix):
    for weight, end in ((0.0, X_0), (1.0, OTHER)):
        np.testing.assert_allclose(interpolate(weight, mix), sdedit(end, 30), atol=1e-5)


def test_lerp_with_shared_noise_is_a_straight_line_for_an_affine_chain():
    weight = np.array([0.0, 0.25, 0.5, 1.0], np.float32)
    w = weight[:, None, None, None]
    line = (1 - w) * sdedit(X_0, 30) + w * sdedit(OTHER, 30)
    np.testing.assert_allclose(interpolate(weight), line, atol=1e-5)


def test_slerp_walks_the_arc_at_constant_speed():
    x, y = (v / np.sqrt((v**2).sum(axis=(1, 2, 3), keepdims=True)) for v in (X_0, OTHER))
    angle = np.arccos((x * y).sum(axis=(1, 2, 3)))
    for weight in (0.0, 0.2, 0.5, 0.9):
        z = np.asarray(editing.slerp(x, y, np.float32(weight)))
        np.testing.assert_allclose((z**2).sum(axis=(1, 2, 3)), 1.0, rtol=1e-5)
        walked = np.arccos(np.clip((x * z).sum(axis=(1, 2, 3)), -1, 1))
        np.testing.assert_allclose(walked, weight * angle, atol=1e-3)
    np.testing.assert_allclose(editing.slerp(x, 3 * x, np.float32(0.5)), 2 * x, rtol=1e-6)
    assert np.isfinite(editing.slerp(x, 0 * x, np.float32(0.5))).all()


# Inpainting


def algorithm_1(T, U):
    """The timesteps that algorithm 1 of RePaint visits, from its two loops."""
    visited = [T]
    for t in range(T, 0, -1):
        for u in range(1, U + 1):
            if u == 1 or t > 1:
                visited.append(t - 1)
            if u < U and t > 1:
                visited.append(t)
    return visited


@pytest.mark.parametrize("U", [1, 2, 5])
def test_jumps_of_one_step_are_algorithm_1(U):
    for T in (1, 2, 7):
        grid = editing.resampling_grid(np.arange(T, -1, -1), U, 1)
        np.testing.assert_array_equal(grid, algorithm_1(T, U))


def test_longer_jumps_walk_whole_stretches():
    walk = editing.resampling_grid([7, 6, 5, 4, 3, 2, 1, 0], 2, 3)
    down = [[7, 6, 5, 4], [5, 6, 7, 6, 5, 4], [3, 2, 1], [2, 3, 4, 3, 2, 1], [0]]
    np.testing.assert_array_equal(walk, np.concatenate(down))
    np.testing.assert_array_equal(
        editing.resampling_grid([90, 40, 10, 0], 2, 9), [90, 40, 10, 40, 90, 40, 10, 0]
    )
    np.testing.assert_array_equal(editing.resampling_grid([90, 0], 4, 1), [90, 0])


def inpaint(x_0, mask, keys=KEYS, denoise_fn=normal_denoiser, **options):
    grid = timesteps.trailing(T, 5)
    return editing.inpaint(PROCESS, SAMPLER, denoise_fn, keys, x_0, mask, grid, **options)


def test_known_pixels_stay_and_hidden_ones_are_not_read():
    mask = np.zeros((1, 2, 3, 1), bool)
    mask[0, :, 1] = True
    known = np.broadcast_to(mask, X_0.shape)
    first = inpaint(X_0, mask)
    second = inpaint(np.where(mask, X_0, np.nan).astype(np.float32), mask.astype(np.float32))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[known], X_0[known])
    assert np.abs(first - X_0)[~known].min() > 1e-4
    others = jax.random.split(jax.random.key(1), 4).at[2].set(KEYS[2])
    third = inpaint(X_0, mask, others)
    np.testing.assert_array_equal(first[2], third[2])
    assert np.abs(first - third)[~known].max() > 0.1


def test_the_network_is_traced_once_and_evaluated_for_the_moves_down_alone():
    traces, evaluations = [], []

    def denoise_fn(x_t, t):
        traces.append(t)
        jax.debug.callback(lambda t: evaluations.append(int(t)), t, ordered=True)
        return normal_denoiser(x_t, t)

    inpaint(X_0, True, denoise_fn=denoise_fn, num_resamples=3, jump_length=2)
    jax.effects_barrier()
    assert len(traces) == 1
    assert evaluations == [100, 80] * 3 + [60, 40] * 3 + [20]


def test_known_pixels_are_noised_to_the_timestep_that_a_step_reaches():
    def two(key, t, shape):
        return jnp.full(shape, 2.0)

    sampler = dataclasses.replace(samplers.ddim(PROCESS), noise=two)
    walker = editing.repaint(sampler, X_0, jnp.ones(X_0.shape, bool))
    state, _ = walker.step(normal_denoiser, KEYS, walker.init(jnp.asarray(OTHER)), 50, 30)
    a = oracles.chain_moments("linear", T)[0]
    np.testing.assert_allclose(state.x, a[30] * X_0 + 2 * np.sqrt(1 - a[30] ** 2), rtol=1e-5)
    up, _ = walker.step(normal_denoiser, KEYS, state, 30, 50)
    ratio = a[50] / a[30]
    np.testing.assert_allclose(up.x, ratio * state.x + 2 * np.sqrt(1 - ratio**2), rtol=1e-5)


MEAN, COVARIANCE, KNOWN = np.array([0.1, -0.2]), np.array([[0.5, 0.4], [0.4, 0.6]]), 0.9
EXACT = (  # of the second pixel given that the first is KNOWN
    MEAN[1] + COVARIANCE[0, 1] / COVARIANCE[0, 0] * (KNOWN - MEAN[0]),
    COVARIANCE[1, 1] - COVARIANCE[0, 1] ** 2 / COVARIANCE[0, 0],
)


def gain(t):
    """E[x_0 | x_t] = MEAN + gain (x_t - α MEAN)."""
    a = oracles.chain_moments("linear", T)[0][t]
    return a * COVARIANCE @ np.linalg.inv(a**2 * COVARIANCE + (1 - a**2) * np.eye(2))


def repaint_moments(U, j):
    """Mean and variance of the hidden pixel, from the steps of the algorithm (fixed_large).

    The known pixel gets independent noise at every step, so its covariances are 0.
    """
    a = oracles.chain_moments("linear", T)[0]
    mean, covariance = np.zeros(2), np.eye(2)
    walk = editing.resampling_grid(GRID, U, j)
    for t, s in zip(walk[:-1], walk[1:], strict=True):
        if s > t:
            ratio = a[s] / a[t]
            mean, covariance = ratio * mean, ratio**2 * covariance + (1 - ratio**2) * np.eye(2)
            continue
        c_1, c_2, variance = 1.0, 0.0, 0.0
        if s > 0:
            c_1, c_2, _ = oracles.posterior("linear", T, t, s)
            variance = 1 - (a[t] / a[s]) ** 2
        linear = c_1 * gain(t) + c_2 * np.eye(2)
        mean = linear @ mean + c_1 * (MEAN - gain(t) @ (a[t] * MEAN))
        covariance = linear @ covariance @ linear.T + variance * np.eye(2)
        mean[0], covariance[0, 1], covariance[1, 0] = a[s] * KNOWN, 0.0, 0.0
        covariance[0, 0] = 1 - a[s] ** 2
    return mean[1], covariance[1, 1]


N_HIDDEN = 8192


@functools.cache
def hidden_pixels(U, j):
    """The hidden pixel, inpainted by the real loop: [N_HIDDEN] float64."""
    gains = jnp.asarray(np.stack([gain(t) for t in range(T + 1)]), jnp.float32)
    mean = jnp.asarray(MEAN, jnp.float32)[None]

    def denoise_fn(x_t, t):
        alpha_t, sigma_t = alpha_sigma(PROCESS, t, x_t)
        centred = (x_t - alpha_t * mean[:, None, :, None])[:, 0, :, 0]
        x_0 = (mean + centred @ gains[t].T)[:, None, :, None]
        return Prediction(x_0, (x_t - alpha_t * x_0) / sigma_t)

    @jax.jit
    def draw(keys):
        x_0 = jnp.full((N_HIDDEN, 1, 2, 1), KNOWN, jnp.float32)
        mask = jnp.array([True, False]).reshape(1, 1, 2, 1)
        return editing.inpaint(
            PROCESS, SAMPLER, denoise_fn, keys, x_0, mask, GRID, num_resamples=U, jump_length=j
        )

    keys = jax.random.split(jax.random.key(5), N_HIDDEN)
    return np.asarray(draw(keys), np.float64)[:, 0, 1, 0]


@pytest.mark.slow
def test_resampling_brings_a_correlated_pixel_to_its_conditional_distribution():
    """N(0.44, 0.28) is exact; the algorithm gives the mean 0.151 at U = 1 and 0.395 at U = 10."""
    means, variances = zip(
        *[(x.mean(), x.var()) for x in (hidden_pixels(U, 1) for U in (1, 5, 10))], strict=True
    )
    error = 4 * np.sqrt(EXACT[1] / N_HIDDEN)  # of a mean
    far, nearer, near = np.abs(np.array(means) - EXACT[0])
    assert far - error > nearer + error and nearer > near
    assert far > 0.289 - error and near < 0.045 + error
    far, _, near = np.abs(np.array(variances) - EXACT[1])
    error = 4 * EXACT[1] * np.sqrt(2 / N_HIDDEN)
    assert far > 0.098 - error > near and near < 0.014 + error


@pytest.mark.parametrize(("U", "j"), [(1, 1), (5, 1), (3, 10)])
def test_inpainted_pixels_have_the_algorithms_moments(U, j):
    """Monte Carlo through the real loop, within 4 standard errors."""
    hidden = hidden_pixels(U, j)
    wanted, variance = repaint_moments(U, j)
    assert abs(hidden.mean() - wanted) < 4 * np.sqrt(variance / N_HIDDEN)
    assert abs(hidden.var() - variance) < 4 * variance * np.sqrt(2 / N_HIDDEN)


# Errors


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="unknown mix 'sperp'; did you mean 'slerp'"):
        interpolate(0.5, "sperp")
    with pytest.raises(UserError, match="x_0 and other must have the same shape, found"):
        editing.interpolate(PROCESS, SAMPLER, normal_denoiser, KEYS, X_0, OTHER[:2], 0.5, [30, 0])
    with pytest.raises(UserError, match=r"mask of shape \(3, 3, 1\) does not fit images of shape"):
        inpaint(X_0, np.ones((3, 3, 1)))
    for options in (dict(num_resamples=0), dict(jump_length=0)):
        with pytest.raises(UserError, match="num_resamples and jump_length must be at least 1"):
            inpaint(X_0, True, **options)
