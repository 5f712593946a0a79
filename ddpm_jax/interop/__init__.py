"""Runs of other libraries as ours, and ours as theirs."""

from ddpm_jax.interop.diffusers import from_diffusers, to_diffusers

__all__ = ["from_diffusers", "to_diffusers"]
