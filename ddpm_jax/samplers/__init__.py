"""Samplers: pairs of pure functions, `init` and `advance`, and the one loop that calls them."""

from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.base import Noise, Sampler, normal, predicted_x_0, sample_loop
from ddpm_jax.samplers.ddim import ddim, ddim_inversion, encode
from ddpm_jax.samplers.dpm_solver import dpm_solver_pp_2m, dpm_solver_pp_2s, dpm_solver_pp_3m
from ddpm_jax.samplers.edm import euler, heun
from ddpm_jax.samplers.predictor_corrector import predictor_corrector
from ddpm_jax.samplers.unipc import unipc

__all__ = [
    "Noise",
    "Sampler",
    "ancestral",
    "ddim",
    "ddim_inversion",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_2s",
    "dpm_solver_pp_3m",
    "encode",
    "euler",
    "heun",
    "normal",
    "predicted_x_0",
    "predictor_corrector",
    "sample_loop",
    "unipc",
]
