"""Long-tailed training splits: how many images each class keeps, which, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest

from ddpm_jax.config import DataConfig
from ddpm_jax.data import imbalance, open_dataset
from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.datasets import facts_of_split
from ddpm_jax.errors import UserError

NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


def digits(data_dir, **changes):
    config = DataConfig(name="digits", data_dir=data_dir, **changes)
    dataset = open_dataset(config)
    return config, dataset, dataset.train.read(np.arange(len(dataset.train)))


def counts(available, ratio, most=0):
    config = DataConfig(imbalance=ratio, max_per_class=most)
    names = NAMES[: len(available)]
    return imbalance.counts(np.array(available), names, config).tolist()


def test_the_profile_is_exponential_from_n_max_to_n_max_over_the_ratio():
    # 2^(-c/9 * log2(512)) = 2^-c
    assert counts([512] * 10, 512.0) == [512, 256, 128, 64, 32, 16, 8, 4, 2, 1]
    # 6000 * 10^(-2c/9), rounded down by hand
    expected = [6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60]
    assert counts([6000] * 10, 100.0) == expected
    assert counts([6000] * 10, 100.0, 1000)[::9] == [1000, 10]


def test_n_max_is_the_smallest_class_or_the_limit():
    assert counts([90, 80, 100], 4.0) == [80, 40, 20]
    assert counts([90, 80, 100], 4.0, 40) == [40, 20, 10]
    assert counts([90, 80, 100], 4.0, 200) == [80, 40, 20]
    assert counts([90, 80, 100], 1.0, 40) == [40, 40, 40]
    assert counts([7], 4.0) == [7]


@pytest.mark.parametrize("ratio", [3.0, 7.0, 10.0, 49.0, 100.0])
def test_the_ratio_is_exact_where_it_divides_n_max(ratio):
    for n in (1, 3, 11):
        assert counts([int(ratio * n)] * 7, ratio)[-1] == n


def test_a_class_that_would_keep_no_image_is_named():
    with pytest.raises(UserError) as error:
        counts([90, 80, 100], 100.0, 50)
    assert str(error.value) == (
        "data.imbalance=100 leaves no image of class '2': 50 * 100^-1 = 0.5; set data.imbalance to "
        "at most 50, the number of images of the first class (data.max_per_class limits it)"
    )
    with pytest.raises(UserError, match="class '1' of cifar10 has none in the training split"):
        counts([90, 0, 100], 10.0)


def test_the_training_split_keeps_the_counts_and_the_test_split_everything(data_dir):
    _, whole, (images, labels) = digits(data_dir)
    _, dataset, (kept, kept_labels) = digits(data_dir, imbalance=20.0)
    n_max = np.bincount(labels).min()
    expected = [math.floor(n_max * 20 ** (-c / 9)) for c in range(10)]
    assert np.bincount(kept_labels).tolist() == expected
    assert len(dataset.test) == len(whole.test) == 163
    theirs = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert all(theirs[i.tobytes()] == c for i, c in zip(kept, kept_labels, strict=True))
    assert len({image.tobytes() for image in kept}) == len(kept)


def test_the_choice_is_the_same_each_time_random_and_nested(data_dir):
    _, _, (whole, labels) = digits(data_dir)
    _, _, (first, _) = digits(data_dir, imbalance=5.0)
    _, _, (again, _) = digits(data_dir, imbalance=5.0, ram_limit_gb=0.0)  # read from the disk
    np.testing.assert_array_equal(first, again)
    _, _, (fewer, _) = digits(data_dir, imbalance=20.0)
    assert {i.tobytes() for i in fewer} < {i.tobytes() for i in first}
    # not the first images
    assert not {i.tobytes() for i in whole[labels == 9][:5]} <= {i.tobytes() for i in fewer}


def test_digests_and_keys_of_caches_differ_with_the_profile(data_dir):
    digests, keys = set(), []
    for changes in ({}, {"imbalance": 5.0}, {"imbalance": 20.0}, {"max_per_class": 9}):
        config, dataset, _ = digits(data_dir, **changes)
        digests.add(dataset.digest)
        keys.append(facts_of_split(config, dataset.train, "train"))
        assert facts_of_split(config, dataset.test, "test") == facts_of_split(
            DataConfig(name="digits"), dataset.test, "test"
        )
    assert len(digests) == 4 and all(keys.count(key) == 1 for key in keys)
    assert "imbalance" not in keys[0]  # so the caches of before are still found
    config, dataset, _ = digits(data_dir, imbalance=5.0)
    same_images = dataclasses.replace(config, imbalance=5.5)
    assert facts_of_split(same_images, dataset.train, "train") != keys[1]


def test_arrays_have_a_long_tail_too_and_sets_without_labels_have_none():
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), np.uint8)
    config = DataConfig(name="array", holdout=0.0, imbalance=4.0)
    labels = (np.arange(60) % 3).astype(np.int32)
    dataset = open_dataset(config, Arrays(images, labels))
    found, kept = dataset.train.read(np.arange(len(dataset.train)))
    assert np.bincount(kept).tolist() == [20, 10, 5]
    assert dataset.digest.endswith(", imbalance 4, at most all per class")
    where = [np.flatnonzero((images == image).all(axis=(1, 2, 3)))[0] for image in found]
    np.testing.assert_array_equal(labels[where], kept)
    with pytest.raises(UserError, match="imbalance is 4 .* but array has no labels; leave them at"):
        open_dataset(config, Arrays(images, None))


def test_texts_are_those_of_the_kept_images():
    class Records:
        def __len__(self):
            return 40

        def __getitems__(self, positions):
            return [{"label": p % 2, "name": f"image {p}"} for p in positions]

    config = DataConfig(imbalance=4.0)
    kept = imbalance.of_records(Records(), ("even", "odd"), config)
    found = kept.__getitems__(list(range(len(kept))))
    assert [record["label"] for record in found].count(0) == 20 and len(found) == 25
    assert all(int(record["name"].split()[1]) % 2 == record["label"] for record in found)
