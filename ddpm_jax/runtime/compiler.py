"""Compiler options for XLA's CPU backend, one set per kind of program; other backends get none.

The options are passed to `jax.jit(..., compiler_options=...)`. So importing the library changes no
flag of the process. The times below: two cores, jax 0.10.2, 2026-11-23.
"""

import functools
from typing import Any

import jax
import numpy as np

from ddpm_jax.runtime.platform import platform

# Kinds of programs: with a network, with a wide network, a program that runs only once.
NETWORK, WIDE, ONCE = "network", "wide", "once"

# The operations that the library YNNPACK computes, instead of Eigen and generated loops.
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_OPTIONS: dict[str, dict[str, str | int]] = {
    # No operation. With YNNPACK's convolutions the digits' train step takes 254 ms instead of 133.
    # A sampling step of 64 images takes 71 ms instead of 33.
    NETWORK: {_LIBRARY: ""},
    # Matrix products and sums. With them CIFAR-10's train step takes 0.83 times as long (median of
    # 10 rounds, 2026-11-25). The sums give most of this, but with sums only the digits' train step
    # takes 1.1 times as long.
    WIDE: {_LIBRARY: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"},
    # Little optimisation. The initial weights of a tiny network compile in 3 s instead of 12 (one
    # run of each, on busy cores).
    ONCE: {"xla_backend_optimization_level": 1},
}


def of_network(params: Any) -> str:
    """Return the kind of a network's train step and sampler: WIDE above 10 million parameters.

    Two networks were measured, of 1.0 and 35.7 million parameters. The limit between them is a
    guess.

    Args:
      params: the parameters, a tree of arrays.
    """
    return WIDE if sum(map(np.size, jax.tree.leaves(params))) > 10_000_000 else NETWORK


def options(name: str) -> dict[str, str | int]:
    """Return the `compiler_options` for a kind of program.

    They are empty if the platform is not the CPU, or if this XLA does not know the option.

    Args:
      name: NETWORK, WIDE or ONCE.
    """
    return _of_cpu(name) if platform() == "cpu" else {}


@functools.cache
def _of_cpu(name: str) -> dict[str, str | int]:
    found = _OPTIONS[name]
    try:
        jax.jit(lambda: 0, compiler_options=found).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return found
