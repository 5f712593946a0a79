"""Several processes that train one run: how they connect, and the tasks of the leader.

Every process runs the same program on its own devices and its own slice of the batch. Process 0,
the leader, writes the logs and the pictures. Every process writes its part of a checkpoint, so all
processes must be able to reach the work directory.
"""

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from ddpm_jax.errors import UserError

Result = TypeVar("Result")


def connect(where: str, heartbeat_s: int) -> None:
    """Connect this process to the others of its run. Call it before any use of JAX's devices.

    Args:
      where: "" is a run of one process; "auto" asks the platform (Cloud TPU, Slurm, Open MPI,
        Kubernetes); "HOST:PORT,COUNT,INDEX" gives the leader's address, the number of processes,
        and the index of this process.
      heartbeat_s: if a process is silent for this many seconds, all others end.

    Raises:
      UserError: `where` has another form, or the other processes could not be reached.
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
                f"--distributed must be auto, or HOST:PORT,COUNT,INDEX with INDEX in 0..COUNT-1, "
                f"for example 10.0.0.1:1234,2,0, found {where!r}"
            ) from None
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_s, **arguments)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed={where} could not connect ({str(error).splitlines()[0][:200]}); start "
            "every process with --distributed=HOST:PORT,COUNT,INDEX, where HOST:PORT is the "
            "address of process 0"
        ) from error


def is_leader() -> bool:
    """Return whether this process writes logs and pictures."""
    return jax.process_index() == 0


def leader_first(function: Callable[[], Result]) -> Result:
    """Call `function` in the leader, then in the others, which may read files the leader wrote."""
    if jax.process_count() == 1:
        return function()
    if is_leader():
        result = function()
        multihost_utils.sync_global_devices("the leader was first")
        return result
    multihost_utils.sync_global_devices("the leader was first")
    return function()


def check_same(name: str, content: str) -> None:
    """Check that all processes have the same `content`; `name` says in the error what it is.

    Raises:
      UserError: the contents differ.
    """
    if jax.process_count() > 1:
        mine = zlib.crc32(content.encode())
        if len(set(multihost_utils.process_allgather(mine).tolist())) > 1:
            raise UserError(f"the processes have different {name}s; start all with the same flags")
