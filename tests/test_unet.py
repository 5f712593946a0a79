"""The U-Net: its number of parameters by an independent count, every option, and every error."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.config import ModelConfig, from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.models import UNet, as_model, count_parameters
from ddpm_jax.models.blocks import from_patches, time_embedding, to_patches
from ddpm_jax.training.parts import build_parts

pytestmark = pytest.mark.quick_to_compile

SMALL = dict(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_groups=4,
)
ONE_LEVEL = dict(channel_multipliers=(1,), attention_resolutions=())  # attention only in the middle


def small(image_shape=(8, 8, 3), **changes):
    return as_model(UNet(**{"out_channels": image_shape[-1], **SMALL, **changes}), image_shape)


def weights(model, seed=0):
    """Weights as after some training: none is zero, so every path has an effect."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = math.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 25
        value = rng.normal(size=leaf.shape) / np.sqrt(fan_in) + (path[-1].key == "scale")
        return jnp.asarray(value, leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def inputs(image_shape=(8, 8, 3), batch=4, seed=1):
    x = np.random.default_rng(seed).normal(size=(batch, *image_shape)).astype(np.float32)
    return jnp.asarray(x), jnp.arange(batch) * 37


def forward(model, params, x, t, cond=None, *, train=False, key=None):
    apply = jax.jit(model.apply, static_argnames="train")
    return apply(params, x, t, cond, train=train, key=key)


def number_of_parameters(
    side, channels, multipliers, attention, blocks=2, image_channels=3, scale_shift=False, classes=0
):
    """Count the weights and biases of Ho's network, layer by layer, from the widths in and out.

    The upsampling half mirrors the downsampling half, so it takes the skip widths in reverse order.
    """
    widths = [channels * m for m in multipliers]
    embedding = 4 * channels

    def conv(c_in, c_out):
        return 9 * c_in * c_out + c_out

    def dense(c_in, c_out):
        return (c_in + 1) * c_out

    def residual(c_in, c_out):
        norms = 2 * c_in + 2 * c_out
        time = dense(embedding, c_out * (2 if scale_shift else 1))
        shortcut = dense(c_in, c_out) if c_in != c_out else 0
        return norms + conv(c_in, c_out) + time + conv(c_out, c_out) + shortcut

    def attend(c, level):
        return 2 * c + 4 * dense(c, c) if side // 2**level in attention else 0

    total = dense(channels, embedding) + dense(embedding, embedding) + classes * embedding
    total += conv(image_channels, channels)
    here, skips = channels, [channels]
    for level, width in enumerate(widths):
        for _ in range(blocks):
            total += residual(here, width) + attend(width, level)
            here = width
            skips.append(here)
        if level < len(widths) - 1:
            total += conv(here, here)
            skips.append(here)
    total += 2 * residual(here, here) + 2 * here + 4 * dense(here, here)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            total += residual(here + skips.pop(), width) + attend(width, level)
            here = width
        if level > 0:
            total += conv(here, here)
    assert not skips
    return total + 2 * here + conv(here, image_channels)


def parameters_of(image_shape, **settings):
    model = as_model(UNet(out_channels=image_shape[-1], **settings), image_shape)
    return count_parameters(jax.eval_shape(model.init, jax.random.key(0)))


def test_the_defaults_are_the_network_of_cifar10():
    assert parameters_of((32, 32, 3)) == 35_746_307
    assert number_of_parameters(32, 128, (1, 2, 2, 2), (16,)) == 35_746_307


def test_the_network_of_256x256_has_114_million_parameters():
    multipliers = (1, 1, 2, 2, 4, 4)
    assert parameters_of((256, 256, 3), channel_multipliers=multipliers) == 113_673_219
    assert number_of_parameters(256, 128, multipliers, (16,)) == 113_673_219


@pytest.mark.parametrize(
    "changes, counted",
    [
        (dict(scale_shift=True), dict(scale_shift=True)),
        (dict(num_classes=10), dict(classes=11)),  # the null class has a row of its own
        (dict(num_res_blocks=2), dict(blocks=2)),
        (dict(num_heads=2), {}),  # heads share the same weights
        (dict(attention_resolutions=(8, 4)), dict(attention=(8, 4))),
        (dict(attention_resolutions=()), dict(attention=())),
    ],
)
def test_the_switches_change_the_number_of_parameters_as_counted(changes, counted):
    counted = dict(side=8, channels=8, multipliers=(1, 2), attention=(4,), blocks=1) | counted
    assert parameters_of((8, 8, 3), **{**SMALL, **changes}) == number_of_parameters(**counted)


def test_the_network_starts_as_the_zero_function():
    model = small(**ONE_LEVEL)
    params = jax.jit(model.init)(jax.random.key(0))
    blocks = [name for name in params if name.startswith(("down", "middle", "up"))]
    assert len(blocks) == 6
    for name in blocks:  # so every block starts as the identity or as its shortcut
        last = params[name]["out" if name.endswith("attention") else "conv_2"]
        assert not np.any(last["kernel"]) and not np.any(last["bias"])
    assert np.std(params["down_0_0"]["conv_1"]["kernel"]) > 0.05
    np.testing.assert_array_equal(forward(model, params, *inputs()), np.zeros((4, 8, 8, 3)))


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (12, 8, 4), (32, 64, 3)])
def test_any_channels_and_sides_that_can_be_halved(image_shape):
    attention = (image_shape[0] // 2,)
    model = small(image_shape, attention_resolutions=attention)
    params = weights(model)
    output = forward(model, params, *inputs(image_shape, batch=2))
    assert output.shape == (2, *image_shape) and output.dtype == jnp.float32
    assert np.isfinite(output).all() and np.std(output) > 1e-3


@pytest.mark.parametrize("size", [1, 2, 3])
def test_patches_are_cut_out_row_by_row_and_put_back(size):
    x = np.random.default_rng(0).normal(size=(2, 6, 12, 3))
    found = np.asarray(to_patches(jnp.asarray(x), size))
    assert found.shape == (2, 6 // size, 12 // size, size * size * 3)
    for row, column in np.ndindex(found.shape[1:3]):
        top, left = size * row, size * column
        patch = x[:, top : top + size, left : left + size]
        np.testing.assert_array_equal(found[:, row, column], patch.reshape(2, -1).astype("f4"))
    np.testing.assert_array_equal(from_patches(jnp.asarray(found), size), x.astype("f4"))


def test_a_network_on_patches_is_a_network_on_smaller_images_of_more_channels():
    ours = small((16, 16, 3), patch_size=2)
    plain = small((8, 8, 12))
    params, (x, t) = weights(ours), inputs((16, 16, 3))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, weights(plain))
    expected = from_patches(forward(plain, params, to_patches(x, 2), t), 2)
    np.testing.assert_allclose(forward(ours, params, x, t), expected, rtol=1e-5, atol=1e-5)


def test_the_output_of_an_image_depends_on_that_image_and_its_t_alone():
    model = small()
    params = weights(model)
    x, t = inputs()
    run = jax.jit(model.apply)
    together = run(params, x, t)
    other = run(params, x.at[0].set(5.0), t)
    np.testing.assert_allclose(other[1:], together[1:], atol=1e-5)
    assert np.abs(other[0] - together[0]).max() > 0.1
    other = run(params, x, t.at[0].set(1))
    np.testing.assert_allclose(other[1:], together[1:], atol=1e-5)
    assert np.abs(other[0] - together[0]).max() > 1e-3
    alone = run(params, x[1:2], t[1:2])
    np.testing.assert_allclose(alone, together[1:2], atol=1e-5)


def test_the_time_embedding_is_sines_and_cosines_of_geometric_frequencies():
    embedded = np.asarray(time_embedding(jnp.array([0, 3, 999]), 8), np.float64)
    frequencies = 10_000.0 ** -(np.arange(4) / 3)  # from 1 to 1/10000, ends included
    angles = np.array([0.0, 3.0, 999.0])[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(embedded, expected, atol=1e-4)  # float32 angles up to 999


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(resample="conv_symetric"), "unknown model.resample 'conv_symetric'; did you mean"),
        (dict(middle_attention="no"), "unknown model.middle_attention 'no'; .* none, normalised"),
        (dict(null_class=False), "null_class is False, but model.class_conditional=False does"),
        (dict(name="classifier", null_class=False), "but model.name=classifier does not use it"),
        (dict(name="classifier", middle_attention="none"), "model.name=classifier does not use it"),
        (dict(name="classifier", resample="pool"), "unknown model.resample 'pool'"),
        (dict(name="autoencoder", resample="residual"), "model.name=autoencoder does not use it"),
        (dict(name="autoencoder", head_dim=8), "but model.name=autoencoder does not use it"),
        (dict(name="autoencoder", norm_eps=1e-5), "but model.name=autoencoder does not use it"),
        (dict(name="autoencoder", freq_shift=0), "but model.name=autoencoder does not use it"),
    ],
)
def test_options_that_a_network_does_not_have_are_refused(changes, message):
    config = ModelConfig(**SMALL | changes)
    makers = {"unet": build.model, "classifier": build.classifier}
    with pytest.raises(UserError, match=message):
        if config.name == "autoencoder":
            build.autoencoder(config, (8, 8, 3))
        else:
            makers[config.name](config, (8, 8, 3), 2)


