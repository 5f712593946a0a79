"""Plans: what a compiled program does, and what the main says about a machine."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from mains import run
from tiny import FLAGS, make_config

from ddpm_jax import data
from ddpm_jax.errors import UserError
from ddpm_jax.models import UNet, convolution
from ddpm_jax.runtime import compiler, memory, program, targets
from ddpm_jax.runtime.platform import compiled_for, platform
from ddpm_jax.training import plan as plans
from ddpm_jax.training.plan import Call, Facts
from ddpm_jax.training.programs import steps_per_call

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]
DIGITS = Facts((8, 8, 1), 10)


def facts_of(function, *arguments, **options):
    traced = jax.jit(function, **options).trace(*arguments)
    return program.facts(traced.lower().compile(), 0.0, traced)


def test_a_loop_counts_as_often_as_it_runs():
    x = jnp.ones((64, 64))

    def product(x):
        return jnp.tanh(x @ x)

    def seven(x):
        return jax.lax.scan(lambda carry, _: (product(carry), None), x, length=7)[0]

    once, often = facts_of(product, x), facts_of(seven, x)
    assert once.flops == 2 * 64**3
    assert often.flops == 7 * once.flops
    assert often.kernels >= 7 * once.kernels > 0
    assert once.bytes >= 2 * x.nbytes and often.bytes >= 7 * once.bytes
    assert once.products == often.products == {"f32": 1}


def test_the_limit_of_a_loop_is_read_from_its_condition():
    """As a TPU's programs have it: without a count of the loop's trips."""
    text = """HloModule x
%condition.1 (arg: (s32[], f32[8])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(12)
  %arg = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  ROOT %lt.1 = pred[] compare(%i, %constant.3), direction=LT
}
%body.1 (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg.2 = (s32[], f32[8]) parameter(0)
  %x = f32[8] get-tuple-element(%arg.2), index=1
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[8]) tuple(%i, %fusion.1)
}
ENTRY %main.1 (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  %start = bf16[100]{0} all-reduce-start(%p), to_apply=%add
  %done = bf16[100]{0} all-reduce-done(%start)
  %while.1 = (s32[], f32[8]) while(%t), condition=%condition.1, body=%body.1
  ROOT %out = f32[8] get-tuple-element(%while.1), index=1
}
"""
    assert list(program.operations(text)) == [("all-reduce", 200, 32, 1), ("fusion", 32, 32, 12)]


PART = """%part.N (p: bf16[16,8]) -> bf16[64,8] {
  %p = bf16[16,8] parameter(0)
  ROOT %all-gather.N = bf16[64,8] all-gather(%p), frontend_attributes={chain_id="0"}
}
"""
SCATTER = """%all-reduce-scatter.N (q: bf16[64,8]) -> bf16[16,8] {
  %q = bf16[64,8] parameter(0)
  %sum.N = bf16[64,8] all-reduce(%q), channel_id=1, to_apply=%add
  ROOT %slice.N = bf16[16,8] dynamic-slice(%sum.N)
}
"""
MAIN = """ENTRY %main (p: bf16[16,8]) -> bf16[16,8] {
  %p = bf16[16,8] parameter(0)
  %async-collective-start = bf16[64,8] fusion(%p), kind=kCustom, calls=%part.0
  %fusion.1 = bf16[64,8] fusion(%p), kind=kOutput, calls=%part.1
  %async-collective-done = bf16[64,8] fusion(%p), kind=kCustom, calls=%part.2
  %fusion.2 = bf16[16,8] fusion(%fusion.1), kind=kCustom, calls=%all-reduce-scatter.0
  %fusion.3 = bf16[16,8] fusion(%fusion.1), kind=kCustom, calls=%all-reduce-scatter.1
  %short = bf16[4]{0} fusion(%p), kind=kLoop, calls=%other
  %start = ((bf16[4]{0}), (bf16[16]{0})) all-gather-start(%short), dimensions={0}
  ROOT %scatter = bf16[16,8] reduce-scatter(%fusion.1), to_apply=%add
}
"""


def test_messages_inside_of_fusions_are_counted_once():
    """A TPU's program: a gather in three parts beside other work, and two scatters of sums."""
    parts = [PART.replace("N", str(i)) for i in range(3)]
    parts += [SCATTER.replace("N", str(i)) for i in range(2)]
    text, size = "".join(parts) + MAIN, 64 * 8 * 2
    assert program.messages(text) == {
        "all-gather": (2, size + 16 * 2),
        "reduce-scatter": (3, 3 * size),
    }
    kinds = [kind for kind, *_ in program.operations(text)]
    assert kinds == [*6 * ["fusion"], "all-gather", "reduce-scatter"]


