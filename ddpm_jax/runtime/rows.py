"""Compute n rows, such as images, on all local devices, in one compiled program.

  n rows --padded to a multiple of the devices--> run, sharded over the rows --cut--> n rows

The padding repeats the last row. The options of the compiler depend on the size of the network
(`runtime.compiler`).
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ddpm_jax.runtime import compiler


def over_local_devices(
    run: Callable[..., Any],
    *,
    out_axes: Any = 0,
    devices: Sequence[Any] | None = None,
) -> Callable[..., Any]:
    """Build `call(shared, rows, *static)`, which runs `run` on all local devices.

    `run(shared, rows, *static)` is a JAX function. It computes each row from `shared` and from the
    same row of every array in `rows`. It compiles once for each n, rounded up to a multiple of the
    devices, and for each value of `static`.

    `call` is a JAX function too. Inside `jax.jit`, `jax.grad` or `jax.vmap`, `call` pads nothing.
    The program around it then chooses the devices and the options of the compiler.

    Args:
      run: the function. Its result is a pytree of arrays.
      out_axes: the axis of the rows in each array of the result: an int, or a tree prefix of ints
        as in `jax.vmap`. An array without this axis, for instance a scalar, has no rows.
      devices: the devices to use; None is all local devices.

    `call` takes:
      shared: a pytree of arrays that every row needs, such as the network's parameters.
      rows: a pytree of arrays with a first axis of length n.
      static: hashable values that `run` needs while it is traced.
    """

    @functools.cache
    def compiled(kind: str | None, num_static: int) -> Callable[..., Any]:
        options = None if kind is None else compiler.options(kind)
        static = tuple(range(2, 2 + num_static))
        return jax.jit(run, static_argnums=static, compiler_options=options)

    def call(shared: Any, rows: Any, *static: Hashable) -> Any:
        if is_traced((shared, rows)):
            return compiled(None, len(static))(shared, rows, *static)
        n = len(jax.tree.leaves(rows)[0])
        count, replicated, sharded = local_devices(devices)
        padded = math.ceil(n / count) * count
        program = compiled(compiler.of_network(shared), len(static))
        shared = jax.device_put(shared, replicated)
        result = program(shared, jax.device_put(pad(rows, padded), sharded), *static)
        return result if padded == n else _cut(result, n, out_axes)

    return call


def is_traced(tree: Any) -> bool:
    """Return whether a leaf of a pytree is traced, or whether this call is inside `jax.jit`."""
    probe = jnp.zeros(())  # a tracer inside jit
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((tree, probe)))


def local_devices(
    devices: Sequence[Any] | None = None,
) -> tuple[int, NamedSharding, NamedSharding]:
    """Return the number of devices, the replicated sharding, and the sharding over the rows.

    Args:
      devices: the devices to use; None is all local devices.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
    return (
        len(devices),
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec("data")),
    )


def pad(rows: Any, size: int) -> Any:
    """Repeat the last row of each array until there are `size` rows.

    Args:
      rows: a pytree of arrays [n, ...] with n >= 1.
      size: number of rows of the result, at least n.
    """

    def padded(leaf: Any) -> Any:
        n = len(leaf)
        return leaf if n == size else leaf[np.minimum(np.arange(size), n - 1)]

    return jax.tree.map(padded, rows)


def _cut(result: Any, n: int, out_axes: Any) -> Any:
    """Keep the first n rows of each array of the result."""

    def cut(axis: int, part: Any) -> Any:
        index = (slice(None),) * axis + (slice(n),)
        return jax.tree.map(lambda leaf: leaf[index] if leaf.ndim > axis else leaf, part)

    return jax.tree.map(cut, out_axes, result)
