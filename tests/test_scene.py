"""Growing a field: from a prior that knows the picture of each view, and its settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_config

from ddpm_jax import make_process, schedules
from ddpm_jax.data import solids
from ddpm_jax.errors import UserError
from ddpm_jax.models import radiance_field
from ddpm_jax.predictions import to_prediction
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.scenes import cameras, sides
from ddpm_jax.scenes.solids import Solid, distance, render
from ddpm_jax.training import scene
from ddpm_jax.training.scene import Settings
from experiments import dreamfusion_solids

pytestmark = [
    pytest.mark.loose_promotion(reason="optax.adam raises floats to int32 powers"),
    pytest.mark.quick_to_compile,
]

SIDE, STEPS = 8, 60
LABELS = make_config(model__class_conditional=True)
PROCESS = make_process(schedules.cosine(50))
COLOURS = np.float32([[0.4, 0.4, 0.4], [0.8, 0.1, 0.1], [0.4, 0.4, 0.4], [0.1, 0.1, 0.8],
                      [0.4, 0.4, 0.4], [0.4, 0.4, 0.4]])  # hidden and SIDES  # fmt: skip
COLOURS = COLOURS[[0, *(1 + sides.SIDE_OF_VIEW)]]  # hidden and all views
DISC = np.hypot(*(np.mgrid[:SIDE, :SIDE] + 0.5 - SIDE / 2)) < 2.6
SETTINGS = Settings(
    resolutions=(4, 10),
    num_samples=12,
    num_steps=STEPS,
    batch_size=4,
    learning_rate=0.4,
    colour_rate=1.0,
    blob=3.0,
    offset=0.0,
    shaded=0.0,
    t_range=(0.02, 0.98),
    t_range_end=(0.02, 0.5),
    checkpoint_every=1,
)


def denoiser(prior, cond):
    """The exact prior of one picture per view: a disc on white, in the colour of its side."""
    colour = jnp.asarray(COLOURS)[cond["label"] % 25] + prior["offset"]
    picture = jnp.where(DISC[None, :, :, None], colour[:, None, None], 1.0)
    return lambda x_t, t: to_prediction(PROCESS, 2 * picture - 1, x_t, t, "x_0")


@pytest.fixture(scope="module")
def grower():
    return scene.make_grower(PROCESS, denoiser, lambda x: x, SIDE, SETTINGS)


PRIOR = {"offset": jnp.float32(0.0)}


def grow(grower, rows, steps=STEPS, seed=0):
    state = grower.init()
    for number in range(steps):
        state = grower.step(state, PRIOR, rows, jax.random.key(seed), number)
    return state


def look(state, azimuth):
    azimuth = jnp.asarray(azimuth, jnp.float32)
    light = jnp.tile(jnp.array([[0.0, 0.0, 1.0]]), (len(azimuth), 1))
    picture = scene.view(state.params, azimuth, 0.0 * azimuth, light, SIDE, 24,
                         ambient=jnp.ones(len(azimuth)))  # fmt: skip
    return np.asarray(picture.colour)


def test_a_field_becomes_what_the_prior_says_of_each_view(grower):
    views = look(grow(grower, scene.rows_of(LABELS, "", 6, with_views=True)), [0.0, np.pi])
    assert views[:, 0].mean() > 0.93  # white around it
    front, back = (view[DISC].mean(axis=0) for view in views)
    assert front[0] > front[2] + 0.2 and back[2] > back[0] + 0.2  # red, blue
    views = look(grow(grower, scene.rows_of(LABELS, "", 6, with_views=False)), [0.0, np.pi])
    np.testing.assert_allclose(views[:, DISC].mean(axis=1), 0.4, atol=0.1)


def test_a_step_is_a_function_of_the_state_the_key_and_its_number(grower):
    rows = scene.rows_of(LABELS, "", 0, with_views=True)
    first, again, other = (grow(grower, rows, 2, seed) for seed in (0, 0, 1))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first, again)
    assert jax.tree.all(same)
    assert (first.params[-1] != other.params[-1]).any()


def test_the_first_steps_are_lit_evenly_and_their_noise_is_in_pairs():
    """The prior predicts a constant noise e, so the noise pairs leave w(t) e for every pixel."""

    def constant(prior, cond):
        return lambda x_t, t: to_prediction(PROCESS, jnp.full_like(x_t, prior), x_t, t, "eps")

    settings = Settings(
        resolutions=(3, 6), num_samples=8, num_steps=2, flat_until=0.5, colourless=1.0,
        opacity_weight=0.0, normal_weight=1.0,
    )  # fmt: skip
    grower = scene.make_grower(PROCESS, constant, lambda x: x, SIDE, settings)
    rows = scene.rows_of(LABELS, "", 0, with_views=True)

    def moves(e, number):
        after = grower.step(grower.init(), jnp.float32(e), rows, jax.random.key(0), number)
        pairs = zip(after.params, grower.init().params, strict=True)
        return np.concatenate([np.ravel(a - b) for a, b in pairs])

    assert (moves(0.0, 0) == 0.0).all()
    assert (moves(0.0, 1) != 0.0).any()  # the normals
    darker = moves(1.0, 0)  # without normals, all that darkens the picture is density
    assert (darker >= 0.0).all() and (darker > 0.0).any()
    assert (moves(1.0, 1) < 0.0).any()


def test_a_camera_sees_a_field_as_the_set_shows_the_solid():
    """The same axes, cameras, light and background; a mug, because it has a handle."""
    colour, light, side, r = np.array([0.6, 0.3, 0.2]), np.float32([0.6, 0.0, 0.8]), 24, 33
    mug = Solid(
        jnp.int32(solids.CLASSES.index("mug")),
        jnp.ones(3),
        jnp.tile(jnp.asarray(colour, jnp.float32), (2, 1)),
        jnp.zeros(3),
    )
    axis = jnp.linspace(-radiance_field.BOUND, radiance_field.BOUND, r)
    points = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    sdf = jax.jit(jax.vmap(lambda x: distance(mug, x)))(points.reshape(-1, 3))
    low, high = radiance_field.ALBEDOS
    share = (colour - low) / (high - low)
    albedo = np.broadcast_to(np.log(share / (1 - share)), (r, r, r, 3))
    grid = np.concatenate([-60 * np.reshape(sdf, (r, r, r, 1)), albedo], axis=-1)
    azimuth, elevation = jnp.array([0.5, 1.8, -2.2]), jnp.array([0.3, 0.0, 0.8])
    lights = jnp.tile(jnp.asarray(light), (3, 1))

    def seen(azimuth):
        params = [jnp.asarray(grid, jnp.float32)]
        return np.asarray(scene.view(params, azimuth, elevation, lights, side, 64).colour)

    camera = cameras.orbit(azimuth, elevation, solids.RADIUS, solids.FIELD_OF_VIEW, side)
    expected = 0.5 + 0.5 * np.asarray(jax.jit(render, static_argnums=3)(mug, camera, light, side))
    error, mirrored = (np.abs(seen(a) - expected).mean(axis=(1, 2, 3)) for a in (azimuth, -azimuth))
    assert error.max() < 0.03 and (mirrored > 1.3 * error).all(), (error, mirrored)


def test_the_prior_is_not_clipped_and_not_guided_at_large_t():
    unclipped = {"clip_x_0": False, "clip_latents": 0.0, "dynamic_threshold": 0.0}
    found = scene.sample_of(Settings(guidance=3.0, guidance_high=0.6), 1000)
    assert found == {"guidance": 3.0, "guidance_interval": (1, 600), **unclipped}
    assert scene.sample_of(Settings(guidance=0.0), 1000)["guidance_interval"] == ()
    assert scene.sample_of(Settings(guidance_high=0.0), 8)["guidance_interval"] == (1, 1)


def test_the_rows_are_the_labels_of_the_set():
    names, mug = sides.names(solids.CLASSES), solids.CLASSES.index("mug")
    rows = scene.rows_of(LABELS, "", mug, with_views=True)["label"]
    found = [names[i] for i in rows]
    assert found[:3] == ["mug", "mug, front 0-45 low", "mug, left 45-90 low"]
    assert found[16:18] == ["mug, front 315-360 high", "mug, top 0-45"] and len(set(found)) == 25
    plain = scene.rows_of(LABELS, "", mug, with_views=False)["label"]
    assert [names[i] for i in plain] == ["mug"] * 25


def test_the_rows_of_a_text_are_its_captions_encoded():
    try:
        text_encoder.encoder_directory()
    except UserError as error:
        pytest.skip(str(error))
    config = make_config(data__text=True, model__embedding_dim=384, model__context_dim=384)
    rows = scene.rows_of(config, "a red mug", 0, with_views=True)
    assert rows.keys() == {"embedding", "context", "context_mask"}
    assert {len(row) for row in rows.values()} == {25}
    for row, view in ((0, sides.HIDDEN), (1, 0), (24, 23)):
        alone = text_encoder.conditioning([sides.caption("a red mug", view)])
        np.testing.assert_allclose(rows["embedding"][row], alone["embedding"][0], atol=1e-4)
        assert int(rows["context_mask"][row].sum()) == alone["context_mask"].sum()
    plain = scene.rows_of(config, "a red mug", 0, with_views=False)
    for name, row in plain.items():  # as long as with views, so one program grows both
        np.testing.assert_array_equal(row, np.repeat(rows[name][:1], 25, axis=0))


def test_cameras_and_lights_are_those_of_the_set():
    azimuth, elevation = (np.asarray(a) for a in scene.draw_angles(jax.random.key(0), 4000))
    low, high = solids.ELEVATIONS
    assert low <= elevation.min() < low + 0.01 and high - 0.01 < elevation.max() <= high
    assert np.abs(np.exp(1j * azimuth).mean()) < 0.05
    light = np.asarray(scene.draw_lights(jax.random.key(1), 4000))
    np.testing.assert_allclose(np.linalg.norm(light, axis=1), 1.0, rtol=1e-5)
    assert light[:, 2].min() >= 0 and light[:, 2].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"num_step": 3}, "unknown config key 'field.num_step'; did you mean 'field.num_steps'"),
        ({"num_steps": 0}, "config.field.num_steps must be at least 1, found 0"),
        ({"resolutions": (1, 8)}, r"each entry must be at least 2, found 1 in \(1, 8\)"),
        ({"resolutions": ()}, "config.field.resolutions is empty; name at least one number"),
        ({"shaded": 1.5}, r"config.field.shaded must be in \[0, 1\], found 1.5"),
        ({"flat_until": -0.1}, r"config.field.flat_until must be in \[0, 1\], found -0.1"),
        ({"weighting": "snr"}, "unknown field.weighting 'snr'; allowed: sigma_squared, uniform,"),
        ({"t_range": (0.5, 0.2)}, r"must be \(low, high\) with low <= high, found \(0.5, 0.2\)"),
        ({"t_range": (0.1,)}, r"must be \(low, high\)"),
        ({"t_range_end": (0.6, 0.2)}, r"t_range_end must be \(low, high\) with low <= high"),
    ],
)
def test_settings_are_checked_where_they_are_read(mapping, message):
    with pytest.raises(UserError, match=message):
        scene.from_dict(mapping)


def test_every_number_of_the_settings_has_a_range():
    for kind, ranges, name in (
        (Settings, scene.RANGES, "field"),
        (scene.JudgeSettings, scene.JUDGE_RANGES, "judge"),
    ):
        fields = {f"{name}.{field.name}" for field in dataclasses.fields(kind)}
        assert ranges.keys() == fields - {"field.weighting"}


def test_the_variants_of_the_config():
    full, text, smoke = map(dreamfusion_solids.get_config, ("", "text", "smoke"))
    assert set(full) == set(smoke) == {"data", "prior", "field", "judge"}
    assert scene.from_dict(full.field) == Settings()
    assert smoke.field.num_steps < full.field.num_steps
    assert text.field == full.field and text.judge == full.judge and text.data.text
    labels = len(sides.names(solids.CLASSES))
    assert full.prior.train.num_samples == labels  # the grid shows each once
    with pytest.raises(UserError, match="allowed: smoke, text, or no variant"):
        dreamfusion_solids.get_config("small")
