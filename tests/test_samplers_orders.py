"""The order of every deterministic solver: the steps are halved, in float64.

The exact flow is the reference. For a Gaussian it is a matrix. In one dimension it carries
quantiles to quantiles. The grids end at t = 1, because the step to clean data has order 1 for every
solver.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_cases import DETERMINISTIC

import ddpm_jax
from ddpm_jax import samplers
from ddpm_jax.samplers import ode
from ddpm_jax.types import Prediction

ORDERS = {
    "ddim": 1,
    "euler": 1,
    "heun": 2,
    "dpm_solver_pp_2m": 2,
    "dpm_solver_pp_3m": 3,
    "dpm_solver_pp_2s": 2,
    "unipc 2": 3,
    "unipc 3": 4,
}
T = 1025
COVARIANCE = np.array([[0.9, 0.5], [0.5, 0.4]])
MODES = ((0.3, -0.8, 0.2), (0.7, 0.5, 0.3))
# A solver of order p starts with steps of lower order. Their error falls only as h^2. At lambda -6
# x_0-hat is nearly constant, so this error shrinks by e^-12, and the solver's own error remains.
LAMBDA = np.append(np.inf, np.linspace(2.0, -6.0, T))


def exact_process():
    """The process of LAMBDA, its tables in float64; call with 64 bits enabled."""
    alphas_cumprod = 1.0 / (1.0 + np.exp(-2.0 * LAMBDA))
    log = -np.log1p(np.exp(-2.0 * LAMBDA))
    betas = np.append(0.0, 1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1])
    process = ddpm_jax.make_process(betas[1:])
    return dataclasses.replace(
        process,
        betas=jnp.asarray(betas),
        alphas_cumprod=jnp.asarray(alphas_cumprod),
        sqrt_alphas_cumprod=jnp.asarray(np.sqrt(alphas_cumprod)),
        sqrt_one_minus_alphas_cumprod=jnp.asarray(np.sqrt(-np.expm1(log))),
        log_alphas_cumprod=jnp.asarray(log),
        log_alphas_cumprod_lo=jnp.zeros(T + 1),
        log_snr=jnp.asarray(2.0 * LAMBDA),
    )


def denoiser(process):
    """Bayes-optimal for three pixels: two are a Gaussian, and the third is a mixture."""
    gaussian = oracles.gaussian_denoiser(process, COVARIANCE)
    mixture = oracles.mixture_denoiser(process, MODES)

    def denoise_fn(x_t, t):
        both = gaussian(x_t[:, :2], t), mixture(x_t[:, 2:], t)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *both)

    return denoise_fn


def exact_flow(x_T):
    """x_1 of the flow that starts at x_T: [B, 3]."""
    alpha, sigma = (1.0 / np.sqrt(1.0 + np.exp(-sign * LAMBDA * 2)) for sign in (1, -1))
    variances, axes = np.linalg.eigh(COVARIANCE)
    scale = np.sqrt(
        (alpha[1] ** 2 * variances + sigma[1] ** 2) / (alpha[T] ** 2 * variances + sigma[T] ** 2)
    )
    gaussian = x_T[:, :2] @ (axes * scale) @ axes.T

    def quantile(x, t):
        spreads = [math.hypot(alpha[t] * d, sigma[t]) for _, _, d in MODES]
        return sum(
            w * 0.5 * math.erfc((alpha[t] * m - x) / (spread * math.sqrt(2.0)))
            for (w, m, _), spread in zip(MODES, spreads, strict=True)
        )

    def transport(x):
        low, high, target = -10.0, 10.0, quantile(x, T)
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if quantile(middle, 1) < target else (low, middle)
        return low

    mixture = np.array([[transport(x)] for x in x_T[:, 2]])
    return np.concatenate([gaussian, mixture], axis=1)


@pytest.fixture(scope="module")
def setting():
    with jax.enable_x64(True):
        x_T = np.random.default_rng(0).normal(size=(16, 3))
        process = exact_process()
        assert process.log_snr.dtype == np.float64
        yield process, x_T, exact_flow(x_T)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_halving_the_steps_shows_the_order(setting, name):
    process, x_T, expected = setting
    with jax.enable_x64(True):
        keys, denoise_fn = jax.random.split(jax.random.key(0), 16), denoiser(process)
        errors = []
        for num_steps in (256, 512):
            grid = np.linspace(T, 1, num_steps + 1).astype(np.int32)
            x = samplers.sample_loop(DETERMINISTIC[name](process), denoise_fn, keys, grid, x_T)
            errors.append(np.sqrt(np.mean((np.asarray(x) - expected) ** 2, axis=0)))
    orders = np.log2(errors[0] / errors[1])  # of the Gaussian pixels, and of the mixture pixel
    np.testing.assert_allclose(orders, ORDERS[name], atol=0.35)


@pytest.mark.parametrize(("t", "s"), [(9, 6), (6, 1), (12, 2)])
def test_2s_is_exact_where_x_0_is_a_line_in_lambda_wherever_the_timestep_between_is(t, s):
    """With x̂_0 = a + b λ the slope over r h is known: D = x̂_0(t) + b h / 2 whatever r is."""
    process = ddpm_jax.make_process(oracles.betas("linear", 12))  # uneven in λ
    alpha = oracles.chain_moments("linear", 12)[0]
    sigma = np.sqrt(1 - alpha**2)
    lambda_ = np.log(alpha[1:] / sigma[1:])
    a, b = 0.3, 0.7

    def denoise_fn(x_t, t):
        alpha_t, sigma_t = oracles.tables(process, t)
        x_0 = jnp.full_like(x_t, a) + b * jnp.log(alpha_t / sigma_t)
        return Prediction(x_0, (x_t - alpha_t * x_0) / sigma_t)

    x_t, keys = np.array([[0.5], [-1.0]], np.float32), jax.random.split(jax.random.key(0), 2)
    sampler = samplers.dpm_solver_pp_2s(process)
    x_s = sampler.step(denoise_fn, keys, sampler.init(jnp.asarray(x_t)), t, s)[0].x
    h = lambda_[s - 1] - lambda_[t - 1]
    x_0 = a + b * lambda_[t - 1] + 0.5 * b * h
    expected = sigma[s] / sigma[t] * x_t + alpha[s] * (1 - np.exp(-h)) * x_0
    np.testing.assert_allclose(x_s, expected, rtol=1e-5)


def test_inversion_returns_the_image_with_an_error_of_order_1(setting):
    process, x_T, _ = setting
    with jax.enable_x64(True):
        keys, denoise_fn = jax.random.split(jax.random.key(0), 16), denoiser(process)
        x_0, errors = x_T, []  # any image
        for num_steps in (256, 512):
            grid = np.linspace(T, 1, num_steps + 1).astype(np.int32)
            up = samplers.sample_loop(
                samplers.ddim_inversion(process), denoise_fn, keys, grid[::-1], x_0
            )
            down = samplers.sample_loop(samplers.ddim(process), denoise_fn, keys, grid, up)
            errors.append(np.abs(np.asarray(down) - x_0).max())
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 1.0, atol=0.3)
    assert errors[1] < 0.05


@pytest.mark.parametrize("h", [1e-3, 0.3, 0.999, 1.001, 3.0, 20.0])
def test_weights_integrate_polynomials_exactly(h):
    """Against quadrature of e^{τ-h} τ^k over 0..h, for nodes that are not even."""
    u, du = np.polynomial.legendre.leggauss(60)
    tau, weight = 0.5 * h * (u + 1.0), 0.5 * h * du * np.exp(0.5 * h * (u + 1.0) - h)
    with jax.enable_x64(True):
        for nodes in ([0.0], [0.0, -0.7], [1.0, 0.0, -0.7], [1.0, 0.0, -0.7, -2.1]):
            w = ode.weights(jnp.asarray(h), [jnp.asarray(node) for node in nodes])
            for k in range(len(nodes)):
                ours = sum(w_j * node**k for w_j, node in zip(w, nodes, strict=True))
                expected = np.sum(weight * (tau / h) ** k) / np.sum(weight)
                np.testing.assert_allclose(ours, expected, rtol=1e-10)
