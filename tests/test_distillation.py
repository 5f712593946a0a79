"""Score distillation: against priors whose exact denoisers give the expected gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import gaussian_denoiser, mixture_denoiser, tables

from ddpm_jax import distillation, guidance, make_process, schedules
from ddpm_jax.errors import UserError
from ddpm_jax.randomness import image_keys

T = 100
PROCESS = make_process(schedules.cosine(T))
MODES = ((0.3, -0.8, 0.2), (0.7, 0.5, 0.3))


def keys(n, seed=0):
    return image_keys(jax.random.key(seed), np.arange(n))


def mean_gradient(denoise_fn, x, t, n=40_000, **options):
    """The mean over draws of ε, and its standard error; all draws have one t."""

    def at(x, t):
        return denoise_fn(x, t[0])  # the oracles take one t

    found = distillation.gradient(
        PROCESS, at, keys(n), jnp.full((n, 1), x), jnp.full(n, t), **options
    )
    return float(found.mean()), float(found.std() / np.sqrt(n))


def by_quadrature(denoise_fn, x, t, order=80):
    """The same mean by Gauss-Hermite quadrature over ε."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    alpha_t, sigma_t = (float(v) for v in tables(PROCESS, t))
    x_t = jnp.asarray(alpha_t * x + sigma_t * nodes[:, None], jnp.float32)
    predicted = np.asarray(denoise_fn(x_t, jnp.int32(t)).eps)[:, 0]
    return float((weights * (predicted - nodes)).sum() / weights.sum())


@pytest.mark.parametrize("t", [5, 50, 90])
def test_the_gradient_of_a_gaussian_prior_is_that_of_the_formula(t):
    """E = σ α (x - m) / (α² s² + σ²), so its only fixed point is the mean."""
    m, s, x = 0.4, 0.5, -0.3
    alpha_t, sigma_t = (float(v) for v in tables(PROCESS, t))
    expected = sigma_t * alpha_t * (x - m) / (alpha_t**2 * s**2 + sigma_t**2)
    prior = gaussian_denoiser(PROCESS, ((s**2,),), m)
    found, error = mean_gradient(prior, x, t, weighting=distillation.uniform)
    assert abs(found - expected) < 5 * error + 1e-4
    weighted, error = mean_gradient(prior, x, t)
    assert abs(weighted - sigma_t**2 * expected) < 5 * error + 1e-4
    at_mean, error = mean_gradient(prior, m, t)
    assert abs(at_mean) < 5 * error + 1e-4


@pytest.mark.parametrize("t", [5, 50, 90])
def test_antithetic_noise_gives_the_expected_gradient_of_a_gaussian_prior_with_every_key(t):
    m, s = 0.4, 0.5
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
    alpha_t, sigma_t = (float(v) for v in tables(PROCESS, t))
    expected = sigma_t * alpha_t * (np.asarray(x) - m) / (alpha_t**2 * s**2 + sigma_t**2)
    prior = gaussian_denoiser(PROCESS, s**2 * np.eye(2), m)
    both, one = (
        distillation.gradient(
            PROCESS, lambda x, t: prior(x, t[0]), keys(6), x, jnp.full(6, t), distillation.uniform,
            antithetic=antithetic,
        )
        for antithetic in (True, False)
    )  # fmt: skip
    np.testing.assert_allclose(both, expected, atol=2e-5)
    assert (np.abs(one - expected) > 1e-3).any()


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_the_gradient_of_a_mixture_is_that_of_the_quadrature_with_guidance_too(w):
    conditional = mixture_denoiser(PROCESS, MODES[1:] + ((0.3, 0.9, 0.2),))
    both = mixture_denoiser(PROCESS, MODES)

    def pair_fn(x_t, t):  # each image twice: with its condition, and without
        pairs = jax.tree.map(
            lambda a, b: jnp.stack([a[::2], b[1::2]], axis=1).reshape(a.shape),
            conditional(x_t, t),
            both(x_t, t),
        )
        return pairs

    guided = guidance.classifier_free(PROCESS, pair_fn, w)
    for x in (-0.6, 0.1, 0.7):
        expected = (1 + w) * by_quadrature(conditional, x, 40) - w * by_quadrature(both, x, 40)
        found, error = mean_gradient(guided, x, 40, weighting=distillation.uniform)
        assert abs(found - expected) < 5 * error + 1e-3


