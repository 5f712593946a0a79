"""What a compiled train step needs of a device's memory, known before anything is allocated."""

import math
import os
from typing import NamedTuple

import jax

from ddpm_jax.config import Config
from ddpm_jax.errors import UserError

MIB, GIB = 2**20, 2**30


class Memory(NamedTuple):
    """Bytes on each device while a step runs, as XLA's compiler planned them.

    Attributes:
      state: parameters, their average and the optimiser's moments; and one batch.
      working: activations, gradients and whatever else lives within the step.
    """

    state: int
    working: int

    @property
    def total(self) -> int:
        """Return their sum; pictures, held-out losses and batches ahead come on top."""
        return self.state + self.working


def of_step(compiled: jax.stages.Compiled) -> Memory | None:
    """Return what a compiled step needs; None where the compiler does not tell."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    new = plan.output_size_in_bytes - plan.alias_size_in_bytes  # a donated state is not new
    working = plan.temp_size_in_bytes + plan.generated_code_size_in_bytes + max(new, 0)
    return Memory(plan.argument_size_in_bytes, working)


def capacity() -> int:
    """Return the bytes that a device has; CPU devices share the machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // jax.local_device_count()


def describe(memory: Memory | None, available: int) -> str:
    """Return it as a phrase."""
    if memory is None:
        return "unknown"
    return (
        f"{_size(memory.total)} a device of {_size(available)} "
        f"(state {_size(memory.state)}, working {_size(memory.working)})"
    )


def check_fits(memory: Memory | None, available: int, config: Config, num_devices: int) -> None:
    """Refuse a step that does not fit on the devices, saying what would.

    Raises:
      UserError: it needs more than is available; the message names the keys to change.
    """
    if memory is not None and memory.total > available:
        raise UserError(
            f"a train step does not fit: it needs {describe(memory, available)}; "
            f"{advice(config, memory, available, num_devices)}"
        )


def advice(config: Config, memory: Memory | None, available: int, num_devices: int) -> str:
    """Return what to change so that a step fits, the cheapest first.

    Args:
      config: the run's.
      memory: of its step, or None where that could not be compiled.
      available: bytes on a device.
      num_devices: of the mesh.
    """
    changes = []
    state, working = (memory.state, memory.working) if memory else (0, available + 1)
    groups = num_devices // config.mesh.fsdp
    if groups > 1 and (memory is None or state > available / 2):
        changes.append(f"mesh.fsdp={num_devices} (cuts the state over the devices)")
        state //= groups
    room = available - state
    if room <= 0:
        return "try fewer model.channels, or more devices"
    if working > room:
        on_cpu = jax.default_backend() == "cpu"  # which is slow in bfloat16, and undoes remat
        if config.model.dtype == "float32" and not on_cpu:
            changes.append("model.dtype=bfloat16 (halves the activations)")
        if not config.model.remat and not on_cpu:
            changes.append("model.remat=True (keeps few activations, for about a third more time)")
        if parts := _accumulate(config, working / room, num_devices):
            changes.append(f"train.accumulate={parts} (cuts the activations accordingly)")
    return "try " + ", ".join(changes or ["fewer model.channels, or more devices"])


def _accumulate(config: Config, excess: float, num_devices: int) -> int | None:
    """Return the least number of micro-batches that are `excess` times smaller, or None."""
    now, size = config.train.accumulate, config.train.batch_size
    for parts in range(math.ceil(now * excess), size // num_devices + 1):
        if size % parts == 0 and (size // parts) % num_devices == 0:
            return parts
    return None


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / MIB:.0f} MiB"
