"""The devices of a run: a description of them, and the mesh over them."""

import glob
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.runtime.sharding import DATA, FSDP

# Pattern of an accelerator's device files -> (its name, the command that installs its JAX).
ACCELERATORS = {
    "/dev/nvidia[0-9]*": ("NVIDIA GPU", 'pip install "jax[cuda13]"'),
    "/dev/accel[0-9]*": ("TPU", 'pip install "jax[tpu]"'),
    "/dev/kfd": ("AMD GPU", 'pip install "jax[rocm7-local]"'),
}


def describe_devices() -> str:
    """Return one line with the devices, the number of processes and the version of JAX."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return (
        f"devices: {jax.device_count()} x {', '.join(kinds)} ({jax.default_backend()}), "
        f"process {jax.process_index() + 1} of {jax.process_count()}, jax {jax.__version__}"
    )


def cpu_fallback_warning() -> str | None:
    """Return a warning if JAX runs on the CPU although the machine has an accelerator.

    Returns None otherwise, or if the user chose the platform by `JAX_PLATFORMS`.
    """
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return None
    for pattern, (name, command) in ACCELERATORS.items():
        if found := glob.glob(pattern):
            return (
                f"JAX RUNS ON THE CPU, ALTHOUGH THIS MACHINE HAS A {name.upper()} ({found[0]}): "
                f"this is perhaps 100 times slower. Install JAX for it: {command} "
                "(or set JAX_PLATFORMS=cpu if you want the CPU)"
            )
    return None


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh with the axes "data" and "fsdp", of sizes mesh.data and mesh.fsdp.

    mesh.data = -1 takes all devices. The devices are sorted by process, and "fsdp" is the inner
    axis. So each process holds one slice of the batch, and "fsdp" gathers from nearby devices.

    Args:
      config: the config of the run.
      devices: the devices to use; None is all devices of this run.

    Raises:
      UserError: the mesh needs more devices than there are, leaves out devices of several
        processes, or cannot share the batch equally.
    """
    devices = jax.devices() if devices is None else devices
    found = sorted(devices, key=lambda device: (device.process_index, device.id))
    available, fsdp = len(found), config.mesh.fsdp
    if fsdp < 1 or available % fsdp:
        raise UserError(
            f"mesh.fsdp is {fsdp}, but must divide the number of devices, {available}; set it to a "
            "divisor, such as 1"
        )
    data = available // fsdp if config.mesh.data == -1 else config.mesh.data
    count = data * fsdp
    if not 1 <= count <= available:
        raise UserError(
            f"mesh.data {data} x mesh.fsdp {fsdp} is {count}, but there are {available} devices; "
            "set mesh.data=-1 to use all"
        )
    if jax.process_count() > 1 and count != available:
        raise UserError(
            f"mesh.data {data} x mesh.fsdp {fsdp} is {count}, but with {jax.process_count()} "
            f"processes the mesh must have all {available} devices; set mesh.data=-1"
        )
    for key, size in {
        "train.batch_size / train.accumulate": config.train.batch_size / config.train.accumulate,
        "train.batch_size": config.train.batch_size,
    }.items():
        if size < 1 or size % count:
            raise UserError(
                f"{key} is {size:g}, which {count} devices cannot share equally; set "
                f"train.batch_size to a multiple of {count * config.train.accumulate}, or set "
                "mesh.data to fewer devices"
            )
    # Auto axes: with explicit axes (JAX's new default) Linen's convolutions and Dropout fail.
    grid = np.asarray(found[:count]).reshape(data, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))
