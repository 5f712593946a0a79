"""Machines to plan for: their devices, which need not be here, and what their makers state.

    v5e:2x4   a TPU, by the shape of its chips: v2, v3, v5e, v5p or v6e
    h100:8    a number of GPUs in one machine: a row of CARDS
    cpu:8     this machine's CPU as a number of devices
    here      the devices of this process, whatever they are

XLA compiles for a device from a description of it. The description of a TPU is part of libtpu
(`pip install 'jax[tpu]'`). That of a GPU is a text, made here from the maker's data sheet; the
compiler is part of JAX's CUDA plugin (`pip install 'jax[cuda13]'`).
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from ddpm_jax.errors import UserError
from ddpm_jax.runtime import memory
from ddpm_jax.runtime.platform import platform

GIB = 2**30


class Device(NamedTuple):
    """One device, as its maker describes it.

    Attributes:
      name: for messages.
      memory: bytes.
      flops: {dtype of the computation: operations per second, at most}. For float32 these are the
        rates of JAX's default precision: bfloat16 on a TPU, TF32 on a GPU.
      bandwidth: bytes per second between the device and its memory.
      link: bytes per second that a device sends to the other devices of the machine.
    """

    name: str
    memory: int
    flops: Mapping[str, float]
    bandwidth: float
    link: float


class Card(NamedTuple):
    """A GPU: the device, and what the compiler needs to know of the chip."""

    device: Device
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    clock: float  # GHz
    l2: int  # bytes
    shared: tuple[int, int]  # bytes of shared memory per core, and per block if a kernel asks
    threads: int  # per core
    fpus: int  # per core


class Target(NamedTuple):
    """A machine to plan for.

    Attributes:
      name: as the user wrote it.
      platform: "cpu", "gpu" or "tpu".
      devices: JAX's devices; a program can be compiled for them, and runs on them if they are here.
      device: one of them; None if its rates are not known, as for a CPU.
      memory: bytes of memory of one device.
    """

    name: str
    platform: str
    devices: list[Any]
    device: Device | None
    memory: int


def _device(
    name: str, gib: float, bf16: float, float32: float, bandwidth: float, link: float
) -> Device:
    """Return a device; the rates are in TFLOP/s and GB/s."""
    flops = {"bfloat16": 1e12 * bf16, "float32": 1e12 * float32}
    return Device(name, int(gib * GIB), flops, 1e9 * bandwidth, 1e9 * link)


# Google's pages on each TPU (docs.cloud.google.com/tpu/docs/v5e and its neighbours). A device is a
# core in v2 and v3, which have two cores per chip, and a chip in the others.
TPUS = {
    "v2": _device("TPU v2 core", 8, 22.5, 22.5, 300, 31),
    "v3": _device("TPU v3 core", 16, 61.5, 61.5, 450, 41),
    "v5e": _device("TPU v5e", 16, 197, 197, 819, 200),
    "v5p": _device("TPU v5p", 95, 459, 459, 2765, 600),
    "v6e": _device("TPU v6e", 32, 918, 918, 1640, 448),
}
# NVIDIA's data sheets: dense rates of the tensor cores.
CARDS = {
    "a100": Card(
        _device("A100 80GB SXM", 80, 312, 156, 2039, 300),
        (8, 0), 108, 1.41, 41_943_040, (167_936, 166_912), 2048, 64,
    ),
    "h100": Card(
        _device("H100 SXM", 79.1, 989, 495, 3352, 450),
        (9, 0), 132, 1.98, 52_428_800, (233_472, 232_448), 2048, 128,
    ),
    "h200": Card(
        _device("H200 SXM", 141, 989, 495, 4800, 450),
        (9, 0), 132, 1.98, 52_428_800, (233_472, 232_448), 2048, 128,
    ),
    "l4": Card(
        _device("L4", 24, 121, 60, 300, 32),
        (8, 9), 58, 2.04, 50_331_648, (102_400, 101_376), 1536, 128,
    ),
    "rtx4090": Card(
        _device("RTX 4090", 24, 165, 83, 1008, 32),
        (8, 9), 128, 2.52, 75_497_472, (102_400, 101_376), 1536, 128,
    ),
}  # fmt: skip
ALLOWED = (
    f"a TPU such as v5e:2x4 ({', '.join(TPUS)}), GPUs such as h100:8 ({', '.join(CARDS)}), cpu:N, "
    "or here"
)
HERE = "here"
KINDS = {  # what JAX calls a device -> a row of TPUS or CARDS
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L4": "l4",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}
SILENT = {  # libtpu looks for the machine that it is in, and complains that there is none
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "4",
    "TPU_MIN_LOG_LEVEL": "4",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5e-8",
}


def prepare(names: Iterable[str]) -> None:
    """Set up this process for targets, before JAX looks for its devices.

    The process itself computes on the CPU, with as many devices as the largest `cpu:N` asks for.
    Only for the target `here` it keeps its own devices.

    Raises:
      UserError: a name is not that of a target, or `here` is not the only one.
    """
    names = list(names)
    if HERE in names:
        if len(names) > 1:
            raise UserError(
                f"--target: {HERE!r} must be the only target, found {','.join(names)}; start a "
                "command of its own for each"
            )
        return
    parsed = [_parse(name) for name in names]
    for variable, value in SILENT.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    # A program for a device that is not here can be written to the cache, but not read from it.
    jax.config.update("jax_enable_compilation_cache", False)
    counts = [shape[0] for kind, shape in parsed if kind == "cpu"]
    if counts:
        jax.config.update("jax_num_cpu_devices", max(counts))


def find(name: str) -> Target:
    """Return a target; `prepare` must have been called.

    Args:
      name: the name, such as "v5e:2x4".

    Raises:
      UserError: the name is not that of a target, the machine cannot have this shape, or the
        compiler for it is not installed.
    """
    if name == HERE:
        return here()
    kind, shape = _parse(name)
    if kind == "cpu":
        return Target(name, "cpu", jax.devices()[: shape[0]], None, memory.capacity())
    if kind in TPUS:
        device = TPUS[kind]
        alone = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(shape) == 1 else {}
        devices = _topology(name, "tpu", f"{kind}:{'x'.join(map(str, shape))}", **alone)
        return Target(name, "tpu", devices, device, device.memory)
    card = CARDS[kind]
    options = {"target_config": describe(card), "topology": f"1x1x{shape[0]}"}
    devices = _topology(name, "cuda", kind, **options)
    return Target(name, "gpu", devices, card.device, card.device.memory)


def here() -> Target:
    """Return the devices of this process, with the rates of a known kind of device."""
    devices = jax.devices()
    row = KINDS.get(devices[0].device_kind, "")
    device = TPUS[row] if row in TPUS else CARDS[row].device if row in CARDS else None
    return Target(HERE, platform(), devices, device, memory.capacity())


def describe(card: Card) -> str:
    """Return XLA's description of a GPU, a text in the format of its GpuTargetConfigProto."""
    major, minor = card.capability
    shared_per_core, shared_per_block = card.shared
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_per_core}
  shared_memory_per_block_optin: {shared_per_block}
  threads_per_core_limit: {card.threads}
  core_count: {card.cores}
  fpus_per_core: {card.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(card.device.bandwidth)}
  l2_cache_size: {card.l2}
  clock_rate_ghz: {card.clock}
  device_memory_size: {card.device.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{card.device.name}"
"""


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Split a name into the kind of its devices and the shape of the machine."""
    kind, _, shape = name.partition(":")
    sides = 3 if kind == "v5p" else 2 if kind in TPUS else 1
    if not (kind in TPUS or kind in CARDS or kind == "cpu"):
        raise UserError(f"--target: {name!r} is not a machine; it must be {ALLOWED}")
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})" + f"{{{sides - 1}}}", shape):
        example = {3: "2x2x1", 2: "2x4", 1: "8"}[sides]
        raise UserError(
            f"--target: {name!r} must say how many devices: {kind}:{example}, for example"
        )
    return kind, tuple(map(int, shape.split("x")))


def _topology(name: str, platform: str, which: str, **options: Any) -> list[Any]:
    from jax.experimental import topologies  # only plans need it

    extra = "tpu" if platform == "tpu" else "gpu"
    try:
        found = topologies.get_topology_desc(
            platform=platform, topology_name=which, **options
        ).devices
    except (RuntimeError, NotImplementedError) as error:  # JaxRuntimeError is a RuntimeError
        text = str(error)
        if "INVALID_ARGUMENT" in text and "opology" in text:
            raise UserError(f"--target: {name!r} is not a possible machine: {text}") from error
        raise UserError(
            f"--target: {name!r} needs the compiler of this device, which is not installed "
            f"({text.splitlines()[0][:120]}); run: pip install 'ddpm_jax[{extra}]'"
        ) from error
    return sorted(found, key=lambda device: (device.process_index, device.id))
