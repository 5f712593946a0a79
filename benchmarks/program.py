"""What the committed configs' programs do on an absent GPU or TPU: kernels, bytes, operations.

    python -m benchmarks.program --target=h100:1
    python -m benchmarks.program --target=h100:1 --configs=cifar10,cifar10_cosine_v --steps=10

It compiles the train step and the sampler of each config in bfloat16 (`experiments.plan`), and
prints one row for each program. All numbers are for one step on one device. The counts are the same
at every compilation, so a change of the code can be judged without the device and without a quiet
machine: run this script before and after the change. The two times are no estimates of the real
time: they are the bytes at the full bandwidth, and the operations at the full rate.
"""

import importlib

from absl import flags
from rich.table import Table

from benchmarks import fashion
from ddpm_jax import data
from ddpm_jax.config import from_dict
from ddpm_jax.runtime import targets
from ddpm_jax.runtime.memory import GIB
from ddpm_jax.training import plan as plans
from ddpm_jax.training.plan import Call, Facts
from experiments import command, tables

TARGET = flags.DEFINE_string("target", "h100:1", "The machine, as in experiments.plan.")
CONFIGS = flags.DEFINE_list("configs", ["cifar10"], "Names of files in experiments/.")
STEPS = flags.DEFINE_integer("steps", 1, "Train steps of a call.", lower_bound=1)

DTYPE = "bfloat16"


def prepare() -> None:
    targets.prepare([TARGET.value])


def main() -> None:
    target = targets.find(TARGET.value)
    assert target.device is not None  # `here` and cpu:N have no known rates
    table = Table("program", box=None)
    for title in ("kernels", "GiB", "ms", "TFLOP", "ms", "working GiB", "donated GiB"):
        table.add_column(title, justify="right")
    console = tables.console()
    for name in CONFIGS.value:
        config = from_dict(importlib.import_module(f"experiments.{name}").get_config().to_dict())
        config = fashion.changed(
            config, {"model.dtype": DTYPE, "train.steps_per_call": STEPS.value}
        )
        shape, classes = data.declared(config.data)
        with console.status(f"{name}: compiling"):
            plan = plans.make_plan(config, target, Facts(shape, classes))
        for what, call in (("train step", plan.train), ("sampler's step", plan.sampler)):
            if call is not None:
                title = f"{name}: {what}, {call.images // (call.steps if what[0] == 't' else 1)}"
                table.add_row(f"{title} images", *_numbers(call, target.device))
    console.print(table)
    print(f"{target.device.name}, {DTYPE}, {STEPS.value} train steps a call; compiled, not run")


def _numbers(call: Call, device: targets.Device) -> list[str]:
    p, n = call.program, call.steps
    memory, moved, flops = p.memory, p.bytes / n, p.flops / n
    return [
        f"{p.kernels / n:,.0f}",
        f"{moved / GIB:.2f}",
        f"{1e3 * moved / device.bandwidth:.2f}",
        f"{flops / 1e12:.2f}",
        f"{1e3 * flops / device.flops[DTYPE]:.2f}",
        "--" if memory is None else f"{memory.working / GIB:.2f}",
        f"{p.donated / GIB:.2f}",
    ]


if __name__ == "__main__":
    command.run(main, before=prepare)
