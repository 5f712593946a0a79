"""From a config to functions: the only place where the names in a config meet code.

One dict literal for each kind of name (schedules, grids, samplers, weightings, dtypes). A new
sampler is its file and one row of the table in `build/sampling.py`.
"""

from ddpm_jax.build.network import classifier, model
from ddpm_jax.build.processes import SCHEDULES, process
from ddpm_jax.build.sampling import (
    GRIDS,
    SAMPLER_OPTIONS,
    SAMPLERS,
    denoiser,
    grid,
    sample_fn,
    sampler,
)

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "SAMPLER_OPTIONS",
    "SCHEDULES",
    "classifier",
    "denoiser",
    "grid",
    "model",
    "process",
    "sample_fn",
    "sampler",
]
