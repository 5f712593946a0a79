"""Samplers: pure (init, step) pairs, and the one loop that drives them."""

from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.base import Sampler, sample_loop

__all__ = ["Sampler", "ancestral", "sample_loop"]
