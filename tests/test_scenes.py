"""Cameras against projections, and solids against their own geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.scenes import cameras, solids

SIDE = 16


@pytest.fixture(scope="module")
def camera():
    rng = np.random.default_rng(0)
    azimuth, elevation = rng.uniform(0, 6, 5), rng.uniform(-1.5, 1.5, 5)
    return cameras.orbit(azimuth, elevation, rng.uniform(2, 4, 5), 0.9, SIDE)


def test_a_point_on_a_ray_is_projected_to_its_pixel(camera):
    origins, directions = cameras.rays(camera, SIDE, SIDE + 4)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1.0, rtol=1e-5)
    depth = np.random.default_rng(1).uniform(0.5, 5, (5, SIDE, SIDE + 4, 1))
    points = jnp.asarray(origins + depth * directions, jnp.float32).reshape(5, -1, 3)
    found, z = cameras.project(camera, points)
    row, column = np.mgrid[:SIDE, : SIDE + 4]
    expected = np.stack([column + 0.5, row + 0.5], axis=-1).reshape(1, -1, 2)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=2e-3)
    assert (np.asarray(z) > 0).all()


def test_an_orbit_looks_at_the_origin_with_the_world_upright(camera):
    middle, _ = cameras.project(camera, jnp.zeros((5, 1, 3)))
    np.testing.assert_allclose(middle, SIDE / 2, atol=1e-4)
    above, _ = cameras.project(camera, jnp.full((5, 1, 3), jnp.array([0.0, 0.0, 0.1])))
    np.testing.assert_allclose(above[..., 0], SIDE / 2, atol=1e-3)  # in the same column
    assert (above[..., 1] < SIDE / 2).all()  # rows count downwards
    rotation = np.asarray(camera.pose[:, :3, :3])
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.eye(3)[None].repeat(5, 0),
                               atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, rtol=1e-5)


def test_azimuth_0_is_the_x_axis_and_elevation_is_height():
    camera = cameras.orbit([0.0, np.pi / 2, 1.0], [0.0, 0.0, np.pi / 2], 2.0, 0.9, SIDE)
    np.testing.assert_allclose(camera.pose[:, :3, 3], [[2, 0, 0], [0, 2, 0], [0, 0, 2]], atol=1e-6)
    assert np.isfinite(camera.pose).all()
    # seen from the front, the world's y points to the right: x towards us, z up
    right, _ = cameras.project(
        jax.tree.map(lambda leaf: leaf[0], camera), jnp.array([[0.0, 0.1, 0.0]])
    )
    assert right[0, 0] > SIDE / 2


def test_a_turned_camera_is_that_of_another_azimuth(camera):
    elevation = jnp.arcsin(camera.pose[:, 2, 3] / jnp.linalg.norm(camera.pose[:, :3, 3], axis=-1))
    azimuth = jnp.arctan2(camera.pose[:, 1, 3], camera.pose[:, 0, 3])
    radius = jnp.linalg.norm(camera.pose[:, :3, 3], axis=-1)
    expected = cameras.orbit(azimuth + 0.7, elevation, radius, 0.9, SIDE).pose
    np.testing.assert_allclose(cameras.turned(camera.pose, 0.7), expected, atol=1e-5)


def test_the_field_of_view_is_that_of_the_whole_picture():
    camera = cameras.orbit(0.0, 0.0, 3.0, 0.8, SIDE)
    edge = jnp.array([[0.0, 3 * np.tan(0.4), 0.0]])
    found, _ = cameras.project(camera, edge)
    np.testing.assert_allclose(found[0], [SIDE, SIDE / 2], atol=1e-4)


@pytest.mark.parametrize("name", list(solids.SOLIDS))
def test_a_distance_never_passes_the_surface(name):
    """Sphere tracing is right if |sdf(a) - sdf(b)| <= |a - b|."""
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.uniform(-1.2, 1.2, (2000, 3)), jnp.float32)
    b = a + jnp.asarray(rng.normal(size=(2000, 3)) * 0.1, jnp.float32)
    sdf = jax.vmap(solids.SOLIDS[name])
    assert (jnp.abs(sdf(a) - sdf(b)) <= jnp.linalg.norm(a - b, axis=-1) * 1.001 + 1e-6).all()
    assert (sdf(a) < 0).any() and (sdf(a) > 0).any()
    assert float(solids.SOLIDS[name](jnp.array([0.0, 0.0, 3.0]))) > 0.9


def plain(name, colour=(0.2, 0.4, 0.6)):
    colours = jnp.broadcast_to(jnp.array(colour), (2, 3))
    return solids.Solid(
        jnp.int32(list(solids.SOLIDS).index(name)), jnp.ones(3), colours, jnp.zeros(3)
    )


@pytest.fixture(scope="module")
def render():
    return jax.jit(lambda solid, camera, light: solids.render(solid, camera, light, SIDE))


def test_a_sphere_has_the_outline_and_the_shade_of_the_formula(render):
    camera = cameras.orbit(0.0, 0.0, 3.0, 0.9, SIDE)
    picture = np.asarray(render(plain("sphere"), camera, jnp.array([0.0, 0.0, 5.0])))
    origins, directions = (np.asarray(x) for x in cameras.rays(camera, SIDE, SIDE))
    middle = (origins * directions).sum(-1)
    closest = np.sqrt((origins**2).sum(-1) - middle**2)  # from the centre to the ray
    clear = np.abs(closest - 0.8) > 0.02
    hit = closest < 0.8
    np.testing.assert_array_equal(picture[clear & ~hit], 1.0)
    t = -middle - np.sqrt(np.maximum(0.64 - closest**2, 0))
    normal = (origins + t[..., None] * directions) / 0.8
    lit = 0.35 + 0.65 * np.maximum(normal[..., 2:], 0)
    expected = 2 * np.array([0.2, 0.4, 0.6]) * lit - 1
    np.testing.assert_allclose(picture[clear & hit], expected[clear & hit], atol=0.02)


def test_the_chair_has_a_front_and_a_back_and_is_symmetric(render):
    front, back = (
        np.asarray(render(plain("chair"), cameras.orbit(a, 0.3, 3.0, 0.9, SIDE), jnp.ones(3)))
        for a in (0.0, np.pi)
    )
    assert np.abs(front - back).max() > 0.5
    light = jnp.array([1.0, 0.0, 1.0])
    left, right = (
        np.asarray(render(plain("chair"), cameras.orbit(a, 0.3, 3.0, 0.9, SIDE), light))
        for a in (0.7, -0.7)
    )
    differs = np.abs(left - right[:, ::-1]).max(axis=-1) > 0.1
    assert differs.mean() < 0.02  # only pixels at an edge


def test_drawn_solids_depend_on_their_key_only_and_differ():
    labels = jnp.zeros(4, jnp.int32)
    keys = jax.random.split(jax.random.key(0), 4)
    first, again = (jax.vmap(solids.draw)(keys, labels) for _ in range(2))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
    assert np.unique(np.asarray(first.size), axis=0).shape == (4, 3)
    assert (first.colours >= 0).all() and (first.colours <= 1).all()
