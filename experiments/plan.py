"""Plan a run on a machine that you do not have: does it fit, how fast is it, how long will it take?

    python -m experiments.plan --config=experiments/cifar10.py --target=v5e:1x1
    python -m experiments.plan --config=experiments/cifar10.py --target=v3:2x2,h100:8,cpu:1

XLA compiles the run's own train step and sampler for each target, on this machine's CPU. Nothing is
downloaded, trained or written. A compilation can take minutes. The memory, operations, bytes,
kernels and messages are those of the compiled programs. The times are estimates from the rates that
the makers state; the last lines name the assumptions.

  --target     TPUs by the shape of their chips (v2, v3, v5e, v5p, v6e): pip install -e '.[tpu]'
               GPUs by their number (a100, h100, h200, l4, rtx4090): pip install -e '.[gpu]'
               this CPU as several devices: cpu:8
               the devices of this machine: here
  --largest_batch
               also look for the largest train.batch_size that fits; each try compiles once
  --nosampler  leave the sampler out
  --json=FILE  also write all numbers to a file

Each field of the config is a flag: --config.train.batch_size=256 --config.mesh.fsdp=8.
"""

import pathlib
from typing import Any

import jax
from absl import flags

from ddpm_jax import data
from ddpm_jax.config import Config, from_dict
from ddpm_jax.runtime import memory, targets
from ddpm_jax.runtime.files import absolute, replacing, to_json
from ddpm_jax.training import plan as plans
from ddpm_jax.training.plan import LEAST, MOST, Call, Facts, Plan
from experiments import command, config_flag, outputs, tables

CONFIG = config_flag.define("The experiment's config file.")
TARGET = flags.DEFINE_list(
    "target", None, "The machines, such as v5e:2x4 or h100:8.", required=True
)
LARGEST = flags.DEFINE_bool("largest_batch", False, "Look for the largest batch that fits.")
SAMPLER = flags.DEFINE_bool("sampler", True, "Also compile the sampler.")
NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Classes of the data, if the images are not here.", lower_bound=0
)
JSON = flags.DEFINE_string("json", None, "Also write all numbers to this file.")

console = tables.console()


def prepare() -> None:
    targets.prepare(TARGET.value)


def main() -> None:
    config = from_dict(CONFIG.value)
    found = [targets.find(name) for name in TARGET.value]  # a wrong name before any compilation
    path = None if JSON.value is None else absolute(JSON.value)
    if path is not None:
        outputs.check_writable(path.parent, None, (path.name,))
    shape, num_classes = data.declared(config.data)
    facts = Facts(shape, num_classes if NUM_CLASSES.value is None else NUM_CLASSES.value)
    rows = []
    for target in found:
        with console.status(f"{target.name}: compiling"):
            plan = plans.make_plan(config, target, facts, sampler=SAMPLER.value)
        lines = describe(plan, config)
        console.print("\n".join(lines))
        rows.append(as_json(plan, config))
        if LARGEST.value:
            with console.status(f"{target.name}: compiling larger batches"):
                best = plans.largest_batch(config, target, facts, console.print)
            console.print(f"  largest batch   {best or 'none fits'}")
            rows[-1]["largest_batch"] = best
    if any(target.device for target in found):
        console.print(assumptions())
    if path is not None:
        write(path, rows)
        console.print(f"numbers: {path}")


