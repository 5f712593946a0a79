"""From a config to functions: the only place where the names in a config meet code.

One dict literal for each kind of name (schedules, grids, samplers, weightings, dtypes). A new
sampler is its file and one row of the table in `build/sampling.py`. Whether the schedule is fixed
or learned is decided in `build/chain.py`.
"""

from ddpm_jax.build.chain import Chain, make_chain
from ddpm_jax.build.network import classifier, model
from ddpm_jax.build.processes import SCHEDULES, process
from ddpm_jax.build.sampling import (
    GRIDS,
    SAMPLERS,
    denoiser,
    grid,
    sample_fn,
    sampler,
)

__all__ = [
    "Chain",
    "GRIDS",
    "SAMPLERS",
    "SCHEDULES",
    "classifier",
    "denoiser",
    "grid",
    "make_chain",
    "model",
    "process",
    "sample_fn",
    "sampler",
]
