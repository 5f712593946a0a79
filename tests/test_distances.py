"""Moments, Fréchet and kernel distances, Inception score: closed forms, and scipy and sklearn."""

import numpy as np
import pytest
from scipy import linalg
from sklearn.metrics.pairwise import polynomial_kernel

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import distances
from ddpm_jax.evaluation.moments import Moments, frechet_distance, merge, moments, streamed

RNG = np.random.default_rng(0)
D = 7
MIX = RNG.normal(size=(D, D))
A = (RNG.normal(size=(300, D)) @ MIX + 3.0).astype(np.float32)
B = (RNG.normal(size=(200, D)) ** 2 + 2.5).astype(np.float32)


def exact(mean, covariance, n=10**6):
    """Moments that are given, not estimated."""
    covariance = np.asarray(covariance, np.float64)
    return Moments(n, np.asarray(mean, np.float64), covariance * (n - 1))


def test_moments_are_numpys():
    found = moments(A)
    assert found.n == 300
    np.testing.assert_allclose(found.mean, A.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        found.covariance, np.cov(A.astype(np.float64), rowvar=False), rtol=1e-10
    )


@pytest.mark.parametrize("size", [1, 7, 128, 300])
def test_moments_do_not_depend_on_the_batch_size(size):
    found = streamed(A[i : i + size] for i in range(0, len(A), size))
    assert found.n == 300
    np.testing.assert_allclose(found.mean, moments(A).mean, rtol=1e-12)
    np.testing.assert_allclose(found.m2, moments(A).m2, rtol=1e-9, atol=1e-9)


def test_moments_far_from_zero_keep_their_digits():
    shifted = A.astype(np.float64) + 1e6
    found = merge(moments(shifted[:100]), moments(shifted[100:]))
    np.testing.assert_allclose(found.covariance, np.cov(A.T.astype(np.float64)), rtol=1e-6)


def test_the_distance_of_a_set_with_itself_is_zero():
    assert 0 <= frechet_distance(moments(A), moments(A)) < 1e-20
    singular = np.concatenate([A, A[:, :3], np.zeros((300, 2), np.float32)], axis=1)
    assert 0 <= frechet_distance(moments(singular), moments(singular)) < 1e-12


def test_the_distance_of_gaussians_on_an_axis_is_the_textbooks():
    """|m_a - m_b|² + Σ (σ_a - σ_b)², for covariances that are diagonal in one basis."""
    rotation = linalg.qr(RNG.normal(size=(4, 4)))[0]
    sigma_a, sigma_b = np.array([1.0, 2.0, 0.0, 5.0]), np.array([3.0, 0.5, 0.1, 0.0])
    mean_a, mean_b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 5.0, 4.0])
    a = exact(mean_a, rotation @ np.diag(sigma_a**2) @ rotation.T)
    b = exact(mean_b, rotation @ np.diag(sigma_b**2) @ rotation.T)
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((sigma_a - sigma_b) ** 2)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-7)


def test_the_distance_is_scipys_with_its_matrix_square_root():
    cov_a, cov_b = np.cov(A.T.astype(np.float64)), np.cov(B.T.astype(np.float64))
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((A.astype(float).mean(0) - B.astype(float).mean(0)) ** 2)
    expected += np.trace(cov_a + cov_b - 2 * root)
    np.testing.assert_allclose(frechet_distance(moments(A), moments(B)), expected, rtol=1e-8)
    np.testing.assert_allclose(frechet_distance(moments(B), moments(A)), expected, rtol=1e-8)


def test_too_few_images_for_a_covariance_are_refused():
    with pytest.raises(UserError, match="needs at least 8 images, found 7"):
        frechet_distance(moments(A[:7]), moments(B))
    frechet_distance(moments(A[:8]), moments(B))
    with pytest.raises(UserError, match="one width"):
        frechet_distance(moments(A), moments(B[:, :3]))


def mmd2_by_sklearn(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    xx, yy = polynomial_kernel(x, degree=3), polynomial_kernel(y, degree=3)
    off = lambda k: k[~np.eye(len(k), dtype=bool)].mean()  # noqa: E731
    return off(xx) + off(yy) - 2 * polynomial_kernel(x, y, degree=3).mean()


def test_the_kernel_distance_is_sklearns():
    """With one subset that is the whole set, no draw is left."""
    found = distances.kernel_distance(A[:200], B, num_subsets=1, subset_size=200)
    np.testing.assert_allclose(found.value, mmd2_by_sklearn(A[:200], B), rtol=1e-10)
    assert np.isnan(found.error)


def test_the_kernel_distance_is_unbiased():
    """Two sets of one distribution: within z standard errors of 0, negative as often as not."""
    rng = np.random.default_rng(1)
    found = [
        distances.kernel_distance(*rng.normal(size=(2, 60, 3)), num_subsets=5, subset_size=20).value
        for _ in range(200)
    ]
    assert abs(np.mean(found)) < 4 * distances.standard_error(np.array(found))
    assert 0.3 < np.mean(np.array(found) < 0) < 0.8


def test_the_error_of_the_kernel_distance_is_that_of_new_samples():
    rng = np.random.default_rng(2)
    draws = [
        distances.kernel_distance(
            rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 0.5, subset_size=20
        )
        for _ in range(60)
    ]
    spread = np.std([d.value for d in draws])
    assert 0.7 < np.mean([d.error for d in draws]) / spread < 1.5


def test_the_kernel_distance_refuses_subsets_larger_than_the_sets():
    with pytest.raises(UserError, match="found 300 and 200"):
        distances.kernel_distance(A, B)


def test_the_inception_score_of_certain_and_balanced_classes_is_their_number():
    logits = 100.0 * np.eye(5, dtype=np.float32)[np.arange(200) % 5]
    value, error = distances.inception_score(logits)
    np.testing.assert_allclose(value, 5.0, rtol=1e-6)
    assert error < 1e-6
    assert distances.inception_score(np.zeros((40, 5))).value == pytest.approx(1.0)


def test_the_inception_score_is_the_definition():
    logits = RNG.normal(size=(103, 6)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = []
    for part in (p[:34], p[34:68], p[68:]):
        kl = (part * np.log(part / part.mean(axis=0, keepdims=True))).sum(axis=1)
        scores.append(np.exp(kl.mean()))
    found = distances.inception_score(logits, num_splits=3)
    np.testing.assert_allclose(found.value, np.mean(scores), rtol=1e-10)
    np.testing.assert_allclose(found.error, np.std(scores, ddof=1) / np.sqrt(3), rtol=1e-10)


def test_the_inception_score_refuses_too_few():
    with pytest.raises(UserError, match="at least 20 images, found 19"):
        distances.inception_score(np.zeros((19, 5)))
