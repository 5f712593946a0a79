"""The X-UNet: the symmetry of its frames, its null form, and the size of the paper's network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_config

from ddpm_jax import build
from ddpm_jax.conditioning import drop
from ddpm_jax.errors import UserError
from ddpm_jax.models import XUNet, as_model
from ddpm_jax.models.xunet import FrameAttention, TwoFrames, positions
from ddpm_jax.scenes import cameras

pytestmark = [
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
]

SIDE, B = 8, 3
SMALL = dict(  # one level: quick to compile
    channels=8,
    channel_multipliers=(1,),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_heads=2,
    dropout=0.0,
    num_groups=4,
)
TWO_LEVELS = SMALL | {"channel_multipliers": (1, 2)}


def randomised(params, scale=0.2):
    """Parameters without the zeros of a new network."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    new = [scale * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, new)


@pytest.fixture(scope="module")
def model():  # with patches of 2x2: the level is 4x4
    return as_model(XUNet(**SMALL, patch_size=2), (SIDE, SIDE, 3))


@pytest.fixture(scope="module")
def params(model):
    return randomised(model.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    camera = cameras.orbit(rng.uniform(0, 6, (B, 2)), rng.uniform(0, 1, (B, 2)), 3.0, 0.7, SIDE)
    x, view = jnp.asarray(rng.normal(size=(2, B, SIDE, SIDE, 3)), jnp.float32)
    cond = {"view": view, "pose": camera.pose, "focal": camera.focal, "centre": camera.centre}
    return x, jnp.array([0, 3, 7]), cond


@pytest.fixture(scope="module")
def apply(model):
    return jax.jit(lambda params, x, t, cond: model.apply(params, x, t, cond, train=False))


def test_the_paper_s_network_has_about_471_million_parameters():
    """Watson et al. 2022, section 2.3; by shapes alone. At 64x64 the level of 8x8 attends too."""

    def count(side):
        model = as_model(XUNet(), (side, side, 3))
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count(64) == pytest.approx(471e6, rel=0.01)
    assert count(128) == pytest.approx(471e6, rel=0.03)


def test_swapped_frames_give_swapped_outputs():
    network = TwoFrames(
        3,
        **TWO_LEVELS,
        patch_size=1,
        norm_eps=1e-6,
        dtype=jnp.float32,
        remat=False,
        remat_keep="nothing",
    )
    keys = jax.random.split(jax.random.key(0), 3)
    frames, time, rays = (
        jax.random.normal(key, shape)
        for key, shape in zip(
            keys, [(B, 2, SIDE, SIDE, 3), (B, 2, 16), (B, 2, SIDE, SIDE, 5)], strict=True
        )
    )
    run = jax.jit(lambda p, *args: network.apply({"params": p}, *args, False))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), frames, time, rays, False))
    params = randomised(params["params"])
    out = run(params, frames, time, rays)
    swapped = run(params, frames[:, ::-1], time[:, ::-1], rays[:, ::-1])
    np.testing.assert_allclose(swapped[:, ::-1], out, rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(out[:, 0] - out[:, 1])).max() > 0.1
    # The same frame, noise level and camera twice: what is asked is what is given.
    same = run(params, *(jnp.stack([a[:, 0]] * 2, axis=1) for a in (frames, time, rays)))
    np.testing.assert_allclose(same[:, 0], same[:, 1], rtol=1e-4, atol=1e-4)


def test_cross_attention_reads_the_other_frame():
    """It equals self-attention only if both frames are the same."""
    attention = [FrameAttention(2, 4, jnp.float32, 1e-6, cross) for cross in (False, True)]
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, 3, 8))
    params = {"params": randomised(attention[0].init(jax.random.key(1), x)["params"], 0.5)}
    same = jnp.stack([x[:, 0], x[:, 0]], axis=1)
    of_same, crossed_same = (layer.apply(params, same) for layer in attention)
    np.testing.assert_allclose(of_same, crossed_same, atol=1e-5)
    within, across = (layer.apply(params, x) - x for layer in attention)
    assert (jnp.abs(within - across).max(axis=(0, 2, 3, 4)) > 0.01).all()
    # the pixels of the other frame in another order: the same keys and values
    turned = x.at[:, 1].set(x[:, 1, ::-1])
    np.testing.assert_allclose(attention[1].apply(params, turned)[:, 0] - x[:, 0], across[:, 0],
                               atol=1e-5)  # fmt: skip


def test_a_new_network_is_the_zero_function(model, inputs, apply):
    assert not np.any(apply(model.init(jax.random.key(0)), *inputs))