def test_without_a_null_class_no_label_may_be_dropped():
    config = from_dict({"model": SMALL | dict(class_conditional=True, null_class=False)})
    with pytest.raises(
        UserError, match=r"^loss.p_uncond is 0.1, but the network has no null class"
    ):
        build_parts(config, (8, 8, 3), 2)


def test_a_network_without_a_null_class_needs_labels():
    model = small(**ONE_LEVEL, num_classes=3, null_class=False)
    params, (x, t) = weights(model), inputs()
    assert params["label"]["embedding"].shape == (3, 32)
    output = forward(model, params, x, t, {"label": jnp.array([0, 2, -1, 1])})
    assert np.isnan(output[2]).all() and np.isfinite(output[jnp.array([0, 1, 3])]).all()
    with pytest.raises(
        UserError, match=r"^the network needs cond\['label'\], because it has no null"
    ):
        model.apply(params, x, t)


def test_labels_change_the_output_and_a_negative_one_is_the_null_class():
    model = small(**ONE_LEVEL, num_classes=3)
    params = weights(model)
    x = jnp.repeat(inputs(batch=1)[0], 6, axis=0)
    t = jnp.full(6, 17)
    labels = jnp.array([0, 1, 2, -1, -5, 3], jnp.int32)
    output = forward(model, params, x, t, {"label": labels})
    for i in range(4):  # three classes and the null class are four different functions
        for j in range(i):
            assert np.abs(output[i] - output[j]).max() > 1e-2
    np.testing.assert_allclose(output[4], output[3], atol=1e-6)
    np.testing.assert_allclose(forward(model, params, x, t)[0], output[3], atol=1e-6)


