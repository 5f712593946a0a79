"""PSNR and SSIM against their definitions, and against scikit-image if it is installed."""

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.similarity import psnr, ssim


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)
    noise = rng.normal(size=x.shape) * np.array([5, 20, 60])[:, None, None, None]
    return x, np.clip(x + noise, 0, 255).astype(np.uint8)


def test_psnr_of_one_grey_level_and_of_black_and_white():
    x = np.full((2, 12, 12, 1), 100, np.uint8)
    np.testing.assert_allclose(psnr(x, x + 1), 20 * np.log10(255))
    assert psnr(np.zeros_like(x), np.full_like(x, 255)).tolist() == [0, 0]
    assert np.isinf(psnr(x, x)).all()


def test_ssim_is_1_for_equal_images_and_the_term_of_the_means_for_flat_ones(pair):
    x, _ = pair
    np.testing.assert_allclose(ssim(x, x), 1.0)
    flat = [np.full((1, 12, 12, 1), value, np.uint8) for value in (51, 204)]
    a, b, c = 0.2, 0.8, 0.01**2
    np.testing.assert_allclose(ssim(*flat), (2 * a * b + c) / (a * a + b * b + c))


def test_ssim_of_one_window_is_its_formula(pair):
    x, y = (image[:, :11, :11, :1] for image in pair)
    distance = np.hypot(*np.mgrid[-5:6, -5:6])
    weights = np.exp(-(distance**2) / (2 * 1.5**2))
    weights /= weights.sum()
    for i in range(3):
        a, b = x[i, :, :, 0] / 255, y[i, :, :, 0] / 255
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        both = (weights * (a - mean_a) * (b - mean_b)).sum()
        expected = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
        expected /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
        np.testing.assert_allclose(ssim(x[i : i + 1], y[i : i + 1]), expected)


def test_both_are_those_of_scikit_image(pair):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = pair
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    options |= dict(data_range=255, channel_axis=-1)
    expected = [metrics.structural_similarity(a, b, **options) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(ssim(x, y), expected, rtol=1e-6)
    expected = [metrics.peak_signal_noise_ratio(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(psnr(x, y), expected, rtol=1e-9)


def test_small_images_have_no_ssim():
    with pytest.raises(UserError, match="11x11"):
        ssim(np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1), np.uint8))
