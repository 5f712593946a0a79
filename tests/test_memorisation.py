"""Nearest training images: copies are found, mirrored ones too, and the picture shows the pairs."""

import numpy as np
import pytest

from ddpm_jax.evaluation import memorisation
from ddpm_jax.evaluation.memorisation import Memorisation

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (40, 4, 3, 2), np.uint8)


def chunks():
    return (TRAIN[i : i + 9] for i in range(0, 40, 9))


def test_copies_are_found_and_mirrored_ones_where_they_count():
    samples = TRAIN[[31, 2]].copy()
    samples[1] = samples[1, :, ::-1]
    samples[0, 0, 0, 0] ^= 3  # by one or three grey levels
    distance, index = memorisation.nearest_training_image(samples, chunks, flip=True)
    np.testing.assert_array_equal(index, [31, 2])
    assert distance[0] in (1.0, 3.0) and distance[1] == 0.0
    distance, _ = memorisation.nearest_training_image(samples, chunks, flip=False)
    assert distance[0] in (1.0, 3.0) and distance[1] > 100.0


def test_the_score_is_that_of_the_distribution_for_held_out_images_and_one_for_copies():
    held_out, others = RNG.normal(size=(2, 20_000)) ** 2 + 1.0
    found = memorisation.compare(others, held_out)
    assert found.memorised == pytest.approx(memorisation.NEAR, abs=0.004)  # 4 standard errors
    assert found.nearest_ratio == pytest.approx(1.0, abs=0.03)
    assert memorisation.compare(np.zeros(50), held_out) == Memorisation(1.0, 0.0)
    half = np.concatenate([np.zeros(500), 9 + held_out[:500]])
    assert memorisation.compare(half, held_out).memorised == 0.5


def test_the_picture_shows_each_sample_over_its_neighbour():
    samples, neighbours = TRAIN[:5, ..., :1], TRAIN[5:10, ..., :1]
    labelled = memorisation.neighbour_grid(samples, neighbours, columns=3)
    factor = 32 // 4
    grid = labelled[:, -(3 * (3 * factor + 2) + 2) :]  # without the labels at the left
    assert labelled[:, : -grid.shape[1]].min() < 100
    assert grid.shape == (4 * (32 + 2) + 2, 3 * (3 * factor + 2) + 2, 1)
    cells = grid[2:, 2:].repeat(1, axis=0)
    for row, images in enumerate((samples[:3], neighbours[:3], samples[3:], neighbours[3:])):
        for column, image in enumerate(images):
            top, left = row * 34, column * (3 * factor + 2)
            shown = cells[top : top + 32 : factor, left : left + 3 * factor : factor]
            np.testing.assert_array_equal(shown, image)
    assert (
        cells[2 * 34 : 2 * 34 + 32, 2 * (3 * factor + 2) : 2 * (3 * factor + 2) + 24] == 128
    ).all()
