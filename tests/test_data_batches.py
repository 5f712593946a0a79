"""`Batches`: a pure function of (seed, step), the same for any number of processes."""

import numpy as np
import pytest

from ddpm_jax.data.batches import Batches
from ddpm_jax.data.sources import ArraySource
from ddpm_jax.errors import UserError


def numbered(count: int, size: int = 4) -> ArraySource:
    """A source of asymmetric images: image i differs from its mirror image and has label i."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return ArraySource(images, np.arange(count, dtype=np.int32))


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (7, 7), (101, 32), (5, 1)])
def test_every_image_comes_once_per_epoch(count, batch_size):
    batches = Batches(numbered(count), batch_size, seed=3)
    steps = range(3 * count)  # a whole number of epochs: 3 * batch_size
    dealt = np.concatenate([batches.batch(step)["label"] for step in steps])
    for epoch in dealt.reshape(-1, count):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))


def test_epochs_and_seeds_differ():
    count = 50
    first, second = (Batches(numbered(count), count, seed).batch(0)["label"] for seed in (0, 1))
    assert not np.array_equal(first, second)
    next_epoch = Batches(numbered(count), count, seed=0).batch(1)["label"]
    assert not np.array_equal(first, next_epoch)
    assert not np.array_equal(first, np.arange(count))


def test_a_batch_depends_on_nothing_but_seed_and_step():
    straight = Batches(numbered(23), 8, seed=5, flip=True)
    steps = list(range(40))
    expected = [straight.batch(step) for step in steps]
    for step in [39, 0, 17, 17, 3, 38]:
        for batches in (straight, Batches(numbered(23), 8, seed=5, flip=True)):
            again = batches.batch(step)
            np.testing.assert_array_equal(again["image"], expected[step]["image"])
            np.testing.assert_array_equal(again["label"], expected[step]["label"])


@pytest.mark.parametrize("process_count", [1, 2, 4, 8])
def test_slices_of_processes_make_the_batch_of_one(process_count):
    source = numbered(30)
    whole = Batches(source, 16, seed=1, flip=True)
    parts = [Batches(source, 16, 1, True, i, process_count) for i in range(process_count)]
    for step in range(10):
        slices = [part.batch(step) for part in parts]
        assert all(len(s["image"]) == 16 // process_count for s in slices)
        for key, expected in whole.batch(step).items():
            np.testing.assert_array_equal(np.concatenate([s[key] for s in slices]), expected)


def test_flips_mirror_half_of_the_images_and_leave_the_source_alone():
    source = numbered(64)
    original = source.images.copy()
    batches = Batches(source, 64, seed=0, flip=True)
    mirrored, drawn = 0, 0
    for step in range(50):
        batch = batches.batch(step)
        stored = original[batch["label"]]
        same = (batch["image"] == stored).all(axis=(1, 2, 3))
        flipped = (batch["image"] == stored[:, :, ::-1]).all(axis=(1, 2, 3))
        assert (same ^ flipped).all()  # the images are random, hence not symmetric
        mirrored, drawn = mirrored + flipped.sum(), drawn + len(flipped)
    assert abs(mirrored - drawn / 2) < 5 * np.sqrt(drawn / 4)  # 5 standard errors
    np.testing.assert_array_equal(source.images, original)


def test_flips_differ_from_step_to_step():
    source = numbered(8)
    batches = Batches(source, 8, seed=0, flip=True)
    patterns = set()
    for step in range(20):
        batch = batches.batch(step)
        stored = source.images[batch["label"]]
        patterns.add(
            tuple((batch["image"] == stored).all(axis=(1, 2, 3))[np.argsort(batch["label"])])
        )
    assert len(patterns) > 10


def test_without_flip_the_images_are_the_stored_ones():
    source = numbered(20)
    batch = Batches(source, 20, seed=0).batch(4)
    np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 21}, ["train.batch_size", "21", "20 training images", "at most 20"]),
        ({"batch_size": 0}, ["train.batch_size", "at least 1", "0"]),
        ({"batch_size": 9, "process_count": 2}, ["train.batch_size", "multiple", "2", "9"]),
        ({"batch_size": 4, "seed": -1}, ["train.seed", "-1"]),
    ],
)
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(UserError) as caught:
        Batches(numbered(20), **{"seed": 0, **arguments})
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_batch_is_read_in_one_call():
    class Counted(ArraySource):
        reads = []

        def read(self, indices, mirrored=None):
            self.reads.append(len(indices))
            return super().read(indices, mirrored)

    source = Counted(np.zeros((300, 4, 4, 3), np.uint8), np.zeros(300, np.int32))
    batches = Batches(source, 128, seed=0, flip=True)
    for step in range(3):
        batches.batch(step)
    assert Counted.reads == [128] * 3
