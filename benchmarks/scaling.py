"""Estimate of training speed on many devices, on paper.

    python -m benchmarks.scaling

For each network and machine, the script computes the operations, bytes and seconds of a train step
per device, and the efficiency of N devices against one. XLA counts the operations in the traced
step; nothing runs. The bytes follow from the parameters. The rates are those that the makers give.
Nothing was timed on these machines.

Two shares are assumed. The share of the peak rate is the one that Ho et al. 2020 (appendix B)
reached on a TPU v3-8 of 4 x 123 TFLOP/s: 0.2 for 32x32 (21 steps/s of 128 images), 0.4 for 256x256
(2.2 steps/s of 64 images). The share of the links' rate is 0.7.

    compute         operations per device / (share x peak)
    communication   2 (N - 1) / N x 4 bytes x parameters / (share x rate of the slowest link)

The communication is the gradient's all-reduce in data parallelism. `mesh.fsdp` gathers the
parameters and scatters the gradient instead, and moves the same bytes. The efficiency is

    compute / (compute + communication)        if no communication is hidden by the backward pass
    compute / max(compute, communication)      if all communication is hidden
"""

import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.config import from_dict
from ddpm_jax.models import count_parameters
from ddpm_jax.training.parts import build_parts

LINK_SHARE = 0.7  # assumed


class Machine(NamedTuple):
    """Rates from the makers' data sheets: bf16 peak, and one direction of the slowest link."""

    name: str
    num_devices: int
    flops: float  # a second
    link: float  # bytes a second


MACHINES = (
    Machine("8 H100, one host (NVLink)", 8, 989e12, 450e9),
    Machine("64 H100, 8 adapters of 400 Gb/s a host", 64, 989e12, 400e9),
    Machine("TPU v5e-8", 8, 197e12, 90e9),  # of a link, both directions
    Machine("TPU v5e-256", 256, 197e12, 90e9),  # one of the torus' two axes at a time
)
# config, image side, images on each device, share of the peak rate
NETWORKS = (
    ("cifar10", 32, 16, 0.2),
    ("cifar10", 32, 64, 0.2),
    ("lsun_bedroom_256", 256, 8, 0.4),
    ("large_256", 256, 8, 0.4),
)


def operations(config, shape: tuple[int, int, int]) -> tuple[float, int]:
    """Return the operations of a train step per image (a multiply-add is 2), and the parameters.

    Recomputation is not counted, because it is not useful work.
    """
    n = 2
    parts = build_parts(config, shape, 0)
    state = jax.eval_shape(parts.init)
    batch = {
        "image": jax.ShapeDtypeStruct((n, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((n,), jnp.int32),
    }
    cost = jax.jit(parts.train_step).lower(state, batch).cost_analysis()
    return cost["flops"] / n, count_parameters(state.params)


def main() -> None:
    print(f"assumed: {LINK_SHARE:.0%} of the links' rate; efficiency with no and with full overlap")
    for name, side, per_device, share in NETWORKS:
        config = importlib.import_module(f"experiments.{name}").get_config()
        config.model.remat = False
        flops, parameters = operations(from_dict(config), (side, side, 3))
        print(
            f"\n{name}: {parameters:,} parameters, {flops / 1e9:,.1f} GFLOP per image and step, "
            f"{per_device} images per device, {share:.0%} of the peak rate (assumed)"
        )
        for machine in MACHINES:
            N = machine.num_devices
            compute = per_device * flops / (share * machine.flops)
            sent = 2 * (N - 1) / N * 4 * parameters
            communication = sent / (LINK_SHARE * machine.link)
            worst = compute / (compute + communication)
            best = compute / max(compute, communication)
            print(
                f"{machine.name:40} batch {N * per_device:5}  compute {compute * 1e3:6.1f} ms  "
                f"communication {communication * 1e3:5.1f} ms  "
                f"efficiency {worst:4.0%} to {best:4.0%}  "
                f"images/s {N * per_device * worst / compute:9,.0f} without overlap"
            )


if __name__ == "__main__":
    main()
