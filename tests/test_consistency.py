"""A radiance field that is fitted to views: the score of true views, and of views that disagree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.pixels import to_uint8
from ddpm_jax.scenes import cameras, solids
from ddpm_jax.scenes.cameras import Camera
from ddpm_jax.training.consistency import consistency

N, SIDE = 24, 24


@pytest.fixture(scope="module")
def camera():
    rng = np.random.default_rng(0)
    angles = rng.uniform(-np.pi, np.pi, N), rng.uniform(-0.2, 1.2, N)
    return cameras.orbit(*angles, 3.5, np.deg2rad(40.0), SIDE)


def chair(camera, colour):
    found = solids.Solid(
        jnp.int32(list(solids.SOLIDS).index("chair")),
        jnp.ones(3),
        jnp.stack([jnp.asarray(colour), jnp.array([0.2, 0.4, 0.6])]),
        jnp.array([0.0, 0.0, 1.0]),
    )
    return solids.render(found, camera, jnp.ones(3), SIDE, 1.0)


@pytest.mark.slow
@pytest.mark.loose_promotion(reason="optax.adam raises floats to int32 powers")
def test_true_views_are_consistent_and_those_of_two_chairs_are_not(camera):
    """A field shows an unseen view of a chair. So it can be what distillation asks for."""
    draw = jax.jit(chair)
    colours = jnp.array([[0.7, 0.3, 0.2], [0.2, 0.7, 0.3]])
    red, green = (to_uint8(draw(camera, colour)) for colour in colours)
    mixed = np.where((np.arange(N) % 2)[:, None, None, None], red, green)
    views = np.stack([red, mixed])
    both = Camera(*(jnp.stack([part, part]) for part in camera))
    done = []
    found = consistency(views, both, progress=lambda *report: done.append(report))
    assert found[0] > 21 and found[1] < found[0] - 2, found
    assert done == [("consistency", i, 2) for i in range(3)]


@pytest.mark.parametrize("shape", [(1, 3, 8, 8, 3), (1, 4, 8, 8, 1)])
def test_few_views_and_grey_ones_are_refused(camera, shape):
    with pytest.raises(UserError, match="at least 4 views with 3 channels"):
        consistency(np.zeros(shape, np.uint8), camera)
