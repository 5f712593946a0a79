"""What XLA's CPU backend is told, program by program; other backends are told nothing.

The options are given to `jax.jit(..., compiler_options=...)`, so importing the library changes no
flag of the process. Measured on two cores with jax 0.10.2, 2026-11-23.
"""

import functools
from typing import Any

import jax
import numpy as np

# Kinds of programs: of a network, of a wide network, of what runs once.
NETWORK, WIDE, ONCE = "network", "wide", "once"

_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"  # what YNNPACK does in place of Eigen and loops
_OPTIONS: dict[str, dict[str, str | int]] = {
    # Nothing: with convolutions by YNNPACK the digits' train step takes 254 ms instead of 133, and
    # a step of sampling 64 images 71 instead of 33.
    NETWORK: {_LIBRARY: ""},
    # All but convolutions: CIFAR-10's train step takes 0.83 of its time (median of 10 rounds,
    # 2026-11-25); sums alone, which are most of it, cost the digits' step 1.1.
    WIDE: {_LIBRARY: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"},
    # Little optimisation: a tiny network's initial weights compiled in 3 s, not 12 (one run of
    # each, on busy cores).
    ONCE: {"xla_backend_optimization_level": 1},
}


def of_network(params: Any) -> str:
    """Return the kind of a network's train step and sampler, WIDE or NETWORK, by its parameters.

    The line lies somewhere between the two that were measured, of 1.0 and 35.7 million.
    """
    return WIDE if sum(map(np.size, jax.tree.leaves(params))) > 10_000_000 else NETWORK


@functools.cache
def options(name: str) -> dict[str, str | int]:
    """Return `compiler_options` for a kind of program.

    Empty where the default backend is not the CPU, and where this XLA does not know the option.
    """
    if jax.default_backend() != "cpu":
        return {}
    found = _OPTIONS[name]
    try:
        jax.jit(lambda: 0, compiler_options=found).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return found
