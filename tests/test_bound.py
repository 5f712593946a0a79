import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

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


@pytest.mark.parametrize("num_terms", [1, 4])
def test_some_of_the_terms_estimate_all_of_them_without_bias(images, whole, num_terms):
    bound = make(num_terms=num_terms)
    exact = np.mean([bounds.total(one) for one in whole], axis=0)
    draws = [bound(jnp.float32(VARIANCE), jax.random.key(100 + i), images) for i in range(60)]
    assert draws[0].terms.shape == (num_terms, 20)
    errors = np.array([bounds.total(one) for one in draws]) - exact
    mean, standard_error = bounds.mean_and_error(errors.ravel())
    assert abs(mean) < 4 * standard_error
    assert num_terms == 1 or draws[0].edges[1] == 1  # L_0 is a part of its own


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


def test_the_network_is_told_the_conditioning_of_each_image(images):
    bound = make(num_terms=4)
    args = jnp.float32(VARIANCE), jax.random.key(0), images[:3]
    nothing, told = bound(*args), bound(*args, {"label": np.array([0.0, 0.0, 5.0], np.float32)})
    differs = np.any(nothing.terms != told.terms, axis=0)
    np.testing.assert_array_equal(differs, [False, False, True])


def test_images_of_other_than_256_values_are_refused(images):
    with pytest.raises(UserError, match="must be uint8.*float32"):
        make()(jnp.float32(1.0), jax.random.key(0), images.astype(np.float32))


@pytest.mark.parametrize("num_terms", [0, T + 1])
def test_more_terms_than_timesteps_are_refused(num_terms):
    with pytest.raises(UserError, match=r"num_terms must be in 1\.\.12"):
        make(num_terms=num_terms)
