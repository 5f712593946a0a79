"""The devices of a run: what they are, the mesh over them, and where arrays lie on it."""

import glob
import os

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.config import Config
from ddpm_jax.errors import UserError

ACCELERATORS = {
    "/dev/nvidia[0-9]*": ("NVIDIA GPU", 'pip install "jax[cuda13]"'),
    "/dev/accel[0-9]*": ("TPU", 'pip install "jax[tpu]"'),
    "/dev/kfd": ("AMD GPU", 'pip install "jax[rocm7-local]"'),
}


def describe_devices() -> str:
    """Return one line that names the devices, processes and the JAX version."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return (
        f"devices: {jax.device_count()} x {', '.join(kinds)} ({jax.default_backend()}), "
        f"process {jax.process_index() + 1} of {jax.process_count()}, jax {jax.__version__}"
    )


def cpu_fallback_warning() -> str | None:
    """Return a line to shout when JAX runs on the CPU although an accelerator is there.

    Silent where the user asked for the CPU by `JAX_PLATFORMS`.
    """
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return None
    for pattern, (name, command) in ACCELERATORS.items():
        if found := glob.glob(pattern):
            return (
                f"JAX RUNS ON THE CPU, ALTHOUGH THIS MACHINE HAS A {name.upper()} ({found[0]}): "
                f"this is perhaps 100 times slower. Install its JAX: {command} "
                "(or set JAX_PLATFORMS=cpu to say that you mean it)"
            )
    return None


def make_mesh(config: Config) -> Mesh:
    """Return the mesh with axis "data" over `mesh.data` devices (-1: all).

    Raises:
      UserError: too many devices asked for, or a batch that they cannot share equally.
    """
    available = jax.device_count()
    count = available if config.mesh.data == -1 else config.mesh.data
    if not 1 <= count <= available:
        raise UserError(f"mesh.data is {count}, but there are {available} devices; take -1 for all")
    for key, size in {
        "train.batch_size / train.accumulate": config.train.batch_size / config.train.accumulate,
        "train.batch_size": config.train.batch_size,
    }.items():
        if size < 1 or size % count:
            raise UserError(
                f"{key} is {size:g}, which {count} devices cannot share equally; take a multiple "
                f"of {count * config.train.accumulate} or set mesh.data"
            )
    # Auto axes: with explicit ones (JAX's new default) Linen's convolutions and Dropout fail.
    return jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """The devices share the array's axis number `axis`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
