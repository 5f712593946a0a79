"""The measures that benchmarks compute themselves, on cases with a known answer."""

import numpy as np

from benchmarks.measures import exponent, own_ranks, rms, spread


def test_retrieval_ranks_of_known_distances():
    pictures = np.array([[0.0], [1.0], [3.0], [10.0]])
    samples = np.array([[0.1], [0.2], [2.2], [1.4]])
    # distances to the pictures: .1 .9 2.9 9.9;  .2 .8 ..;  2.2 1.2 .8 7.8;  1.4 .4 1.6 8.6
    assert own_ranks(samples, pictures).tolist() == [0, 1, 0, 3]


def test_retrieval_is_perfect_of_the_pictures_and_gains_nothing_from_ties():
    pictures = np.random.default_rng(0).normal(size=(6, 4, 4, 3))
    assert own_ranks(pictures, pictures).tolist() == [0] * 6
    assert own_ranks(np.zeros((6, 4)), np.ones((6, 4))).tolist() == [5] * 6


def test_retrieval_of_noise_is_at_chance():
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(64, 12))
    hits = [own_ranks(rng.normal(size=(64, 12)), pictures) < 5 for _ in range(50)]
    error = np.sqrt(5 / 64 * 59 / 64 / (50 * 64))
    assert abs(np.mean(hits) - 5 / 64) < 4 * error


def test_spread_is_the_mean_distance_of_pairs_of_a_class():
    labels = np.repeat(np.arange(10), 3)
    corners = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # distances 3, 4, 5
    features = np.concatenate([corners * (label + 1) + 100 * label for label in range(10)])
    np.testing.assert_allclose(spread(features, labels), 4.0 * np.arange(1, 11))


def test_rms_and_its_error():
    a = np.zeros((400, 2, 2, 1)) + np.random.default_rng(0).normal(size=(400, 1, 1, 1))
    root, error = rms(a, np.zeros_like(a))
    assert abs(root - 1.0) < 4 * error
    np.testing.assert_allclose(error, np.sqrt(2 / 400) / 2, rtol=0.2)  # var of z² is 2


def test_the_exponent_of_a_power_and_its_error():
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    a, error = exponent(x, 3 * x**1.5)
    np.testing.assert_allclose([a, error], [1.5, 0.0], atol=1e-7)
    rng = np.random.default_rng(0)
    fits = [exponent(x, x * np.exp(0.1 * rng.normal(size=5))) for _ in range(400)]
    spread_of_fits = np.std([a for a, _ in fits])  # 0.1 / |log x - mean|
    np.testing.assert_allclose(spread_of_fits, 0.1 / (np.log(2) * np.sqrt(10)), rtol=0.15)
    # the mean of the estimated variances is unbiased
    estimated = np.sqrt(np.mean([error**2 for _, error in fits]))
    np.testing.assert_allclose(estimated, spread_of_fits, rtol=0.2)
