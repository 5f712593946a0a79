"""Exact moments of whole chains of the stochastic samplers, without Monte Carlo.

If the denoiser is affine in x_t, x_s is affine in x_T and in every draw of the chain. The keys give
the draws. A least-squares fit over a few images gives the affine map to float32 rounding, and the
map gives mean and variance.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_cases import SAMPLERS, STOCHASTIC

import ddpm_jax
from ddpm_jax import samplers, timesteps
from ddpm_jax.randomness import draw_noise, draw_x_T
from ddpm_jax.types import Prediction

T, POINT, DEVIATION = 1000, 0.6, 0.5
AFFINE = [name for name in STOCHASTIC if name != "predictor_corrector"]
SCHEDULES = ("linear", "cosine", "linear_zero_snr")


@functools.partial(jax.jit, static_argnames=("name", "denoiser"))
def run(process, keys, grid, name, denoiser):
    """x_s of each step: [K, B], and its inputs: [K+1, B], x_T and the draw of each step."""
    x_T = draw_x_T(keys, (1,))
    _, x_s = samplers.sample_loop(
        SAMPLERS[name](process),
        denoiser(process),
        keys,
        grid,
        x_T,
        lambda t, s, state, prediction: state.x,
    )
    folded = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))(keys, grid[:-1])
    draws = jax.vmap(lambda key: draw_noise(key, (1,)))(folded)
    return x_s[..., 0], jnp.concatenate([x_T[None], draws])[..., 0]


def moments(process, grid, name, denoiser, mean_T=0.0, variance_T=1.0):
    """Mean and variance of each x_s, for x_T of the mean and variance given."""
    keys = jax.random.split(jax.random.key(1), 2 * len(grid) + 6)
    x_s, draws = (np.float64(a) for a in run(process, keys, jnp.asarray(grid), name, denoiser))
    design = np.column_stack([np.ones(len(keys)), draws.T])
    coefficients, *_ = np.linalg.lstsq(design, x_s.T, rcond=None)
    assert np.abs(design @ coefficients - x_s.T).max() < 2e-4  # x_s is affine in the design
    mean = coefficients[0] + coefficients[1] * mean_T
    return mean, coefficients[1] ** 2 * variance_T + (coefficients[2:] ** 2).sum(axis=0)


@pytest.mark.parametrize("name", [n for n in AFFINE if n != "ancestral fixed_large"])
def test_for_a_point_every_x_s_is_distributed_as_q(name):
    """For any amount of noise (Song et al. 2021, lemma 1; churn is a forward step)."""
    grid = np.array([1000, 940, 700, 500, 300, 120, 30, 2, 0])
    for schedule in SCHEDULES:
        process = ddpm_jax.make_process(oracles.betas(schedule, T))
        alpha, covariance = oracles.chain_moments(schedule, T)
        x_T = alpha[T] * POINT, covariance[T, T]
        mean, variance = moments(process, grid, name, oracles.point_denoiser, *x_T)
        np.testing.assert_allclose(mean, alpha[grid[1:]] * POINT, atol=2e-5)
        np.testing.assert_allclose(variance, covariance[grid, grid][1:], rtol=2e-4, atol=1e-9)


def gaussian(process):
    return oracles.gaussian_denoiser(process, [[DEVIATION**2]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("ancestral fixed_small", 1),
        ("ddim eta 0.5", 1),
        ("dpm_solver_pp_2m sde", 2),
    ],
)
def test_the_variance_of_gaussian_data_is_approached_at_its_order(name, order):
    """Errors of the moments of x_0 as the steps, even in log-SNR, are halved."""
    process = ddpm_jax.make_process(oracles.betas("linear", T))
    errors = []
    for num_steps in (25, 50):
        grid = timesteps.log_snr_uniform(process.log_snr, num_steps)
        mean, variance = moments(process, grid, name, gaussian)
        assert abs(mean[-1]) < 1e-5
        errors.append(abs(np.sqrt(variance[-1]) / DEVIATION - 1.0))
    assert errors[1] < (0.65, 0.45)[order - 1] * errors[0]
    assert errors[1] < (0.1, 0.02)[order - 1]


def step_of(sampler, denoise_fn, keys, x):
    """The sampler's step from x, compiled once for every t and s."""
    return jax.jit(lambda t, s: sampler.step(denoise_fn, keys, sampler.init(x), t, s))


