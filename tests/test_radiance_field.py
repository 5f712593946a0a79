"""A radiance field: compositing, normals and samples against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import radiance_field
from ddpm_jax.scenes import cameras, solids
from ddpm_jax.training.scene import Settings

SIDE, R = 16, 17
SPACING = 2 * radiance_field.BOUND / (R - 1)
render = jax.jit(radiance_field.render, static_argnames="num_samples")


def field(u, colour=(0.5, 0.5, 0.5)):
    """A field of one grid, with u a function of the points [R, R, R, 3]."""
    axis = np.linspace(-radiance_field.BOUND, radiance_field.BOUND, R)
    x = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    grid = np.zeros((R, R, R, 4))
    low, high = radiance_field.ALBEDOS
    share = (np.asarray(colour) - low) / (high - low)
    grid[..., 0], grid[..., 1:] = u(x), np.log(share / (1 - share))
    return [jnp.asarray(grid, jnp.float32)]


@pytest.fixture(scope="module")
def rays():
    camera = cameras.orbit([0.3, 2.0], [0.2, -0.7], 3.0, 1.0, SIDE)
    return cameras.rays(camera, SIDE, SIDE)


def closest(rays):
    """The smallest distance of each ray to the origin."""
    origins, directions = (np.asarray(x) for x in rays)
    return np.linalg.norm(np.cross(origins, directions), axis=-1)


def test_a_slab_of_constant_density_lets_exp_of_minus_its_depth_through():
    density, lengths = np.full((3, 7), 1.7, np.float32), np.full((3, 7), 0.2, np.float32)
    w, rest = radiance_field.weights(jnp.asarray(density), jnp.asarray(lengths))
    np.testing.assert_allclose(rest, np.exp(-1.7 * 1.4), rtol=1e-5)
    expected = np.exp(-1.7 * 0.2 * np.arange(7)) * (1 - np.exp(-1.7 * 0.2))
    np.testing.assert_allclose(w, np.tile(expected, (3, 1)), rtol=1e-5)


def test_the_weights_and_the_rest_sum_to_1():
    rng = np.random.default_rng(0)
    density = jnp.asarray(rng.exponential(size=(50, 30)) * 20, jnp.float32)
    w, rest = radiance_field.weights(density, jnp.asarray(rng.random((50, 30)), jnp.float32))
    assert (w >= 0).all() and (w.sum(axis=-1) <= 1 + 1e-6).all()
    np.testing.assert_allclose(w.sum(axis=-1) + rest, 1.0, atol=1e-6)


def test_a_ball_of_constant_density_has_the_opacity_of_its_chords(rays):
    """1 - exp(-τ 2 √(b² - h²)) for a ray at the distance h; with any places of the samples."""
    params = field(lambda x: 0.3 * np.ones(x.shape[:-1]), (0.2, 0.4, 0.6))
    tau = np.log1p(np.exp(0.3)) / SPACING
    chord = 2 * np.sqrt(np.maximum(radiance_field.BOUND**2 - closest(rays) ** 2, 0))
    expected = 1 - np.exp(-tau * chord)
    for key in (None, jax.random.key(0)):
        picture = render(params, *rays, num_samples=5, key=key)
        np.testing.assert_allclose(picture.opacity, expected, atol=2e-4)
        shown = expected[..., None] * np.array([0.2, 0.4, 0.6]) + (1 - expected[..., None])
        np.testing.assert_allclose(picture.colour, shown, atol=2e-4)
    assert (expected == 0).any() and expected.max() > 0.8


def test_interpolation_is_exact_for_a_trilinear_function():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (40, 3)) * radiance_field.BOUND
    x[0] = radiance_field.BOUND  # a corner of the grid

    def f(x):
        return 0.5 + x @ [1.0, -2.0, 0.5] + x[..., 0] * x[..., 1] * x[..., 2]

    grid = field(f)[0]
    found = radiance_field.interpolate(grid, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found[:, 0], f(x), atol=1e-5)
    outside = radiance_field.interpolate(grid, jnp.full((1, 3), 9.0))
    np.testing.assert_allclose(outside[0], found[0], atol=1e-5)


def test_normals_are_those_of_a_sphere(rays):
    """A hard sphere: its shade is max(0, x/|x| · l) at the point that the ray hits."""
    params = field(lambda x: 60 * (0.8 - np.linalg.norm(x, axis=-1)), (0.5, 0.5, 0.5))
    light = np.array([0.6, 0.0, 0.8], np.float32)
    shared = jnp.asarray(light)[None, None, None]
    picture = render(params, *rays, num_samples=64, light=shared, ambient=0.0)
    origins, directions = (np.asarray(x) for x in rays)
    inside = closest(rays) < 0.6
    middle = (origins * directions).sum(-1)
    t = -middle - np.sqrt(np.maximum(0.64 - closest(rays) ** 2, 0))
    hit = (origins + t[..., None] * directions) / 0.8
    expected = 0.5 * np.maximum(hit @ light, 0)
    np.testing.assert_allclose(picture.opacity[inside], 1.0, atol=1e-2)
    found = np.asarray(picture.colour[..., 0])
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.05)
    np.testing.assert_allclose(picture.depth[inside], t[inside], atol=0.1)
    assert float(jnp.max(picture.turned_away)) < 0.05  # all visible normals face the camera
    grey = render(params, *rays, num_samples=64, light=shared, ambient=1.0, colourless=True)
    np.testing.assert_allclose(grey.colour[inside], radiance_field.GREY, atol=1e-2)


def test_flat_light_is_the_same_on_all_surfaces(rays):
    """A fog of the albedo 0.5, with bumps: each of its points has the shade 0.5 (0.35 + 0.65 m)."""
    bumps = field(lambda x: np.sin(5 * x).sum(axis=-1))
    light = jnp.array([0.6, 0.0, 0.8])[None, None, None]

    def pictures(params, flat):
        return render(params, *rays, num_samples=9, light=light, flat=flat)

    picture = pictures(bumps, True)
    shade = 0.5 * (0.35 + 0.65 * solids.MEAN_LIT)
    expected = 1.0 - (1.0 - shade) * picture.opacity[..., None]
    np.testing.assert_allclose(picture.colour, np.broadcast_to(expected, picture.colour.shape),
                               atol=1e-5)  # fmt: skip
    assert np.abs(pictures(bumps, False).colour - picture.colour).max() > 0.02


def test_each_piece_of_a_ray_has_one_sample():
    near, far = jnp.array([1.0, 2.0]), jnp.array([3.0, 2.5])
    s = radiance_field.stratified(jax.random.key(0), near, far, 8)
    piece = (np.asarray(s) - np.asarray(near)[:, None]) / np.asarray(far - near)[:, None] * 8
    np.testing.assert_array_equal(np.floor(piece), np.tile(np.arange(8), (2, 1)))
    assert np.unique(piece - np.floor(piece)).size == 16
    middles = radiance_field.stratified(None, near, far, 2)
    np.testing.assert_allclose(middles, [[1.5, 2.5], [2.125, 2.375]])


def test_a_new_field_is_a_grey_blob():
    params = radiance_field.init((3, R), 3.0, 0.5)
    assert [grid.shape for grid in params] == [(3, 3, 3, 4), (R, R, R, 4)]
    grid = np.asarray(radiance_field.total(params))
    tau = np.asarray(radiance_field.density(jnp.asarray(grid[..., 0]), R))
    assert tau[R // 2, R // 2, R // 2] == pytest.approx(np.log1p(np.exp(3.5)) / SPACING)
    assert (grid[..., 1:] == 0).all() and tau[0, 0, 0] < 1e-3 * tau.max()
    coarse = [jnp.ones((3, 3, 3, 4)), params[1]]  # the sum of the grids
    np.testing.assert_allclose(radiance_field.total(coarse), grid + 1, atol=1e-5)


def test_light_passes_through_the_blob_that_distillation_starts_from(rays):
    start = Settings()
    params = radiance_field.init(start.resolutions, start.blob, start.offset)
    through = 1 - np.asarray(render(params, *rays, num_samples=64).opacity)
    assert 0.3 < through.min() < 0.6  # along the longest chords
    opaque = radiance_field.init(start.resolutions, start.blob, 0.0)
    assert float(render(opaque, *rays, num_samples=64).opacity.max()) > 1 - 1e-6
