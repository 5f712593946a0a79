"""From a config to functions: only this package maps the names in a config to code.

Each kind of name (schedules, grids, samplers, weightings, dtypes) has one dict literal. A new
sampler needs its own file and one row of the table in `build/sampling.py`. `build/chain.py` decides
whether the schedule is fixed or learned.
"""

from ddpm_jax.build.autoencoders import autoencoder, discriminator
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
    "autoencoder",
    "classifier",
    "denoiser",
    "discriminator",
    "grid",
    "make_chain",
    "model",
    "process",
    "sample_fn",
    "sampler",
]