def test_the_noise_of_a_step_is_what_eta_says():
    """Variance of DDIM's own draw: eta^2 times the posterior's (Song et al. 2021, eq. 16)."""
    process = ddpm_jax.make_process(oracles.betas("linear", T))
    keys = jax.random.split(jax.random.key(0), 64)
    z = draw_noise(keys, (1,))
    for eta in (0.0, 0.5, 1.0):
        sampler = samplers.ddim(process, eta)
        step = step_of(sampler, lambda x, t: Prediction(x, x), keys, jnp.zeros((64, 1)))
        for t, s in ((900, 500), (20, 3), (2, 1)):
            expected = eta * np.sqrt(oracles.posterior("linear", T, t, s)[2]) * z
            np.testing.assert_allclose(step(t, s)[0].x, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("s_noise", [1.0, 1.5])
def test_churn_goes_to_the_nearest_timestep_inside_its_range_of_noise_levels(s_noise):
    process = ddpm_jax.make_process(oracles.betas("linear", T))
    sigma_bar = np.exp(-0.5 * np.float64(process.log_snr))
    alpha = 1.0 / np.sqrt(1.0 + sigma_bar**2)
    keys = jax.random.split(jax.random.key(0), 64)
    z = np.asarray(draw_noise(keys, (1,)))
    sampler = samplers.euler(process, 0.25, s_min=0.2, s_max=30.0, s_noise=s_noise)
    show = lambda x, t: Prediction(x, jnp.full_like(x, jnp.asarray(t, x.dtype)))  # noqa: E731
    step = step_of(sampler, show, keys, jnp.ones((64, 1)))
    assert not 0.2 <= sigma_bar[20] and not sigma_bar[980] <= 30.0
    for t in (20, 300, 400, 600, 980):
        x, t_hat, _ = step(t, 1)[1]
        t_hat = int(t_hat[0, 0])
        if t in (20, 980):
            assert t_hat == t and np.all(x == 1.0)
            continue
        assert t_hat == 1 + np.argmin(np.abs(np.log(sigma_bar[1:] / (1.25 * sigma_bar[t])))) > t
        # alpha_t̂ (x_t/alpha_t + √(σ̄_t̂² - σ̄_t²) S_noise z)
        spread = alpha[t_hat] * np.sqrt(sigma_bar[t_hat] ** 2 - sigma_bar[t] ** 2)
        np.testing.assert_allclose(x, alpha[t_hat] / alpha[t] + s_noise * spread * z, atol=1e-5)


def test_where_no_timestep_is_near_enough_churn_adds_nothing():
    process = ddpm_jax.make_process(oracles.betas("linear", 10))
    keys, denoise_fn = jax.random.split(jax.random.key(0), 4), oracles.mixture_denoiser(process)
    x_s = [
        step_of(samplers.heun(process, gamma), denoise_fn, keys, jnp.ones((4, 1)))(7, 3)[0].x
        for gamma in (0.0, 1e-3, 0.4)
    ]
    np.testing.assert_allclose(x_s[0], x_s[1], rtol=1e-6)
    assert np.ptp(x_s[0]) == 0.0 and np.ptp(x_s[2]) > 0.1


# The Langevin corrector: not affine, because its step size depends on the norms.


def corrected_x_t(process, snr, num_corrections, keys, x_t, t, s, eps):
    """x_t after the Langevin steps: the input of the predictor's denoiser."""

    @jax.jit
    def step(x_t):
        sampler = samplers.predictor_corrector(process, "fixed_small", snr, num_corrections)
        denoise_fn = lambda x, t: Prediction(x, eps(x))  # noqa: E731
        return sampler.step(denoise_fn, keys, sampler.init(x_t), t, s)[1].x_0

    return np.asarray(step(x_t))


def test_a_langevin_step_is_the_papers():
    """Song et al. 2021, algorithm 5, line by line in numpy."""
    process = ddpm_jax.make_process(oracles.betas("linear", T))
    a = np.cumprod(np.append(1.0, 1.0 - oracles.betas("linear", T)))
    t, s, snr = 600, 450, 0.3
    keys = jax.random.split(jax.random.key(0), 3)
    x_t = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    expected = np.float64(x_t)
    for i in range(3):
        ours = corrected_x_t(process, snr, i, keys, x_t, t, s, lambda x: 0.8 * x + 0.1)
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)
        noise = [jax.random.normal(jax.random.fold_in(key, i + 1), (4, 2)) for key in keys]
        noise, score = np.float64(noise), -(0.8 * expected + 0.1) / np.sqrt(1.0 - a[t])
        norms = [np.sqrt((v**2).sum(axis=(1, 2), keepdims=True)) for v in (noise, score)]
        step = 2.0 * (a[t] / a[s]) * (snr * norms[0] / norms[1]) ** 2
        expected = expected + step * score + np.sqrt(2.0 * step) * noise


def test_langevin_steps_keep_gaussian_data_up_to_their_length_squared():
    """For x ~ N(0, I) the score is -x; a step of length e leaves the variance (1-e)² + 2e = 1 + e²,
    and with many pixels e is 2 alpha r² for each image."""
    process = ddpm_jax.make_process(oracles.betas("linear", T))
    a = np.cumprod(np.append(1.0, 1.0 - oracles.betas("linear", T)))
    pixels, snr, t, s = 2_000_000, 0.3, 600, 500
    x_t = np.random.default_rng(0).normal(size=(1, pixels)).astype(np.float32)
    keys, sigma_t = jax.random.split(jax.random.key(0), 1), np.float32(np.sqrt(1.0 - a[t]))
    x = corrected_x_t(process, snr, 1, keys, x_t, t, s, lambda x: sigma_t * x)
    step = 2.0 * a[t] / a[s] * snr**2
    expected = (1.0 - step) ** 2 * x_t.var() + 2.0 * step
    # of the fresh noise's variance and of its correlation with x_t
    error = 2.0 * step * np.sqrt(2.0 / pixels) + 2.0 * np.sqrt(2.0 * step / pixels)
    assert abs(x.var() - expected) < 4.0 * error
    assert step**2 > 4.0 * error > 0.0 and expected > 1.0


def test_a_score_of_zero_corrects_nothing():
    process = ddpm_jax.make_process(oracles.betas("linear", 10))
    keys, x = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 3))
    np.testing.assert_array_equal(
        corrected_x_t(process, 0.16, 1, keys, x, 7, 3, lambda x: x * 0.0), x
    )
