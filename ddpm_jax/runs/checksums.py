"""Checks of the leaves of a checkpoint: all numbers are finite, and no bit has flipped.

Orbax does not detect a flipped bit, so each leaf has a CRC-32 checksum.

One checksum is computed from the array in memory before it is written, another from the array that
was read. So any damage in between is detected.
"""

import concurrent.futures
import os
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.errors import UserError
from ddpm_jax.types import Array

T = TypeVar("T")


def checksums(tree: Any) -> dict[str, int]:
    """Return {path of a leaf: CRC-32 of its bytes in C order} for a tree of arrays.

    All processes must call this together, as in `_of_leaves`.
    """
    return _of_leaves(_crc, tree)


def nonfinite(tree: Any) -> str:
    """Return which leaves of a tree of arrays have a NaN or an infinity, in words; "" is none.

    All processes must call this together, as in `_of_leaves`.
    """
    bad = [name for name, finite in _of_leaves(_is_finite, tree).items() if not finite]
    if not bad:
        return ""
    return f"NaN or infinity in {bad[0]}" + (f" and in {len(bad) - 1} more" if bad[1:] else "")


def _of_leaves(function: Callable[[Array], T], tree: Any) -> dict[str, T]:
    """Return {path of a leaf: function(leaf)}, computed by several threads.

    This waits until the arrays are computed. Leaves that are sharded over several processes are
    gathered one at a time, so all processes must call this together.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    # Threads help: zlib and copies from a device release the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = {}
        for name, leaf in leaves.items():
            whole = _whole(leaf)
            found[name] = pool.submit(function, whole)
            if whole is not leaf:
                found[name].result()  # wait, so that only one gathered leaf is in memory
    return {name: result.result() for name, result in found.items()}


def check(tree: Any, written: dict[str, int]) -> None:
    """Compare a tree that was read with the checksums from the time when it was written.

    Args:
      tree: the arrays that were read.
      written: the result of `checksums` when they were written. Leaves without an entry are not
        checked.

    Raises:
      UserError: a leaf differs; the message names the first such leaf.
    """
    found = checksums(tree)
    damaged = [name for name in found if found[name] != written.get(name, found[name])]
    if damaged:
        name = damaged[0]
        others = f" and {len(damaged) - 1} more are" if damaged[1:] else " is"
        raise UserError(
            f"{name}{others} not what was saved: CRC-32 {found[name]:08x}, but {written[name]:08x} "
            "when it was written"
        )


def _whole(leaf: Array) -> Array:
    """Return the leaf; gather it first if this process holds only a part of it."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated or leaf.is_fully_addressable:
        return leaf
    assert isinstance(leaf.sharding, NamedSharding)
    return jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))


def _crc(leaf: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(_on_host(leaf)).reshape(-1).view(np.uint8).data)


def _is_finite(leaf: Array) -> bool:
    return bool(np.isfinite(_on_host(leaf)).all())


def _on_host(leaf: Array) -> np.ndarray:
    # Through `addressable_data`: otherwise the leaf caches its copy on the host, and then the leaf
    # cannot be donated.
    on_device = isinstance(leaf, jax.Array) and leaf.is_fully_replicated
    return np.asarray(leaf.addressable_data(0) if on_device else leaf)