def test_messages_between_devices_are_counted():
    devices = jax.devices()
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,), devices=devices)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((16, 50), jnp.float32, sharding=rows)
    found = facts_of(lambda x: x.sum(axis=0), x, out_shardings=whole)
    assert found.messages == {"all-reduce": (1, 200)}
    assert found.message_bytes == 200 and found.host == 0
    assert facts_of(lambda x: x + 1, x, out_shardings=rows).messages == {}


def test_choices_follow_the_platform_that_is_planned_for():
    config = make_config()
    assert platform() == "cpu" and steps_per_call(config) == 1
    assert convolution.convolution(True) is not None
    options = compiler.options(compiler.NETWORK)
    with compiled_for("tpu"):
        assert platform() == "tpu" and steps_per_call(config) == 10
        assert convolution.convolution(True) is None
        assert compiler.options(compiler.NETWORK) == {}
    assert platform() == "cpu" and compiler.options(compiler.NETWORK) == options


def target_of(count, gib=1.0):
    return targets.Target(f"cpu:{count}", "cpu", jax.devices()[:count], None, int(gib * 2**30))


@pytest.mark.slow
def test_a_plan_is_that_of_the_run_itself():
    config = make_config(train__batch_size=16)
    plan = plans.make_plan(config, target_of(2), DIGITS)
    assert plan.problem == "" and plan.mesh == {"data": 2, "fsdp": 1}
    assert plan.train and plan.sampler
    assert plan.train.images == 16 and plan.train.steps == 1
    # the gradient: 4 bytes of each parameter, in one or several sums over the devices
    count, size = plan.train.program.messages["all-reduce"]
    assert count >= 1 and 4 * plan.parameters <= size < 4 * plan.parameters + 2000
    held = plan.train.program.memory
    assert held and held.state == pytest.approx(16 * plan.parameters + 8 * 65, rel=0.02)
    assert plan.train.program.donated >= 4 * 4 * plan.parameters  # the state is overwritten
    assert plan.sampler.steps == 8 and plan.sampler.images == 256
    assert plan.sampler.program.messages == {}  # images are independent
    one = plans.make_plan(config, target_of(1), DIGITS, sampler=False)
    assert one.sampler is None and one.train and one.train.program.messages == {}
    assert one.train.program.flops == 2 * plan.train.program.flops


def test_what_does_not_fit_is_said_with_what_would():
    plan = plans.make_plan(make_config(), target_of(1, 1e-5), DIGITS)
    assert "does not fit into memory" in plan.problem and "fewer model.channels" in plan.problem
    assert plan.train and plan.sampler  # what they do is known, though


@pytest.mark.parametrize("start", [1, 7, 64, 5000])
@pytest.mark.parametrize("limit", [0, 1, 2, 63, 64, 1000])
def test_the_largest_number_that_fits_is_bracketed(start, limit):
    asked = []

    def fits(n):
        asked.append(n)
        return n <= limit

    found = plans.largest(fits, start)
    assert found <= limit < found + max(1, found // 8) + 1
    assert len(asked) == len(set(asked)) <= 30 and min(asked) >= 1


@pytest.mark.slow
def test_the_largest_batch_is_a_multiple_that_the_devices_share():
    config, lines = make_config(train__batch_size=8, train__accumulate=2), []
    best = plans.largest_batch(config, target_of(4, 1e-5), DIGITS, lines.append)
    assert best == 0 and lines == ["batch 8: does not fit"]  # 4 devices, 2 micro-batches


def test_estimates_are_bounds_from_the_rates():
    device = targets.Device("x", 1, {"float32": 1e12}, 1e9, 1e8)
    p = program.Program(None, 6e11, 9e8, 1, {"all-reduce": (1, 10**8)}, {}, 0, 0, 0.0)
    least, most = plans.seconds_of(Call(1, 1, p), device, "float32")
    assert least == pytest.approx(max(0.6 / plans.MOST.compute, 0.9 / plans.MOST.bandwidth))
    assert most == pytest.approx(
        max(0.6 / plans.LEAST.compute, 0.9 / plans.LEAST.bandwidth) + 1 / plans.LINK
    )


@pytest.mark.slow
def test_the_main_plans_and_writes_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "prepare", lambda names: None)  # JAX has its devices already
    path = tmp_path / "plan.json"
    config = ["--config=experiments/digits.py", *FLAGS, "--config.train.batch_size=16"]
    done = run("plan", *config, "--target=cpu:4", f"--json={path}")
    assert done.returncode == 0, done
    assert "cpu:4: 4 x CPU device" in done.stdout and "  fits  " in done.stdout
    assert f"numbers: {path}" in done.stdout
    (found,) = json.loads(path.read_text())
    assert found["devices"] == 4 and found["train"]["images"] == 16
    assert "all-reduce" in found["train"]["messages"] and found["sampler"]["messages"] == {}
    assert f"{found['parameters']:,} parameters" in done.stdout


