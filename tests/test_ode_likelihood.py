"""Likelihoods by the probability-flow ODE, where the flow of the exact denoiser is known.

For N(m, τ²) the flow is linear: x_T = alpha_T m + (s_T/s_1) (x_1 - alpha_1 m) with s_t² = alpha_t²
τ² + sigma_t². The model's density of x_1/alpha_1 therefore has a closed form.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.stats

import ddpm_jax
from ddpm_jax.errors import UserError
from ddpm_jax.likelihood import ode
from ddpm_jax.likelihood.ode import make_bits_per_dim, make_log_prob
from ddpm_jax.pixels import dequantise
from ddpm_jax.randomness import image_keys

pytestmark = pytest.mark.loose_promotion(reason="diffrax mixes types")

T = 1000
PROCESS = ddpm_jax.make_process(oracles.betas("linear", T))
M, TAU = 0.3, 0.5
X = np.random.default_rng(0).normal(M, TAU, (3, 4)).astype(np.float32)
COVARIANCE = np.array([[0.5, 0.3, 0.1], [0.3, 0.6, -0.2], [0.1, -0.2, 0.4]])
U = np.asarray(-0.5 * PROCESS.log_snr[1:])

calls = []


def levels(t, like):
    """alpha and sigma at the t that the network received, by inverting the interpolation."""
    u = jnp.interp(t + 1, jnp.arange(1, T + 1, dtype=jnp.float32), U)
    shape = (-1,) + (1,) * (like.ndim - 1)
    return tuple(jnp.sqrt(jax.nn.sigmoid(sign * 2 * u)).reshape(shape) for sign in (-1, 1))


def gaussian(params, x, t, cond, *, train, key):
    """Predicts eps of N(m, τ²), pixel by pixel; params give m and τ, cond can replace m."""
    jax.debug.callback(lambda: calls.append(None))
    mean, tau = params
    mean = mean if cond is None else cond["mean"][:, None]
    alpha, sigma = levels(t, x)
    return sigma * (x - alpha * mean) / (alpha**2 * tau**2 + sigma**2)


def gaussian_v(params, x, t, cond, *, train, key):
    """The same as v, with a second half of channels that the ODE must not use."""
    alpha, sigma = levels(t, x)
    eps = gaussian(params, x, t, cond, train=train, key=key)
    v = (eps - sigma * x) / alpha
    return jnp.concatenate([v, jnp.full_like(v, jnp.nan)], axis=-1)


def correlated(params, x, t, cond, *, train, key):
    """Predicts x_0 of N(0, COVARIANCE) over the last axis."""
    alpha, sigma = levels(t, x)
    variances, axes = (jnp.asarray(a, jnp.float32) for a in np.linalg.eigh(COVARIANCE))
    return ((x @ axes) * (alpha * variances / (alpha**2 * variances + sigma**2))) @ axes.T


def uniform(params, x, t, cond, *, train, key):
    """Predicts eps of data uniform over all bins: E[eps | x_t] of a truncated normal."""
    alpha, sigma = levels(t, x)
    low, high = ((edge - x / alpha) * alpha / sigma for edge in (-256 / 255, 256 / 255))
    norm = jax.scipy.stats.norm
    return (norm.pdf(high) - norm.pdf(low)) / (norm.cdf(high) - norm.cdf(low))


def stretch(variance):
    """d x_T / d (x_1/alpha_1) of the linear flow of N(0, variance)."""
    alpha = oracles.chain_moments("linear", T)[0]
    s_1, s_T = (np.sqrt(alpha[t] ** 2 * variance + 1 - alpha[t] ** 2) for t in (1, T))
    return alpha[1] * s_T / s_1


@pytest.mark.slow
def test_gaussian_data_have_their_closed_form_and_the_error_falls_with_the_tolerance():
    """Errors are below 100 tolerances per dimension, and fall by more than 3 at each tolerance."""
    alpha, slope = oracles.chain_moments("linear", T)[0], stretch(TAU**2)
    x_T = alpha[T] * M + slope * (X.astype(np.float64) - M)
    wanted = (scipy.stats.norm.logpdf(x_T) + np.log(slope)).sum(axis=1)
    errors, evaluations = [], []
    for tolerance in (1e-3, 1e-4, 1e-5):
        log_prob = make_log_prob(PROCESS, gaussian, rtol=tolerance, atol=tolerance)
        found, count = log_prob((M, TAU), jax.random.key(0), X)
        errors.append(np.abs(found - wanted).max() / 4)
        evaluations.append(count)
        assert errors[-1] < 100 * tolerance
    print("error per dimension:", errors, "evaluations:", evaluations)
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 1e-4
    assert np.all(evaluations[0] < evaluations[1]) and np.all(evaluations[1] < evaluations[2])
    # The true density is N(m, τ²) plus the least noise, so only the prior makes a difference
    true = scipy.stats.norm.logpdf(X, M, np.sqrt(TAU**2 + (1 - alpha[1] ** 2) / alpha[1] ** 2))
    np.testing.assert_allclose(found, true.sum(axis=1), atol=0.01)


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch_and_every_evaluation_is_counted():
    log_prob = make_log_prob(PROCESS, gaussian_v, kind="v")
    key, means = jax.random.key(1), np.array([0.3, -0.5, 0.1], np.float32)
    found, counts = log_prob((M, TAU), key, X, {"mean": means})
    assert len(set(counts)) > 1  # each image takes its own steps
    calls.clear()
    moved, moved_counts = log_prob(
        (M, TAU), key, np.roll(X, -1, axis=0), {"mean": np.append(means[1:], 0.8)}, start=1
    )  # images 1 and 2 again, then another image
    jax.effects_barrier()
    assert len(calls) == moved_counts.max()  # the batch runs until its last image is done
    np.testing.assert_array_equal(moved_counts[:2], counts[1:])
    np.testing.assert_allclose(moved[:2], found[1:], rtol=1e-6)
    assert abs(moved[2] - found[0]) > 0.1
    eps = make_log_prob(PROCESS, gaussian)((M, TAU), key, X)[0]
    same = log_prob((M, TAU), key, X, {"mean": np.full(3, M, np.float32)})[0]
    np.testing.assert_allclose(same, eps, atol=1e-3)  # v and eps agree


@pytest.mark.slow
def test_the_local_devices_share_the_images_and_change_nothing():
    """Each of the 8 devices solves one of 8 images; the values equal those of one device."""
    x = np.random.default_rng(5).normal(M, TAU, (8, 4)).astype(np.float32)
    tables = U.astype(np.float32), np.arange(1, T + 1, dtype=np.float32)
    shared = tables, dict(rtol=1e-4, atol=1e-4), (M, TAU)
    images = image_keys(jax.random.key(0), np.arange(8)), jnp.asarray(x), None
    solve = ode.make_solve(gaussian_v, "v", 1, 1000)
    spread = solve(shared, images)
    for found in spread:
        assert [shard.data.shape for shard in found.addressable_shards] == [(1,)] * 8
        assert len(found.sharding.device_set) == 8
    alone = jax.jit(solve)(shared, images)  # inside another program the rows stay on one device
    assert all(len(found.sharding.device_set) == 1 for found in alone)
    np.testing.assert_allclose(spread[0], alone[0], rtol=1e-5)
    np.testing.assert_array_equal(spread[1], alone[1])


@pytest.mark.slow
def test_the_trace_is_unbiased_where_pixels_are_correlated():
    """Mean and deviation over 512 draws of two probes, against all sign patterns in float64.

    The Jacobian keeps its axes a_i. A probe z therefore gives Σ_i (z·a_i)² ln stretch_i.
    """
    variances, axes = np.linalg.eigh(COVARIANCE)
    x = np.array([0.4, -0.6, 0.2])
    slopes = stretch(variances)
    wanted = (scipy.stats.norm.logpdf(slopes * (x @ axes)) + np.log(slopes)).sum()
    patterns = np.array(list(itertools.product((-1, 1), repeat=3)))
    deviation = ((patterns @ axes) ** 2 @ np.log(slopes)).std() / 2**0.5
    log_prob = make_log_prob(PROCESS, correlated, kind="x_0", rtol=1e-4, atol=1e-4, num_probes=2)
    found, _ = log_prob(None, jax.random.key(2), np.tile(x.astype(np.float32), (512, 1)))
    assert abs(found.mean() - wanted) < 4 * deviation / 512**0.5 + 1e-3
    assert deviation > 0.1 and 0.85 < found.std() / deviation < 1.15


@pytest.mark.slow
def test_uniform_pixels_cost_8_bits():
    """All 256 values have equal probability: log_2 256 bits, for pixels far from the edges."""
    images = np.random.default_rng(3).integers(40, 216, (4, 2, 1)).astype(np.uint8)
    bits_per_dim = make_bits_per_dim(PROCESS, uniform)
    bits, _ = bits_per_dim(None, jax.random.key(0), images)
    np.testing.assert_allclose(bits, 8.0, atol=1e-3)
    moved, _ = bits_per_dim(None, jax.random.key(0), np.roll(images, -2, axis=0), start=2)
    np.testing.assert_allclose(moved[:2], bits[2:], rtol=1e-6)


def test_dequantised_pixels_fill_their_bins_and_no_other():
    images = np.repeat(np.array([0, 7, 255], np.uint8), 4000).reshape(3, 4000)
    x = np.asarray(dequantise(jax.random.split(jax.random.key(0), 3), images), np.float64)
    offset = (x - (images / 127.5 - 1.0)) * 127.5
    assert offset.min() >= -0.5001 and offset.max() <= 0.5001
    assert scipy.stats.kstest(offset.ravel() + 0.5, "uniform").pvalue > 1e-3
    assert len(np.unique(np.round(offset[:, 0], 5))) == 3  # each image has its own noise


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_log_prob(PROCESS, gaussian, kind="epsilon"), "unknown kind 'epsilon'"),
        (lambda: make_log_prob(PROCESS, gaussian, rtol=0.0), "rtol must be > 0, found 0.0"),
        (lambda: make_log_prob(PROCESS, gaussian, atol=float("nan")), "atol must be > 0"),
        (lambda: make_log_prob(PROCESS, gaussian, num_probes=0), "num_probes must be at least 1"),
        (lambda: make_log_prob(PROCESS, gaussian, max_steps=0), "max_steps must be at least 1"),
        (
            lambda: make_log_prob(ddpm_jax.make_process(np.array([0.1])), gaussian),
            "a chain of at least 2 timesteps",
        ),
        (
            lambda: make_log_prob(
                ddpm_jax.make_process(oracles.betas("linear_zero_snr", 10)), gaussian
            ),
            "kind 'eps' cannot be used with zero_terminal_snr",
        ),
        (
            lambda: make_bits_per_dim(PROCESS, gaussian)((M, TAU), jax.random.key(0), X),
            "images must be uint8, 0..255, found float32",
        ),
        (
            lambda: make_log_prob(PROCESS, gaussian)((M, float("nan")), jax.random.key(0), X),
            r"image 0 was not solved in max_steps = 1000; raise max_steps or the tolerances",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_without_diffrax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(UserError, match=r"pip install 'ddpm_jax\[likelihood\]'"):
        make_log_prob(PROCESS, lambda *args, **options: None)
