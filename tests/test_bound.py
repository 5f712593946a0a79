"""The bound of images: every term, some of the terms, rate and distortion."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import special, stats

import ddpm_jax
from ddpm_jax.errors import UserError
from ddpm_jax.likelihood import bound as bounds
from ddpm_jax.process import alpha_sigma

T, VARIANCE = 12, 0.2
PROCESS = ddpm_jax.make_process(oracles.betas("linear", T))


def apply_fn(params, x_t, t, cond, *, train, key):
    """The eps of the exact denoiser of N(0, params); a label moves its output."""
    alpha_t, sigma_t = alpha_sigma(PROCESS, t + 1, x_t)
    eps = sigma_t / (params * alpha_t**2 + sigma_t**2) * x_t
    return eps if cond is None else eps + 0.1 * cond["label"].reshape(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def images():
    x_0 = np.random.default_rng(0).normal(scale=np.sqrt(VARIANCE), size=(20, 3, 3, 1))
    return np.clip(np.round((x_0 + 1.0) * 127.5), 0, 255).astype(np.uint8)


def make(**options):
    options = dict(variance="fixed_small", clip_x_0=False) | options
    return bounds.make_bound(PROCESS, apply_fn, **options)


@pytest.fixture(scope="module")
def whole(images):
    """Every term of 20 images, from eight draws of their noise."""
    bound = make()
    return [bound(jnp.float32(VARIANCE), jax.random.key(seed), images) for seed in range(8)]


def test_every_term_is_there_once(whole):
    np.testing.assert_array_equal(whole[0].edges, np.arange(T + 1))
    assert whole[0].terms.shape == whole[0].squared_error.shape == (T, 20)
    parts = bounds.rate_distortion(whole[0])
    assert [(part.low, part.high) for part in parts] == [(t, t) for t in range(T, 0, -1)]


def test_the_rate_is_what_was_sent_before_and_the_total_what_was_sent_in_all(whole):
    one = whole[0]
    parts = bounds.rate_distortion(one)
    means = one.terms.mean(1)
    for part in parts:
        assert part.bits == pytest.approx(means[part.low - 1])
        assert part.rate == pytest.approx(one.prior.mean() + means[part.low :].sum())
    end = parts[-1].rate + parts[-1].bits
    assert end == pytest.approx(bounds.mean_and_error(bounds.total(one))[0])
    distortion = 127.5 * np.sqrt(one.squared_error.mean(1))
    np.testing.assert_allclose([part.distortion for part in parts], distortion[::-1])


def exact_total(images):
    """E[L] of each image over its noise, in bits/dim: closed forms, and quadrature for L_0."""
    x_0 = images.astype(np.float64) * 2 / 255 - 1
    alpha = oracles.chain_moments("linear", T)[0]
    sigma = np.sqrt(1 - alpha**2)
    gain = VARIANCE * alpha / (VARIANCE * alpha**2 + sigma**2)  # x̂_0 = gain x_t
    nats = 0.5 * (alpha[T] ** 2 * x_0**2 - alpha[T] ** 2 - np.log(sigma[T] ** 2))
    for t in range(2, T + 1):
        c_1, _, variance = oracles.posterior("linear", T, t, t - 1)
        error = (x_0 * (1 - gain[t] * alpha[t])) ** 2 + (gain[t] * sigma[t]) ** 2
        nats += 0.5 * c_1**2 * error / variance
    nodes = np.linspace(-7, 7, 401)
    mean = gain[1] * (alpha[1] * x_0[..., None] + sigma[1] * nodes)
    deviation = np.sqrt(oracles.posterior("linear", T, 2, 1)[2])  # Ho's choice for t = 1
    side = np.where(x_0[..., None] > mean, -1, 1)  # the tail in which no digits are lost
    ends = (side * (x_0[..., None] + e - mean) / deviation for e in (-1 / 255, 1 / 255))
    low, high = (stats.norm.cdf(end) for end in ends)
    low, high = np.minimum(low, high), np.maximum(low, high)
    black, white = images[..., None] == 0, images[..., None] == 255
    low = np.where(np.where(side > 0, black, white), 0, low)
    high = np.where(np.where(side > 0, white, black), 1, high)
    nats -= np.log(high - low) @ stats.norm.pdf(nodes) * (nodes[1] - nodes[0])
    return nats.mean(axis=(1, 2, 3)) / np.log(2)


@pytest.mark.slow
@pytest.mark.parametrize("num_terms", [1, 4, T])
def test_some_of_the_terms_estimate_all_of_them_without_bias(images, whole, num_terms):
    bound, draws = make(num_terms=num_terms), whole
    if num_terms < T:
        images = np.tile(images, (32, 1, 1, 1))
        keys = jax.random.split(jax.random.key(100), 20)
        draws = [bound(jnp.float32(VARIANCE), key, images) for key in keys]
    assert draws[0].terms.shape == (num_terms, len(images))
    exact = exact_total(images)
    errors = np.array([bounds.total(one) for one in draws]) - exact
    standard_error = errors.std() / np.sqrt(errors.size)
    assert abs(errors.mean()) < 4 * standard_error < 0.1 * exact.mean()
    assert num_terms == 1 or draws[0].edges[1] == 1  # L_0 is a part of its own


def test_pixels_are_k_over_127_5_minus_1():
    """A network that knows the pixel value makes no error, at the ends of the range too."""
    images = np.array([0, 1, 128, 255], np.uint8).reshape(4, 1, 1, 1) * np.ones(
        (4, 2, 2, 1), np.uint8
    )
    x_0 = images.astype(np.float32) * 2 / 255 - 1

    def knows(params, x_t, t, cond, *, train, key):
        alpha_t, sigma_t = alpha_sigma(PROCESS, t + 1, x_t)
        return (x_t - alpha_t * cond["image"]) / sigma_t

    found = bounds.make_bound(PROCESS, knows)(None, jax.random.key(0), images, {"image": x_0})
    assert found.squared_error.max() < 1e-8  # with k / 127 - 1 it is 6e-5 at k = 255
    alpha_bar = oracles.chain_moments("linear", T)[0][T] ** 2
    prior = 0.5 * (alpha_bar * (x_0[:, 0, 0, 0] ** 2 - 1) - np.log(1 - alpha_bar)) / np.log(2)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-5, atol=1e-9)


def test_a_part_of_several_timesteps_has_its_mean_rate():
    """A receiver that knows x_t has the terms above t; within a part, all terms are alike."""
    edges = np.array([0, 1, 4, 6])
    terms = np.array([[3.0, 5.0], [0.5, 0.7], [0.1, 0.3]])
    found = bounds.rate_distortion(
        bounds.Bound(edges, np.array([0.01, 0.03]), terms, np.array([[0, 0], [1, 3], [4, 4.0]]))
    )
    bits = {1: 4.0, 2: 0.6, 3: 0.6, 4: 0.6, 5: 0.2, 6: 0.2}
    rate = {t: 0.02 + sum(bits[u] for u in range(t + 1, 7)) for t in range(1, 7)}
    assert [(part.low, part.high) for part in found] == [(5, 6), (2, 4), (1, 1)]
    for part in found:
        inside = range(part.low, part.high + 1)
        assert part.bits == pytest.approx(sum(bits[t] for t in inside))
        assert part.rate == pytest.approx(np.mean([rate[t] for t in inside]))
    # 3 (0.5, 0.7) are 1.5 and 2.1 bits: deviation 0.6/√2, over two images
    assert found[1].error == pytest.approx(0.6 / 2)
    assert [part.distortion for part in found] == pytest.approx([255, 127.5 * 2**0.5, 0])


def test_the_standard_error_is_that_of_a_mean_whose_variance_is_estimated():
    mean, error = bounds.mean_and_error(np.array([1.0, 2.0, 6.0]))
    assert mean == pytest.approx(3.0) and error == pytest.approx((14 / 2 / 3) ** 0.5)
    mean, error = bounds.mean_and_error(np.array([7.0]))
    assert mean == 7.0 and np.isnan(error)


def test_an_image_has_its_own_noise_whatever_the_batch_and_the_devices(images, whole):
    bound = make()  # on all eight devices, whatever n
    parts = [
        bound(jnp.float32(VARIANCE), jax.random.key(0), images[:3]),
        bound(jnp.float32(VARIANCE), jax.random.key(0), images[3:], start=3),
    ]
    together = bounds.concatenate(parts)
    np.testing.assert_array_equal(together.edges, whole[0].edges)
    for found, wanted in zip(together[1:], whole[0][1:], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_network_receives_the_conditioning_of_each_image(images):
    bound = make(num_terms=4)
    args = jnp.float32(VARIANCE), jax.random.key(0), images[:3]
    nothing, labels = bound(*args), bound(*args, {"label": np.array([0.0, 0.0, 5.0], np.float32)})
    differs = np.any(nothing.terms != labels.terms, axis=0)
    np.testing.assert_array_equal(differs, [False, False, True])


def test_L_0_by_the_discrete_decoder_is_a_softmax_over_the_256_values():
    """Black and white are pixels with a neighbour on one side only."""
    images = np.repeat(np.array([0, 128, 255], np.uint8), 400).reshape(-1, 1, 1, 1)
    images = np.tile(images, (1, 3, 3, 1))
    bound = make(decoder="discrete", num_terms=2)
    found = bound(jnp.float32(VARIANCE), jax.random.key(0), images).terms[0].reshape(3, 400)
    alpha = oracles.chain_moments("linear", T)[0][1]
    s, values = np.sqrt(1 - alpha**2) / alpha, np.arange(256) / 127.5 - 1
    nodes = np.linspace(-7, 7, 401)
    for bits, k in zip(found, (0, 128, 255), strict=True):
        logits = -0.5 * ((values[k] + s * nodes[:, None] - values) / s) ** 2
        nats = -special.log_softmax(logits, axis=1)[:, k]
        wanted = nats @ stats.norm.pdf(nodes) * (nodes[1] - nodes[0]) / np.log(2)
        assert abs(bits.mean() - wanted) < 4 * bits.std() / np.sqrt(len(bits)) < 0.05 * wanted


def test_images_of_other_than_256_values_are_refused(images):
    with pytest.raises(UserError, match="must be uint8.*float32"):
        make()(jnp.float32(1.0), jax.random.key(0), images.astype(np.float32))


@pytest.mark.parametrize("num_terms", [0, T + 1])
def test_more_terms_than_timesteps_are_refused(num_terms):
    with pytest.raises(UserError, match=r"num_terms must be in 1\.\.12"):
        make(num_terms=num_terms)
