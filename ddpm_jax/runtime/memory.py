"""The device memory that a train step needs, known after compiling and before allocating."""

import math
import os
from typing import NamedTuple

import jax

from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.runtime.platform import platform

MIB, GIB = 2**20, 2**30


class Memory(NamedTuple):
    """Bytes on each device while a step runs, as planned by XLA's compiler.

    Attributes:
      state: the parameters, their average, the moments of the optimiser, and one batch.
      working: activations, gradients and all other temporary arrays of the step.
    """

    state: int
    working: int

    @property
    def total(self) -> int:
        """Return the sum; samples, held-out losses and prefetched batches need more."""
        return self.state + self.working


def of_step(compiled: jax.stages.Compiled) -> Memory | None:
    """Return the memory that a compiled step needs; None if the compiler does not report it."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    new = plan.output_size_in_bytes - plan.alias_size_in_bytes  # a donated state is not new memory
    working = plan.temp_size_in_bytes + plan.generated_code_size_in_bytes + max(new, 0)
    return Memory(plan.argument_size_in_bytes, working)


def capacity() -> int:
    """Return the bytes of memory of one device; CPU devices share the machine's memory equally."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine // jax.local_device_count()


def describe(memory: Memory | None, available: int) -> str:
    """Return the needed and the available memory as a phrase for a message.

    Args:
      memory: the memory of a step; None is "unknown".
      available: bytes on a device.
    """
    if memory is None:
        return "unknown"
    return (
        f"{_size(memory.total)} per device, of {_size(available)} "
        f"(state {_size(memory.state)}, activations and gradients {_size(memory.working)})"
    )


def check_fits(memory: Memory | None, available: int, config: Config, num_devices: int) -> None:
    """Check that a step fits into the memory of the devices.

    Args:
      memory: the memory of the step; None, unknown, is accepted.
      available: bytes on a device.
      config: the config of the run.
      num_devices: number of devices in the mesh.

    Raises:
      UserError: the step needs more memory; the message names the config keys to change.
    """
    if memory is not None and memory.total > available:
        raise UserError(
            f"a train step does not fit into memory: it needs {describe(memory, available)}; "
            f"{advice(config, memory, available, num_devices)}"
        )


def advice(config: Config, memory: Memory | None, available: int, num_devices: int) -> str:
    """Return a phrase with the config keys to change so that a step fits, the cheapest first.

    Args:
      config: the config of the run.
      memory: the memory of its step; None if the step could not be compiled.
      available: bytes on a device.
      num_devices: number of devices in the mesh.
    """
    changes = []
    state, working = (memory.state, memory.working) if memory else (0, available + 1)
    groups = num_devices // config.mesh.fsdp
    if groups > 1 and (memory is None or state > available / 2):
        changes.append(f"mesh.fsdp={num_devices} (shards the state over the devices)")
        state //= groups
    room = available - state
    if room <= 0:
        return "try fewer model.channels, or more devices"
    if working > room:
        # The CPU backend is slow in bfloat16, and its compiler undoes remat.
        on_cpu = platform() == "cpu"
        if config.model.dtype == "float32" and not on_cpu:
            changes.append("model.dtype=bfloat16 (halves the activations)")
        if not config.model.remat and not on_cpu:
            changes.append("model.remat=True (keeps few activations, for about a third more time)")
        if parts := _accumulate(config, working / room, num_devices):
            changes.append(f"train.accumulate={parts} (smaller micro-batches, fewer activations)")
    return "try " + ", ".join(changes or ["fewer model.channels, or more devices"])


def _accumulate(config: Config, excess: float, num_devices: int) -> int | None:
    """Return the least train.accumulate with micro-batches `excess` times smaller, or None.

    The micro-batches must have equal sizes that the devices can share.
    """
    now, size = config.train.accumulate, config.train.batch_size
    for parts in range(math.ceil(now * excess), size // num_devices + 1):
        if size % parts == 0 and (size // parts) % num_devices == 0:
            return parts
    return None


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB / 10 else f"{size / MIB:.0f} MiB"
