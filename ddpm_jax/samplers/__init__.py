"""Samplers: pure (init, step) pairs, and the one loop that drives them."""

from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.base import Sampler, sample_loop

SAMPLERS = {"ancestral": ancestral}

__all__ = ["SAMPLERS", "Sampler", "ancestral", "sample_loop"]
