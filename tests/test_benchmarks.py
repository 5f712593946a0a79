"""The measures that benchmarks compute themselves, and the configs that they train."""

import dataclasses

import numpy as np
import pytest

from benchmarks import fashion, fashion_quality
from benchmarks.measures import exponent, own_ranks, rms, spread
from ddpm_jax import build
from ddpm_jax.build.loss import loss_fn
from ddpm_jax.config import from_dict
from ddpm_jax.errors import UserError
from experiments import sigmoid_t700


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


def test_each_recipe_changes_the_small_config_in_what_it_says():
    base = fashion.recipe_base()
    for name, (changes, images) in fashion.RECIPES.items():
        config = fashion.changed(base, changes)
        build.model(config.model, (28, 28, 1), 10)
        loss_fn(config, build.process(config.process), None)
        assert (config == base) == (not changes) and images > 0, name
    with pytest.raises(UserError, match=r"model\.chanels"):
        fashion.changed(base, {"model.chanels": 8})


def test_the_lecture_differs_from_its_config_in_the_data_and_the_schedule_only():
    lectured = from_dict(sigmoid_t700.get_config().to_dict())
    for schedule in ("sigmoid", "linear", "cosine", "quadratic"):
        config = fashion.lecture(schedule, 6000)
        process = build.process(config.process)
        assert process.num_timesteps == 700 and config.train.num_steps == 468
        same = {name: getattr(lectured, name) for name in ("model", "optim", "loss")}
        assert dataclasses.replace(config, **same) == config


def test_a_border_is_cut_off_and_other_pictures_are_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))))
    np.testing.assert_array_equal(fashion_quality.read_images(tmp_path / "a.npz"), images)
    np.savez(tmp_path / "b.npz", images=images / np.float32(255))
    with pytest.raises(UserError, match=r"b\.npz: images must be uint8 .* found float32"):
        fashion_quality.read_images(tmp_path / "b.npz")
