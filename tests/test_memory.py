"""The memory of a step is known before it is allocated; the error says what to change."""

import math

import jax
import jax.numpy as jnp
import pytest
from tiny import small

from ddpm_jax import config as config_lib
from ddpm_jax.errors import UserError
from ddpm_jax.models import UNet
from ddpm_jax.runtime import memory
from ddpm_jax.runtime.memory import GIB, Memory

pytestmark = [
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts"),
]

SHAPE = (16, 16, 3)
TINY = small(
    process__num_timesteps=4,
    model__dropout=0.1,
    optim={},
    train=dict(batch_size=16, num_samples=2, log_every=2, checkpoint_every=2),
)


def kept(**settings) -> int:
    """Return the bytes kept from the forward to the backward pass, including the parameters."""
    model = UNet(channels=16, channel_multipliers=(1, 1), num_groups=4, **settings)
    x, t = jax.ShapeDtypeStruct((8, *SHAPE), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), x, t)

    def forward(params, x, t):
        rngs = {"dropout": jax.random.key(0)}
        return jax.vjp(lambda p: model.apply(p, x, t, train=True, rngs=rngs), params)[1]

    residuals = jax.tree.leaves(jax.eval_shape(forward, params, x, t))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in residuals)


@pytest.mark.slow
def test_recomputation_keeps_little_and_keeping_the_convolutions_some_more():
    everything = kept()
    convolutions = kept(remat=True, remat_keep="convolutions")
    nothing = kept(remat=True)
    print([n / 2**20 for n in (everything, convolutions, nothing)])
    assert nothing < 0.4 * everything
    assert 1.2 * nothing < convolutions < 0.7 * everything


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match="unknown model.remat_keep 'convolution'; did you mean"):
        kept(remat=True, remat_keep="convolution")


@pytest.mark.parametrize(
    ("backend", "state", "working", "num_devices", "model", "said"),
    [
        ("cpu", 9, 4, 8, {}, ["mesh.fsdp=8"]),
        ("cpu", 1, 20, 1, {}, ["train.accumulate=4"]),  # 3 does not divide 128
        ("gpu", 1, 20, 1, {}, ["model.dtype=bfloat16", "model.remat=True", "train.accumulate=4"]),
        ("gpu", 1, 20, 1, {"remat": True, "dtype": "bfloat16"}, ["train.accumulate=4"]),
        ("cpu", 8, 18, 8, {}, ["mesh.fsdp=8", "train.accumulate=2"]),
        ("cpu", 11, 1, 1, {}, ["fewer model.channels, or more devices"]),
        ("gpu", 1, 8000, 1, {"remat": True, "dtype": "bfloat16"}, ["fewer model.channels"]),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    monkeypatch, backend, state, working, num_devices, model, said
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = config_lib.from_dict({"model": model})
    with pytest.raises(UserError) as error:
        memory.check_fits(Memory(state * GIB, working * GIB), 10 * GIB, config, num_devices)
    message = str(error.value)
    assert f"it needs {state + working}.00 GiB per device, of 10.00 GiB" in message
    for part in said:
        assert part in message
    assert message.count("=") == sum(part.count("=") for part in said), message


def test_what_fits_is_not_refused():
    memory.check_fits(Memory(5 * GIB, 5 * GIB), 10 * GIB, config_lib.from_dict({}), 1)
    memory.check_fits(None, 10 * GIB, config_lib.from_dict({}), 1)
    assert 2**28 < memory.capacity() < 2**45
