"""How the arrays of a run are sharded over its devices: data parallelism, fully sharded states.

The mesh has two axes, `data` and `fsdp`. The batch is sharded over both axes. The parameters, their
average and the moments of the optimiser are sharded over `fsdp` by `RULES`, so a device holds
1/fsdp of them; they are replicated over `data`.

A step gathers the parameters before the network uses them, and scatters the gradient after the
backward pass (`gatherer`). This is stage 3 of ZeRO (Rajbhandari et al. 2020). A network that
computes in bfloat16 rounds its weights before it uses them. So they are rounded before they are
gathered, which halves the bytes and changes no number. The gradient of a rounded weight is bfloat16
too, and is added over the devices in bfloat16. tests/test_gathered.py compares it with float32.

Deviates from ZeRO: the gathered parameters stay in memory from the forward to the backward pass.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.types import Params

DATA, FSDP = "data", "fsdp"  # the axes of the mesh

# (regular expression for the end of a parameter's name, the axis to shard). The first match counts.
# The name of a moment or of an average ends with the name of its parameter. Other parameters, such
# as biases, are small and are replicated.
RULES = (
    (r"(query|key|value)/kernel", 0),  # [C, heads, d]: axis C
    (r"conv_out/kernel", 2),  # [3, 3, C, out]: axis C, because `out` is only an image's channels
    (r"kernel", -1),  # [3, 3, in, out], [in, out]: axis out
    (r"embedding", -1),  # [classes + 1, width]: axis width
)

# The end of the names of sharded parameters that networks use in float32, also if model.dtype is
# bfloat16. tests/test_gathered.py checks that the others lose nothing.
FLOAT32 = r"(conv_out|logits|quant)/kernel|\b(pool|schedule|discriminator)/.*"


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Return the sharding of axis number `axis` over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, (DATA, FSDP)))


def by_rules(mesh: Mesh, tree: Any) -> Any:
    """Return the sharding of each leaf of the parameters, or of a state that contains them.

    Args:
      mesh: the mesh of the run.
      tree: arrays or `ShapeDtypeStruct`s. If `fsdp` does not divide the axis of a leaf, the leaf is
        replicated.
    """
    count = mesh.shape[FSDP]

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        axis = _axis(_name(path))
        if axis is None or leaf.shape[axis] % count:
            return replicated(mesh)
        spec: list[str | None] = [None] * len(leaf.shape)
        spec[axis] = FSDP
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def rounded(params: Params, dtype: Any) -> Params:
    """Return the parameters, with those that a network uses only in `dtype` rounded to it.

    Args:
      params: the parameters of a run.
      dtype: `model.dtype`.
    """

    def of(path: tuple, leaf: Any) -> Any:
        name = _name(path)
        wide = _axis(name) is None or re.search(rf"{FLOAT32}$", name)
        return leaf if wide else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(of, params)


def gatherer(mesh: Mesh, dtype: Any) -> Callable[[Params], Params]:
    """Return a function that gathers sharded parameters; its gradient is sharded like them.

    Args:
      mesh: the mesh of the run.
      dtype: `model.dtype`; the gathered parameters are `rounded` to it.
    """
    if mesh.shape[FSDP] == 1:
        return lambda params: params

    @jax.custom_vjp
    def gather(params: Params) -> Params:
        sent = rounded(params, dtype)
        sent = jax.lax.with_sharding_constraint(sent, by_rules(mesh, sent))
        return jax.lax.with_sharding_constraint(sent, replicated(mesh))

    def scatter(_: None, gradient: Params) -> tuple[Params]:
        # Without this rule the transpose of `gather` would put the whole gradient on every device.
        found = jax.lax.with_sharding_constraint(gradient, by_rules(mesh, gradient))
        return (jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found),)

    gather.defvjp(lambda params: (gather(params), None), scatter)
    return gather


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _axis(name: str) -> int | None:
    """Return the axis of a parameter that `RULES` shards; None if no rule is for it."""
    return next((axis for end, axis in RULES if re.search(rf"\b{end}$", name)), None)


def on_this_process(mesh: Mesh, tree: Any) -> Any:
    """Return the whole arrays of a tree on a device of this process.

    All processes must call this together. In a run of one process it returns the tree itself.

    Args:
      mesh: the mesh of the run.
      tree: arrays on this mesh, with any sharding.
    """
    if jax.process_count() == 1:
        return tree
    whole = jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
