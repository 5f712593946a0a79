"""What XLA's CPU backend is told, program by program; other backends are told nothing.

The options are given to `jax.jit(..., compiler_options=...)`, so importing the library changes no
flag of the process. Measured on two cores with jax 0.10.2, 2026-11-23.
"""

import functools

import jax

# Convolutions by Eigen and not by YNNPACK: with the digits' network a train step takes 133 ms
# instead of 254, and a step of sampling 64 images 33 ms instead of 71.
NETWORK = "xla_cpu_experimental_ynn_fusion_type"
# Little optimisation of what runs once: a tiny network's initial weights compiled in 3 s, not 12
# (one run of each, on busy cores).
ONCE = "xla_backend_optimization_level"

_VALUES = {NETWORK: "", ONCE: 1}


@functools.cache
def options(name: str) -> dict[str, str | int]:
    """Return `compiler_options` for a kind of program, NETWORK or ONCE.

    Empty where the default backend is not the CPU, and where this XLA does not know the option.
    """
    if jax.default_backend() != "cpu":
        return {}
    found = {name: _VALUES[name]}
    try:
        jax.jit(lambda: 0, compiler_options=found).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return found