def test_a_compiler_that_counts_nothing_is_made_up_for(monkeypatch):
    """As for a GPU that is not here: the bytes of the operands and results of all kernels."""
    x = jnp.ones((64, 64))

    def three(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=3)[0]

    counted = facts_of(three, x)
    monkeypatch.setattr(jax.stages.Compiled, "cost_analysis", lambda self: {})
    found = facts_of(three, x)
    assert 3 * 2 * x.nbytes <= found.bytes < 10 * 3 * 3 * x.nbytes
    assert found._replace(bytes=0) == counted._replace(bytes=0)


def test_operations_are_those_that_xla_counts():
    """The forward and backward pass of a network with strides, upsampling and attention."""
    network = UNet(channels=16, channel_multipliers=(1, 2), attention_resolutions=(4,),
                   num_groups=8, num_res_blocks=1, out_channels=1)  # fmt: skip
    x, t = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
    params = jax.eval_shape(network.init, jax.random.key(0), x, t)

    def loss(params):
        return network.apply(params, x, t).sum()

    traced = jax.jit(jax.grad(loss)).trace(params)
    counted = traced.lower().cost_analysis()["flops"]
    # XLA leaves out the products with the border's zeros, and counts what is not a product too
    assert 0.85 * counted < program.flops(traced.jaxpr) < 1.25 * counted


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("v9e:2x2", "'v9e:2x2' is not a machine; it must be a TPU such as v5e:2x4"),
        ("h100", "'h100' must say how many devices: h100:8"),
        ("h100:0", "must say how many devices"),
        ("v5e:4", "must say how many devices: v5e:2x4"),
        ("v5p:2x2", "must say how many devices: v5p:2x2x1"),
        ("cpu:two", "must say how many devices"),
    ],
)
def test_a_wrong_target_is_refused_before_anything_else(name, part):
    done = run("plan", "--config=experiments/digits.py", f"--target={name}")
    assert done.returncode == 2 and part in done.stderr and done.stderr.count("\n") == 1


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(targets, "prepare", lambda names: None)
    config = ["--config=experiments/digits.py", *FLAGS, "--config.train.batch_size=10"]
    done = run("plan", *config, "--target=cpu:4")
    assert done.returncode == 2 and "is 10, which 4 devices cannot share" in done.stderr


def test_a_missing_compiler_is_named(monkeypatch):
    from jax.experimental import topologies

    def missing(**options):
        raise RuntimeError("Unknown backend tpu")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r"needs the compiler of this device.*ddpm_jax\[tpu\]"):
        targets.find("v5e:2x4")
    with pytest.raises(UserError, match=r"ddpm_jax\[gpu\]"):
        targets.find("h100:8")


def test_here_is_the_machine_of_this_process(monkeypatch):
    here = targets.find("here")
    assert here.platform == "cpu" and here.devices == jax.devices() and here.device is None

    class Chip:
        device_kind = "TPU v5 lite"  # as Colab's

    monkeypatch.setattr(jax, "devices", lambda: [Chip()])
    assert targets.here().device is targets.TPUS["v5e"]
    assert set(targets.KINDS.values()) <= {*targets.TPUS, *targets.CARDS}


def test_here_is_planned_for_alone():
    targets.prepare(["here"])
    with pytest.raises(UserError, match="'here' must be the only target, found cpu:2,here"):
        targets.prepare(["cpu:2", "here"])


def test_the_shape_of_images_that_are_not_here(tmp_path):
    def of(**fields):
        return data.declared(make_config(data=fields).data)

    empty = str(tmp_path)
    assert of(name="cifar10", data_dir=empty) == ((32, 32, 3), 10)
    assert of(name="fashion_mnist", data_dir=empty, image_size=32) == ((32, 32, 1), 10)
    assert of(name="folder", data_dir=empty, image_size=64, channels=3) == ((64, 64, 3), 0)
    assert of(name="lsun/church", data_dir=empty, image_size=64, channels=3) == ((64, 64, 3), 0)
    with pytest.raises(UserError, match="are not here.*set data.image_size and data.channels"):
        of(name="folder", data_dir=empty)
    images = np.zeros((6, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(6) % 3)
    assert of(name="array", path=str(tmp_path / "x.npz")) == ((4, 4, 1), 3)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.npz"]  # nothing was prepared


def test_the_description_of_a_card_names_the_makers_numbers():
    text = targets.describe(targets.CARDS["h100"])
    for line in ("core_count: 132", "memory_bandwidth: 3352000000000", "major: 9 minor: 0"):
        assert line in text


def test_memory_is_asked_of_the_target(monkeypatch):
    monkeypatch.setattr(memory, "capacity", lambda: 1)
    plan = plans.make_plan(make_config(), target_of(1), DIGITS, sampler=False)
    assert plan.problem == ""