def test_labels_for_a_network_without_classes_are_refused():
    model = small()
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(UserError, match="'label'.* is given, but the network has no input for c"):
        jax.eval_shape(model.apply, params, *inputs(), {"label": jnp.zeros(4, jnp.int32)})


@pytest.mark.slow
def test_remat_changes_neither_parameters_nor_output_nor_gradients():
    x, t = inputs()
    results = []
    for remat in (False, True):
        model = small(**ONE_LEVEL, remat=remat, dropout=0.5)
        params = weights(model)

        def loss(params, model=model):
            out = model.apply(params, x, t, None, train=True, key=jax.random.key(3))
            return jnp.square(out).mean()

        results.append((params, *jax.jit(jax.value_and_grad(loss))(params)))
    (params, loss, gradient), (params_remat, loss_remat, gradient_remat) = results
    jax.tree.map(np.testing.assert_array_equal, params, params_remat)
    np.testing.assert_allclose(loss, loss_remat, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(a).max()) + 1e-7),
        gradient,
        gradient_remat,
    )


@pytest.mark.loose_promotion(reason="Linen's GroupNorm multiplies bfloat16 by float32")
def test_bfloat16_computes_what_float32_does_to_its_precision():
    x, t = inputs()
    cond = {"label": jnp.arange(4)}
    settings = dict(**ONE_LEVEL, num_classes=4, scale_shift=True)
    params = weights(small(**settings))
    full = forward(small(**settings), params, x, t, cond)
    half_model = small(**settings, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half_model.init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    half = forward(half_model, params, x, t, cond)
    assert half.dtype == jnp.float32
    error = np.sqrt(np.mean(np.square(half - full)) / np.mean(np.square(full)))
    assert 1e-5 < error < 0.05, error  # bfloat16 rounds to 8 bits; the error stays small


def test_dropout_is_on_in_training_alone_and_follows_the_key():
    model = small(**ONE_LEVEL, dropout=0.5)
    params = weights(model)
    x, t = inputs()
    first, again, other = (
        forward(model, params, x, t, train=True, key=jax.random.key(k)) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    quiet = forward(model, params, x, t)
    np.testing.assert_array_equal(quiet, forward(model, params, x, t, key=jax.random.key(1)))
    assert np.abs(first - quiet).max() > 1e-2
    off = forward(small(**ONE_LEVEL, dropout=0.0), params, x, t, train=True, key=jax.random.key(0))
    np.testing.assert_allclose(off, quiet, atol=1e-5)


@pytest.mark.parametrize(
    "settings, image_size, message",
    [
        (
            {},
            (28, 28),
            "images of 28x28 cannot be halved 3 times: both sides must be divisible by 8; resize "
            "them to 32x32 (data.image_size) or set fewer model.channel_multipliers",
        ),
        (
            {},
            (64, 36),
            "images of 64x36 cannot be halved 3 times: both sides must be divisible by 8; resize "
            "them to 64x40 (data.image_size) or set fewer model.channel_multipliers",
        ),
        (
            dict(patch_size=2, channel_multipliers=(1, 2, 2)),
            (28, 28),
            "images of 28x28 in patches of 2x2 cannot be halved 2 times: both sides must be "
            "divisible by 8; resize them to 32x32 (data.image_size) or set fewer "
            "model.channel_multipliers or a smaller model.patch_size",
        ),
        (
            dict(patch_size=2, attention_resolutions=(32,)),
            (32, 32),
            "model.attention_resolutions has 32, but images of height 32 only pass through the "
            "heights [16, 8, 4, 2]; choose among these",
        ),
        (
            dict(attention_resolutions=(16, 12)),
            (32, 32),
            "model.attention_resolutions has 12, but images of height 32 only pass through the "
            "heights [32, 16, 8, 4]; choose among these",
        ),
        (
            dict(channels=48),
            (32, 32),
            "the network has blocks of 48 channels (model.channels 48 x 1), which "
            "model.num_groups = 32 does not divide; change model.channels or model.num_groups",
        ),
        (  # the first convolution has model.channels, whatever the multipliers
            dict(channels=16, channel_multipliers=(2, 4)),
            (32, 32),
            "the network has blocks of 16 channels (model.channels 16 x 1), which "
            "model.num_groups = 32 does not divide; change model.channels or model.num_groups",
        ),
        (
            dict(num_heads=3),
            (32, 32),
            "the network has blocks of 128 channels (model.channels 128 x 1), which "
            "model.num_heads = 3 does not divide; change model.channels or model.num_heads",
        ),
        (
            dict(head_dim=8, num_heads=2),
            (32, 32),
            "model.num_heads is 2, but model.head_dim=8 sets the number of heads; leave "
            "model.num_heads at 1, or set model.head_dim=0",
        ),
        (  # only the middle attends
            dict(head_dim=96, channel_multipliers=(3, 2), attention_resolutions=()),
            (32, 32),
            "the network has attention with 256 channels (model.channels 128 x 2), which "
            "model.head_dim = 96 does not divide; change model.channels or model.head_dim",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_fix(settings, image_size, message):
    unet = UNet(**settings)
    with pytest.raises(UserError) as error:
        unet.check_sizes(image_size)
    assert str(error.value) == message
    model = as_model(unet, (*image_size, 3))
    with pytest.raises(UserError):  # the network itself refuses them too
        jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize(
    "settings",
    [
        dict(channels=12, channel_multipliers=(1, 3), num_heads=3, num_groups=4),
        dict(channels=8, channel_multipliers=(2, 1, 3), num_groups=8),
        dict(channels=8, channel_multipliers=(1,), num_groups=8),
        dict(channels=8, channel_multipliers=(1, 1), num_groups=8, patch_size=4),
        dict(channels=8, channel_multipliers=(1, 2), num_groups=8, head_dim=16),
        dict(channels=8, num_groups=8, head_dim=16, middle_attention="none"),
    ],
)
def test_what_check_sizes_lets_through_can_be_built(settings):
    unet = UNet(attention_resolutions=(), **settings)
    unet.check_sizes((8, 8))
    model = as_model(unet, (8, 8, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.eval_shape(model.apply, params, *inputs()).shape == (4, 8, 8, 3)