def test_distillation_seeks_a_mode():
    """Descent ends at the mean of a Gaussian, whatever its spread: there is no variety."""
    prior = gaussian_denoiser(PROCESS, ((0.25,),), 0.4)
    x, t = jnp.asarray(np.linspace(-1, 1, 64)[:, None], jnp.float32), jnp.full(64, 30)

    def step(x, i):
        grad = distillation.gradient(
            PROCESS, lambda x, t: prior(x, t[0]), keys(64, 1), x, t, distillation.uniform
        )
        return x - 0.02 * grad, None

    # one noise per image, so each goes to its own fixed point; their mean is the mean
    found, _ = jax.lax.scan(step, x, jnp.arange(2000))
    alpha_t, sigma_t = (float(v) for v in tables(PROCESS, 30))
    eps = np.asarray(distillation.draw_noise(distillation.fold_in(keys(64, 1), 1), (1,)))
    fixed = 0.4 + eps * alpha_t * 0.25 / sigma_t
    np.testing.assert_allclose(found, fixed, atol=2e-3)


def test_no_gradient_reaches_the_prior_and_theta_gets_the_given_one():
    def loss(theta, prior):
        x = jnp.outer(jnp.ones(4), jnp.sin(theta))  # [4, 3]

        def denoise_fn(x_t, t):
            return gaussian_denoiser(PROCESS, np.eye(3))(x_t * prior, t[0])

        t = jnp.full(4, 20)
        grad = distillation.gradient(PROCESS, denoise_fn, keys(4), x, t)
        return distillation.surrogate(x, grad), grad

    theta = jnp.array([0.1, 0.2, 0.3])
    (of_theta, of_prior), grad = jax.grad(loss, argnums=(0, 1), has_aux=True)(theta, 1.5)
    assert of_prior == 0.0
    np.testing.assert_allclose(of_theta, grad.mean(axis=0) * jnp.cos(theta), rtol=1e-5)


def test_one_weighting_makes_the_gradient_the_error_of_x_0():
    prior, n, t = gaussian_denoiser(PROCESS, np.eye(2)), 5, 30
    x = jnp.asarray(np.random.default_rng(0).normal(size=(n, 2)), jnp.float32)
    eps = distillation.draw_noise(distillation.fold_in(keys(n), 1), (2,))
    alpha_t, sigma_t = (float(v) for v in tables(PROCESS, t))
    expected = x - prior(alpha_t * x + sigma_t * eps, t).x_0
    found = distillation.gradient(
        PROCESS, lambda x, t: prior(x, t[0]), keys(n), x, jnp.full(n, t), distillation.x_0_error
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_gradient_of_a_prior_of_latents_goes_through_the_encoder():
    """z = A x: E of the gradient of x is Aᵀ σ α (A x - m) / (α² s² + σ²)."""
    n, t, m, s = 40_000, 50, 0.4, 0.5
    matrix = jnp.array([[1.0, -2.0, 0.5], [0.3, 0.0, 1.0]])
    x = jnp.array([0.2, -0.1, 0.7])
    prior = gaussian_denoiser(PROCESS, s**2 * np.eye(2), m)

    def loss(x):
        z = jnp.broadcast_to(matrix @ x, (n, 2))
        found = distillation.gradient(
            PROCESS, lambda z, t: prior(z, t[0]), keys(n), z, jnp.full(n, t), distillation.uniform
        )
        return distillation.surrogate(z, found)

    alpha_t, sigma_t = (float(v) for v in tables(PROCESS, t))
    of_z = sigma_t * alpha_t * (np.asarray(matrix @ x) - m) / (alpha_t**2 * s**2 + sigma_t**2)
    error = 2 * np.linalg.norm(np.asarray(matrix), 2) / np.sqrt(n)
    np.testing.assert_allclose(jax.grad(loss)(x), np.asarray(matrix).T @ of_z, atol=5 * error)


def test_an_image_depends_on_its_own_key_only():
    prior = gaussian_denoiser(PROCESS, np.eye(2))
    x, t = jnp.zeros((5, 2)), jnp.full(5, 7)

    def found(n):
        return distillation.gradient(PROCESS, lambda x, t: prior(x, t[0]), keys(n), x[:n], t[:n])

    np.testing.assert_array_equal(found(5)[:2], found(2))
    assert np.unique(found(5)).size == 10


def test_times_are_uniform_in_their_range_and_the_upper_end_may_fall():
    t = np.asarray(distillation.draw_times(keys(20_000), 100))
    assert (t.min(), t.max()) == (2, 98)
    counts = np.bincount(t)[2:]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 97 + 5 * np.sqrt(2 * 97)
    late = jax.jit(lambda high: distillation.draw_times(keys(500), 100, 0.02, high))(0.3)
    assert (late.min(), late.max()) == (2, 30)
    assert set(np.asarray(distillation.draw_times(keys(50), 3))) <= {1, 2, 3}


def test_one_t_for_each_image():
    with pytest.raises(UserError, match=r"t must have the shape \(3,\), found \(\)"):
        distillation.gradient(PROCESS, gaussian_denoiser(PROCESS), keys(3), jnp.zeros((3, 1)),
                              jnp.int32(4))  # fmt: skip
