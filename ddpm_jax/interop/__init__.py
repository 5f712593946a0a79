"""Runs of other libraries as ours, ours as theirs, and samplers that need no library of ours."""

from ddpm_jax.interop.diffusers import from_diffusers, to_diffusers
from ddpm_jax.interop.openai import from_openai
from ddpm_jax.interop.stablehlo import to_stablehlo

__all__ = ["from_diffusers", "from_openai", "to_diffusers", "to_stablehlo"]
