"""Precision, recall, density, coverage and nearest neighbours: brute force, and the peer `prdc`."""

import contextlib
import io

import numpy as np
import pytest
import sklearn

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import manifolds

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(150, 4)).astype(np.float32)
FAKE = (0.7 * RNG.normal(size=(120, 4)) + 0.4).astype(np.float32)


def brute_force(real, fake, k, k_density):
    distance = lambda a, b: np.linalg.norm(a[:, None].astype(float) - b[None], axis=-1)  # noqa: E731
    radius = lambda a, k: np.sort(distance(a, a), axis=1)[:, k, None]  # noqa: E731
    between = distance(real, fake)
    wide = between < radius(real, k_density)
    return (
        (between < radius(real, k)).any(axis=0).mean(),
        (between.T < radius(fake, k)).any(axis=0).mean(),
        wide.sum(axis=0).mean() / k_density,
        wide.any(axis=1).mean(),
    )


@pytest.mark.parametrize(("k", "k_density"), [(3, 5), (5, 5), (4, 2)])
def test_the_four_numbers_are_the_definitions(k, k_density):
    found = manifolds.compare(REAL, FAKE, k=k, k_density=k_density)
    np.testing.assert_allclose(found, brute_force(REAL, FAKE, k, k_density), rtol=1e-12)
    assert 0.1 < found.recall < 0.95  # the case is not at an end of the scale


def test_the_four_numbers_are_the_peers():
    prdc = pytest.importorskip("prdc", reason="the extra [peers]")
    with contextlib.redirect_stdout(io.StringIO()):
        expected = prdc.compute_prdc(REAL.astype(float), FAKE.astype(float), nearest_k=5)
    found = manifolds.compare(REAL, FAKE, k=5, k_density=5)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-12)


def test_blocks_do_not_change_the_numbers():
    whole = manifolds.compare(REAL, FAKE)
    with sklearn.config_context(working_memory=0.01):  # MiB: eight rows of distances at a time
        assert manifolds.compare(REAL, FAKE) == whole


def test_a_set_with_itself_and_one_far_away():
    same = manifolds.compare(REAL, REAL)
    assert same.precision == same.recall == same.coverage == 1.0
    assert manifolds.compare(REAL, REAL + 100) == (0.0, 0.0, 0.0, 0.0)


def test_one_mode_of_two_has_precision_and_lacks_recall_and_coverage():
    real = np.concatenate([REAL, REAL + 100])
    found = manifolds.compare(real, REAL + 1e-3)
    assert found.precision > 0.95
    assert found.recall == pytest.approx(0.5, abs=0.05)
    assert found.coverage == pytest.approx(0.5, abs=0.05)


def test_too_few_neighbours_are_refused():
    with pytest.raises(UserError, match="at least 6 images, found 5"):
        manifolds.compare(REAL[:5], FAKE)


def test_nearest_neighbours_in_chunks_are_those_of_the_whole():
    points = RNG.integers(0, 256, (50, 3, 2, 1), np.uint8)
    queries = RNG.integers(0, 256, (20, 3, 2, 1), np.uint8)
    queries[4] = points[33]
    between = np.linalg.norm(
        queries.reshape(20, 1, 6).astype(float) - points.reshape(1, 50, 6), axis=-1
    )
    for size in (7, 50):
        distance, index = manifolds.nearest(
            queries, (points[i : i + size] for i in range(0, 50, size))
        )
        np.testing.assert_allclose(distance, between.min(axis=1), rtol=1e-9)
        np.testing.assert_array_equal(index, between.argmin(axis=1))
    assert distance[4] == 0.0 and index[4] == 33
