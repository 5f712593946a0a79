"""Fully sharded states: the steps are the same, and each device holds only its shard."""

import functools

import jax
import numpy as np
import pytest
from tiny import small

from ddpm_jax import build
from ddpm_jax import config as config_lib
from ddpm_jax.config import ModelConfig
from ddpm_jax.errors import UserError
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.runtime import devices, memory, sharding
from ddpm_jax.training.parts import build_parts
from ddpm_jax.training.programs import Programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.quick_to_compile,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts"),
]
SHAPE = (8, 8, 1)
CONFIG = small(
    model__channels=16,
    model__attention_resolutions=(8,),
    model__dropout=0.1,
    model__class_conditional=True,
    optim=dict(warmup_steps=2, learning_rate=1e-3),
    train=dict(batch_size=16),
    eval={},
)


@functools.cache
def programs(data: int, fsdp: int) -> Programs:
    config = config_lib.from_dict(CONFIG | {"mesh": {"data": data, "fsdp": fsdp}})
    mesh = devices.make_mesh(config)
    parts = build_parts(config, SHAPE, 10, mesh=mesh)
    return Programs(config, parts, mesh, jax.ShapeDtypeStruct(SHAPE, np.uint8), {})


def batch(mesh, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (16, *SHAPE), np.uint8)
    found = {"image": image, "label": rng.integers(0, 10, 16, np.int32)}
    return jax.device_put(found, sharding.over_batch(mesh))


def trained(data: int, fsdp: int, num_steps: int = 3):
    """Return the state after some steps, and the losses and norms of the steps."""
    run = programs(data, fsdp)
    mesh = run.state.step.sharding.mesh
    state, rows = run.init(), []
    for seed in range(num_steps):
        state, metrics = run.step(None)(state, batch(mesh, seed))
        rows.append([metrics["loss"], metrics["grad_norm"], metrics["param_norm"]])
    return state, np.asarray(rows)


@pytest.mark.parametrize(("data", "fsdp"), [(2, 4), (1, 8)])
def test_a_cut_state_takes_the_steps_of_a_whole_one(data, fsdp):
    expected, expected_rows = trained(1, 1)
    state, rows = trained(data, fsdp)
    np.testing.assert_allclose(rows, expected_rows, rtol=1e-5)
    for name in ("params", "ema_params"):
        for a, b in zip(
            jax.tree.leaves(getattr(state, name)),
            jax.tree.leaves(getattr(expected, name)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


def test_each_device_holds_its_part_of_parameters_average_and_moments():
    state, _ = trained(1, 8, num_steps=1)
    moments = state.opt_state.inner_state[-1][0]
    for tree in (state.params, state.ema_params, moments.mu, moments.nu):
        kernel = tree["middle_0"]["conv_1"]["kernel"]
        assert kernel.shape == (3, 3, 16, 16)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 16, 2)}
        assert tree["middle_0_attention"]["query"]["kernel"].sharding.spec[0] == "fsdp"
        assert tree["conv_out"]["kernel"].addressable_shards[0].data.shape == (3, 3, 2, 1)
        assert tree["label"]["embedding"].addressable_shards[0].data.shape == (11, 8)
        assert tree["conv_in"]["bias"].sharding.is_fully_replicated
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert held < 0.2 * whole
    # The compiler's memory plan agrees.
    one, eight = (memory.of_step(programs(1, n).step(None)) for n in (1, 8))
    assert eight.state < 0.2 * one.state


@pytest.mark.parametrize("shape", [(32, 32, 3), (256, 256, 3)])
def test_the_rules_cut_nearly_all_of_the_real_networks(shape):
    multipliers = (1, 2, 2, 2) if shape[0] == 32 else (1, 1, 2, 2, 4, 4)
    model = build.model(ModelConfig(channel_multipliers=multipliers), shape, 0)
    params = jax.eval_shape(model.init, jax.random.key(0))
    places = sharding.by_rules(programs(1, 8).state.step.sharding.mesh, params)
    sizes = [
        (leaf.size, place.is_fully_replicated)
        for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(places), strict=True)
    ]
    assert sum(size for size, whole in sizes if whole) < 0.002 * sum(size for size, _ in sizes)


def test_a_checkpoint_of_one_mesh_is_read_on_another(tmp_path):
    state, _ = trained(1, 8)
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_every=0)
    checkpoints.save(state, wait=True)
    for data, fsdp in ((8, 1), (1, 1), (2, 4)):
        read = checkpoints.restore_latest(programs(data, fsdp).state)
        for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        expected = jax.tree.map(lambda leaf: leaf.sharding, programs(data, fsdp).state)
        assert jax.tree.map(lambda leaf: leaf.sharding, read) == expected
    checkpoints.close()


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ({"fsdp": 3}, "mesh.fsdp is 3, but must divide the number of devices, 8"),
        ({"fsdp": 0}, "mesh.fsdp must be at least 1, found 0"),
        ({"data": 4, "fsdp": 4}, "mesh.data 4 x mesh.fsdp 4 is 16, but there are 8 devices"),
        ({"data": 0}, "mesh.data 0"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(mesh, said):
    with pytest.raises(UserError, match=said):
        devices.make_mesh(config_lib.from_dict({"mesh": mesh}))


def test_a_step_compiles_once_and_takes_no_other_shapes():
    run = programs(1, 1)
    step = run.step(None)
    assert run.step(None) is step
    wrong = {"image": np.zeros((8, *SHAPE), np.uint8), "label": np.zeros(8, np.int32)}
    with pytest.raises(TypeError):
        step(run.init(), wrong)
