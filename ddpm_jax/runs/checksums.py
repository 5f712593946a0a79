"""CRC-32 of the leaves of a checkpoint: Orbax does not notice a flipped bit.

They are taken of the arrays in memory, before anything is written, and of the arrays that were
read: whatever goes wrong between is noticed.
"""

import concurrent.futures
import os
import zlib
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.errors import UserError
from ddpm_jax.types import Array


def checksums(tree: Any) -> dict[str, int]:
    """Return {path of a leaf: CRC-32 of its bytes in C order}, of a tree of arrays.

    Waits for the arrays to be computed. Leaves that no process holds whole are gathered, one after
    the other; all processes must ask for them.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    # zlib lets go of the interpreter, and so does a copy from a device.
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = {}
        for name, leaf in leaves.items():
            whole = _whole(leaf)
            found[name] = pool.submit(_crc, whole)
            if whole is not leaf:
                found[name].result()  # no two gathered leaves at a time
    return {name: crc.result() for name, crc in found.items()}


def check(tree: Any, written: dict[str, int]) -> None:
    """Compare a tree that was read with the checksums that were taken when it was written.

    Raises:
      UserError: a leaf differs; the message names the first.
    """
    found = checksums(tree)
    damaged = [name for name in found if found[name] != written.get(name, found[name])]
    if damaged:
        name = damaged[0]
        others = f" and {len(damaged) - 1} more are" if damaged[1:] else " is"
        raise UserError(
            f"{name}{others} not what was saved: CRC-32 {found[name]:08x}, "
            f"{written[name]:08x} when it was written"
        )


def _whole(leaf: Array) -> Array:
    """Return the leaf, gathered where this process holds a part of it alone."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated or leaf.is_fully_addressable:
        return leaf
    assert isinstance(leaf.sharding, NamedSharding)
    return jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))


def _crc(leaf: Array) -> int:
    # A view of its own: the leaf itself would keep its copy on the host, and could not be donated.
    on_device = isinstance(leaf, jax.Array) and leaf.is_fully_replicated
    array = leaf.addressable_data(0) if on_device else leaf
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