def describe(plan: Plan, config: Config) -> list[str]:
    """Return the lines of a plan."""
    target, mesh = plan.target, plan.mesh
    kind = target.devices[0].device_kind
    name = target.device.name if target.device else {"cpu": "CPU device"}.get(kind, kind)
    count = len(target.devices)
    dtype = config.model.dtype
    lines = [
        f"{target.name}: {count} x {name} of {target.memory / memory.GIB:.1f} GiB; "
        f"{plan.parameters:,} parameters, batch {config.train.batch_size}, {dtype}, "
        f"mesh data {mesh['data']} x fsdp {mesh['fsdp']}"
    ]
    if plan.problem:
        lines.append(f"  DOES NOT FIT    {plan.problem}")
    if plan.train is None:
        return lines
    if not plan.problem:
        text = memory.describe(plan.train.program.memory, target.memory)
        lines.append(f"  fits            {text}")
    fused = f", {plan.train.steps} steps a call" if plan.train.steps > 1 else ""
    lines += work("train step", plan.train, fused)
    if target.device and not plan.problem:
        low, high = plans.seconds_of(plan.train, target.device, dtype)
        images = plan.train.images
        calls = config.train.num_steps / plan.train.steps
        lines.append(
            f"    estimate      {images / high:,.0f} to {images / low:,.0f} images/s; "
            f"{config.train.num_steps:,} steps take {_time(calls * low)} to {_time(calls * high)}"
        )
    if plan.sampler:
        shown = f" of {config.sample.sampler}, {plan.sampler.images} images"
        lines += work("sampler", plan.sampler, shown)
        needed = plan.sampler.program.memory
        if needed is not None and needed.total > target.memory:
            lines.append(
                f"    DOES NOT FIT  {memory.describe(needed, target.memory)}; lower "
                "sample.chunk_size"
            )
        if target.device:
            low, high = plans.seconds_of(plan.sampler, target.device, dtype)
            lines.append(
                f"    estimate      {_time(low)} to {_time(high)} for {plan.sampler.images} images "
                f"of {plan.sampler.steps} steps"
            )
    return lines


def work(name: str, call: Call, note: str) -> list[str]:
    """Return the lines with what a step of a call does on each device."""
    p, n = call.program, call.steps
    messages = [
        f"{number / n:,.0f} {kind} of {size / n / 2**20:,.1f} MiB in all"
        for kind, (number, size) in p.messages.items()
    ]
    products = ", ".join(f"{number} in {dtype}" for dtype, number in sorted(p.products.items()))
    return [
        f"  {name:<15} compiled in {p.seconds:.0f} s{note}",
        f"    a step        {p.flops / n / 1e12:.3g} TFLOP, {p.bytes / n / 2**30:.3g} GiB moved, "
        f"{p.kernels / n:,.0f} kernels, on each device",
        f"    products      {products or 'none'} (convolutions and matrix products)",
        f"    messages      {'; '.join(messages) or 'none'}"
        + (f"; {p.host} transfers to the host" if p.host else ""),
    ]


def assumptions() -> str:
    """Return the assumptions of the estimates."""
    return (
        "assumed: an estimate takes the larger of operations / rate and bytes / bandwidth. It "
        f"reaches {LEAST.compute:g} to {MOST.compute:g} of the maker's rate, {LEAST.bandwidth:g} "
        f"to {MOST.bandwidth:g} of the bandwidth and {plans.LINK:g} of the link; at best all "
        f"messages are hidden. Texts have {plans.TOKENS} tokens. Nothing was run. "
        f"jax {jax.__version__}"
    )


def _time(seconds: float) -> str:
    """Return a time with a unit that suits it."""
    for unit, size in (("days", 2 * 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / min(size, 86400):.1f} {unit}"
    return f"{seconds:.2g} s"


def as_json(plan: Plan, config: Config) -> dict[str, Any]:
    """Return all numbers of a plan."""

    def of(call: Call | None) -> dict[str, Any] | None:
        if call is None:
            return None
        p = call.program
        row: dict[str, Any] = {"images": call.images, "steps": call.steps, **p._asdict()}
        row["memory"] = p.memory and p.memory._asdict()
        if plan.target.device:
            row["seconds_per_call"] = plans.seconds_of(call, plan.target.device, config.model.dtype)
        return row

    return {
        "target": plan.target.name,
        "devices": len(plan.target.devices),
        "memory": plan.target.memory,
        "mesh": plan.mesh,
        "parameters": plan.parameters,
        "problem": plan.problem,
        "train": of(plan.train),
        "sampler": of(plan.sampler),
    }


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Write the numbers of all plans."""
    with replacing(path) as part:
        part.write_text(to_json(rows, indent=2) + "\n")


if __name__ == "__main__":
    command.run(main, before=prepare)
