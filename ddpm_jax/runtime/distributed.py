"""Several processes that train one run: how they find each other, and what only one of them does.

Every process runs the same program on its own devices and its own share of the batch. Process 0,
the leader, writes logs and pictures; all of them write their parts of a checkpoint, so the work
directory must be one that all can reach.
"""

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from ddpm_jax.errors import UserError

Result = TypeVar("Result")


def connect(where: str, heartbeat_s: int) -> None:
    """Join the processes of a run; must come before JAX is asked for a device.

    Args:
      where: "" is one process; "auto" asks the platform (Cloud TPU, Slurm, Open MPI, Kubernetes);
        "HOST:PORT,COUNT,INDEX" is the leader's address, the number of processes, and which this is.
      heartbeat_s: a process that is silent for so many seconds ends all others.

    Raises:
      UserError: it is none of these, or the others could not be reached.
    """
    if not where:
        return
    if where == "auto":
        arguments: dict[str, Any] = {}
    else:
        try:
            address, count, index = where.split(",")
            arguments = dict(
                coordinator_address=address, num_processes=int(count), process_id=int(index)
            )
            if ":" not in address or not 0 <= int(index) < int(count):
                raise ValueError
        except ValueError:
            raise UserError(
                f"--distributed is {where!r}; it must be auto, or HOST:PORT,COUNT,INDEX with INDEX "
                "in 0..COUNT-1, e.g. 10.0.0.1:1234,2,0"
            ) from None
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_s, **arguments)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed={where} did not connect ({str(error).splitlines()[0][:200]}); give "
            "every process HOST:PORT,COUNT,INDEX, with process 0's address and port"
        ) from error


def is_leader() -> bool:
    """Return whether this process writes logs and pictures."""
    return jax.process_index() == 0


def leader_first(function: Callable[[], Result]) -> Result:
    """Call `function` in every process, in the leader first: it may write what the others read."""
    if jax.process_count() == 1:
        return function()
    if is_leader():
        result = function()
        multihost_utils.sync_global_devices("the leader was first")
        return result
    multihost_utils.sync_global_devices("the leader was first")
    return function()


def check_same(name: str, content: str) -> None:
    """Refuse to go on where the processes do not have the same text.

    Raises:
      UserError: they differ.
    """
    if jax.process_count() > 1:
        mine = zlib.crc32(content.encode())
        if len(set(multihost_utils.process_allgather(mine).tolist())) > 1:
            raise UserError(f"the processes have different {name}s; start all with the same flags")
