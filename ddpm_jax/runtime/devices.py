"""The devices of a run: what they are, and the mesh over them."""

import glob
import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.runtime.sharding import DATA, FSDP

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
    """Return the mesh of axes "data" and "fsdp", `mesh.data` (-1: the rest) by `mesh.fsdp`.

    The devices stand in the order of their processes, "fsdp" innermost: the share of a process in
    the batch is one slice, and what "fsdp" gathers comes from near.

    Raises:
      UserError: more devices than there are, some left over of several processes, or a batch that
        they cannot share equally.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    available, fsdp = len(found), config.mesh.fsdp
    if fsdp < 1 or available % fsdp:
        raise UserError(f"mesh.fsdp is {fsdp}, but must divide the number of devices, {available}")
    data = available // fsdp if config.mesh.data == -1 else config.mesh.data
    count = data * fsdp
    if not 1 <= count <= available:
        raise UserError(
            f"mesh.data {data} x mesh.fsdp {fsdp} is {count}, but there are {available} devices; "
            "take mesh.data=-1 for all"
        )
    if jax.process_count() > 1 and count != available:
        raise UserError(
            f"mesh.data {data} x mesh.fsdp {fsdp} leaves some of the {available} devices of "
            f"{jax.process_count()} processes out; take mesh.data=-1"
        )
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
    grid = np.asarray(found[:count]).reshape(data, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))