def test_the_output_depends_on_view_cameras_and_time(params, inputs, apply):
    x, t, cond = inputs
    out = np.asarray(apply(params, x, t, cond))
    assert out.shape == x.shape and np.isfinite(out).all()
    turned = cond["pose"][:, ::-1]
    for change in ({"view": -cond["view"]}, {"pose": turned}, {"focal": 2 * cond["focal"]}):
        assert np.abs(apply(params, x, t, cond | change) - out).max(axis=(1, 2, 3)).min() > 1e-3
    assert np.abs(apply(params, x, t + 5, cond) - out).max(axis=(1, 2, 3)).min() > 1e-3


def test_a_null_condition_hides_view_and_cameras_of_its_image_only(params, inputs, apply):
    x, t, cond = inputs
    out = np.asarray(apply(params, x, t, cond))
    hidden = drop(cond, jnp.array([True, False, True]))
    null = np.asarray(apply(params, x, t, hidden))
    np.testing.assert_allclose(null[1], out[1], rtol=1e-5, atol=1e-5)
    other = hidden | {
        "view": hidden["view"].at[0].add(1.0),
        "focal": hidden["focal"].at[0].multiply(3.0),
        "centre": hidden["centre"].at[2].add(1.0),
    }
    np.testing.assert_array_equal(apply(params, x, t, other), null)
    nothing = np.asarray(apply(params, x, t, None))
    np.testing.assert_allclose(nothing[[0, 2]], null[[0, 2]], rtol=1e-5, atol=1e-5)
    assert np.abs(nothing - out).max() > 1e-3


def test_gradient_flows_to_both_frames_and_to_the_cameras(params, inputs, model):
    x, t, cond = inputs

    def loss(x, view, pose):
        cond_now = cond | {"view": view, "pose": pose}
        return jnp.square(model.apply(params, x, t, cond_now, train=False)).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, cond["view"], cond["pose"])
    for gradient in gradients:
        norms = np.sqrt(np.square(gradient).reshape(B, -1).sum(axis=1))
        assert np.isfinite(norms).all() and (norms > 1e-3).all()
    null = drop(cond, jnp.ones(B, bool))
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, null["view"], null["pose"])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.slow
@pytest.mark.loose_promotion(reason="optax.adam raises floats to int32 powers")
def test_with_equal_cameras_a_trained_network_answers_with_the_view(model):
    """From noise alone. So all that it says of the image has come from the other frame."""
    steps, n = 300, 32
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def loss(params, key):
        keys = jax.random.split(key, 4)
        blocks = jax.random.uniform(keys[0], (n, 2, 2, 3), minval=-1.0)
        x = jax.image.resize(blocks, (n, SIDE, SIDE, 3), "nearest")
        angles = (jax.random.uniform(k, (n, 1), maxval=1.5) for k in keys[1:3])
        camera = cameras.orbit(*(jnp.repeat(a, 2, axis=1) for a in angles), 3.0, 0.7, SIDE)
        cond = {"view": x, "pose": camera.pose, "focal": camera.focal, "centre": camera.centre}
        noise = jax.random.normal(keys[3], x.shape)
        return jnp.square(model.apply(params, noise, jnp.full(n, 999), cond) - x).mean()

    @jax.jit
    def step(params, state, key):
        found, gradient = jax.value_and_grad(loss)(params, key)
        moves, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, moves), state, found

    params = model.init(jax.random.key(0))
    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, state, found = step(params, state, key)
    assert found < 0.1 / 3, found  # the blocks have the variance 1/3


def test_remat_keeps_the_parameters_and_recomputes(model, params, inputs):
    x, t, cond = inputs
    again = as_model(XUNet(**SMALL, patch_size=2, remat=True), (SIDE, SIDE, 3))

    def gradient(model):
        loss = lambda p: model.apply(p, x, t, cond, train=False).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params))

    assert "remat" in gradient(again) and "remat" not in gradient(model)


def test_positions_are_sines_and_cosines_of_doubled_angles():
    found = np.asarray(positions(jnp.array([[0.3, -1.1]]), 2))
    expected = [0.3, -1.1]
    for wave in (np.sin, np.cos):
        expected += [wave(0.3), wave(-1.1), wave(0.6), wave(-2.2)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_a_network_without_attention_is_refused():
    config = make_config(data__name="solids", model__name="xunet", model__attention_resolutions=())
    with pytest.raises(UserError, match="model.attention_resolutions is empty, but the frames"):
        build.model(config.model, (SIDE, SIDE, 3), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view": None}, "cond has no 'view'"),
        ({"pose": jnp.zeros((B, 4, 4))}, r"cond\['pose'\] must be of shape \[3, 2, 4, 4\]"),
        ({"view": jnp.zeros((B, 4, 4, 3))}, r"cond\['view'\] must be of shape \[3, 8, 8, 3\]"),
        ({"label": jnp.zeros(B, jnp.int32)}, "'label'"),
    ],
)
def test_a_wrong_condition_is_refused(model, params, inputs, change, message):
    x, t, cond = inputs
    cond = {name: value for name, value in (cond | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        model.apply(params, x, t, cond, train=False)
