"""The gradient of GroupNorm and swish for GPUs, computed on the CPU here, against JAX's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ddpm_jax.models import UNet, as_model
from ddpm_jax.models.normalisation import norm_swish, with_own_gradient
from ddpm_jax.runtime.platform import compiled_for

GROUPS, EPSILON = 4, 1e-5
# The first stage of a sum adds one row of 6 pixels, 8 rows of 32, and 5 of the 10 rows of 40.
SHAPES = [(3, 4, 6, 8), (2, 16, 32, 8), (2, 10, 40, 8)]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def arrays(request):
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, request.param)
    scale, bias = (rng.normal(size=(1, 1, 1, request.param[-1])) for _ in range(2))
    return [jnp.asarray(value, jnp.float32) for value in (x, scale, bias)]


def own(x, scale, bias, dtype=jnp.float32):
    return with_own_gradient(GROUPS, EPSILON, dtype, x, scale, bias)


def plain(x, scale, bias, dtype=jnp.float32):
    norm = nn.GroupNorm(GROUPS, epsilon=EPSILON, dtype=dtype)
    params = {"scale": scale.ravel(), "bias": bias.ravel()}
    return nn.swish(norm.apply({"params": params}, x))


def gradients(function, arrays, dy, dtype=jnp.float32):
    x, *rest = arrays

    def weighted(x, *rest):
        return (function(x.astype(dtype), *rest, dtype).astype(jnp.float32) * dy).sum()

    return jax.jit(jax.grad(weighted, argnums=(0, 1, 2)))(x, *rest)


def test_the_value_and_the_gradient_are_those_of_jax(arrays):
    np.testing.assert_allclose(own(*arrays), plain(*arrays), atol=1e-5)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)
    for found, expected in zip(
        gradients(own, arrays, dy), gradients(plain, arrays, dy), strict=True
    ):
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    check_grads(own, arrays, order=1, modes=["rev"], rtol=2e-2, atol=2e-2)  # finite differences


@pytest.mark.parametrize(
    ("shape", "parts"),
    [(SHAPES[0], 4), (SHAPES[1], 2), (SHAPES[2], 2), ((1, 28, 28, 8), 28), ((1, 32, 31, 8), 32)],
)
def test_a_block_of_threads_adds_several_rows_unless_a_thread_adds_one(shape, parts):
    batch, channels = shape[0], shape[-1]
    vectors = [jnp.ones((1, 1, 1, channels))] * 2
    traced = str(jax.make_jaxpr(own)(jnp.ones(shape), *vectors))
    assert f"f32[{batch},{parts},{channels}] = optimization_barrier" in traced


def test_in_bfloat16_the_gradient_is_no_worse(arrays):
    """The error against float32, of the same rounded x."""
    x = arrays[0].astype(jnp.bfloat16).astype(jnp.float32)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)
    exact = gradients(plain, [x, *arrays[1:]], dy)

    def error(function):
        with jax.numpy_dtype_promotion("standard"):  # Flax's GroupNorm needs it
            found = gradients(function, [x, *arrays[1:]], dy, jnp.bfloat16)
        return [float(jnp.abs(f - e).max()) for f, e in zip(found, exact, strict=True)]

    for mine, others in zip(error(own), error(plain), strict=True):
        assert mine <= 1.1 * others


@pytest.mark.slow
def test_a_train_step_for_a_gpu_has_the_same_parameters_loss_and_gradient():
    shape = (4, 4, 1)
    sizes = dict(num_res_blocks=1, attention_resolutions=(), middle_attention="none")
    unet = UNet(1, 8, (1,), num_groups=4, **sizes)  # pyright: ignore[reportArgumentType]
    model = as_model(unet, shape)
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jnp.sin(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(
            leaf.shape
        ),
        model.init(jax.random.key(0)),
    )  # fmt: skip
    x, t = jax.random.normal(jax.random.key(1), (2, *shape)), jnp.array([3, 700])

    def loss(params):
        out = model.apply(params, x, t, None, train=True, key=jax.random.key(2))
        return jnp.square(out).mean()

    expected = jax.jit(jax.value_and_grad(loss))(params)
    with compiled_for("gpu"):
        assert jax.tree.structure(model.init(jax.random.key(0))) == jax.tree.structure(params)
        text = str(jax.make_jaxpr(jax.grad(loss))(params))
        found = jax.jit(jax.value_and_grad(lambda params: loss(params)))(params)
    assert text.count("optimization_barrier") > 10  # its own gradient was used
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=2e-4, atol=1e-5), found, expected
    )


class Net(nn.Module):
    """One norm with swish."""

    train: bool

    @nn.compact
    def __call__(self, x):
        norm = dict(num_groups=2, epsilon=1e-6, dtype=jnp.float32, name="norm")
        return norm_swish(x, self.train, **norm)


def test_frames_share_their_statistics():
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 4, 4))
    params = Net(False).init(jax.random.key(0), x)
    expected = Net(False).apply(params, x)
    with compiled_for("gpu"):
        found = Net(True).apply(params, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_training_and_on_a_cpu_nothing_changes():
    x = jnp.ones((1, 2, 2, 4))
    for platform, train in (("gpu", False), ("cpu", True), ("tpu", True)):
        with compiled_for(platform):
            net = Net(train)
            params = net.init(jax.random.key(0), x)
            assert "custom_vjp" not in str(jax.make_jaxpr(net.apply)(params, x))
