"""Where the arrays of a run lie on its devices: data parallelism, and fully sharded states.

The mesh has two axes. The batch is shared by all devices, over both. Over `fsdp`, parameters,
their average and the optimiser's moments are cut as `RULES` say, so that a device holds 1/fsdp of
them; over `data` they are copied. A step gathers the parameters on their way into the network and
scatters the gradient on its way out (`gatherer`), as in ZeRO (Rajbhandari et al. 2020, stage 3,
but that the gathered parameters live from the forward to the backward pass).
"""

import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.types import Params

DATA, FSDP = "data", "fsdp"  # the axes of the mesh

# (the end of a parameter's name, the axis of it that is cut); the first that fits. The name of a
# moment or an average ends as that of its parameter does.
RULES = (
    (r"(query|key|value)/kernel", 0),  # [C, heads, d]: the channels
    (r"conv_out/kernel", 2),  # [3, 3, C, out]: `out` is that of an image
    (r"kernel", -1),  # [3, 3, in, out], [in, out]
    (r"embedding", -1),  # [classes + 1, width]
)  # what no rule names, such as biases, is small and stays whole


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """All devices share the array's axis number `axis`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, (DATA, FSDP)))


def by_rules(mesh: Mesh, tree: Any) -> Any:
    """Return the sharding of each leaf of parameters, or of a state that has them in it.

    Args:
      mesh: of the run.
      tree: of arrays or `ShapeDtypeStruct`s. A leaf whose axis `fsdp` does not divide stays whole.
    """
    count = mesh.shape[FSDP]

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axis = next((axis for end, axis in RULES if re.search(rf"\b{end}$", name)), None)
        if axis is None or leaf.shape[axis] % count:
            return replicated(mesh)
        spec: list[str | None] = [None] * len(leaf.shape)
        spec[axis] = FSDP
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def gatherer(mesh: Mesh) -> Callable[[Params], Params]:
    """Return a function that gathers parameters, whose gradient comes out cut as they were."""
    if mesh.shape[FSDP] == 1:
        return lambda params: params

    @jax.custom_vjp
    def gather(params: Params) -> Params:
        return jax.lax.with_sharding_constraint(params, replicated(mesh))

    def scatter(_: None, gradient: Params) -> tuple[Params]:
        # Left to itself, the transpose would ask every device for the whole gradient.
        return (jax.lax.with_sharding_constraint(gradient, by_rules(mesh, gradient)),)

    gather.defvjp(lambda params: (gather(params), None), scatter)
    return gather


def on_this_process(mesh: Mesh, tree: Any) -> Any:
    """Return arrays that this process can use alone, whole; all processes must ask for them.

    What it returns of a run of one process is the tree itself.
    """
    if jax.process_count() == 1:
        return tree
    whole = jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
