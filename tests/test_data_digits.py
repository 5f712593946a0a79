"""The digits: each of scikit-learn's images comes once, in one of two splits."""

import collections

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ddpm_jax.config import DataConfig
from ddpm_jax.data import Batches, open_dataset


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


def test_the_two_parts_hold_each_image_of_scikit_learn_once(data_dir):
    dataset = open_dataset(DataConfig(name="digits", data_dir=data_dir))
    assert (len(dataset.train), len(dataset.test)) == (1634, 163)
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.class_names == tuple("0123456789") and dataset.num_classes == 10
    found = collections.Counter()
    for source in (dataset.train, dataset.test):
        for image, label in zip(*source.read(np.arange(len(source))), strict=True):
            found[image.tobytes(), int(label)] += 1
    digits = load_digits()
    expected = collections.Counter()
    for image, label in zip(digits.images, digits.target, strict=True):
        expected[bytes(int(v * 255 / 16 + 0.5) for v in image.ravel()), int(label)] += 1
    assert found == expected


def test_both_parts_hold_every_class_in_its_share(data_dir):
    dataset = open_dataset(DataConfig(name="digits", data_dir=data_dir))
    for source, share in ((dataset.train, 10 / 11), (dataset.test, 1 / 11)):
        counts = np.bincount(source.read(np.arange(len(source)))[1], minlength=10)
        # Classes hold 174..183 images; 5 binomial standard errors.
        assert np.abs(counts - 179.7 * share).max() < 5 * np.sqrt(180 * share * (1 - share)) + 6


def test_a_second_opening_gives_the_same_batches(data_dir, tmp_path):
    for seed in (0, 1):
        first, second, elsewhere = (
            Batches(open_dataset(DataConfig(name="digits", data_dir=d)).train, 64, seed, flip=True)
            for d in (data_dir, data_dir, str(tmp_path / "new"))
        )
        for step in (0, 30, 1000):
            expected = first.batch(step)
            for other in (second.batch(step), elsewhere.batch(step)):
                np.testing.assert_array_equal(other["image"], expected["image"])
                np.testing.assert_array_equal(other["label"], expected["label"])
