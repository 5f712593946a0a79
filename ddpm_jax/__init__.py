"""Denoising diffusion in JAX: a process, a denoiser, a sampler, and functions between them.

process = ddpm_jax.make_process(ddpm_jax.schedules.linear(1000))
sampler = ddpm_jax.samplers.ancestral(process)
sample = ddpm_jax.make_sample(process, model.apply, shape=(32, 32, 3), sampler=sampler)
images = sample(params, jax.random.key(0), 16)

ddpm_jax.train(config, "runs/digits")          # what `python -m experiments.train` does
sample, params = ddpm_jax.load("runs/digits")  # of a run that was trained
"""

from typing import Any

from ddpm_jax import (
    editing,
    guidance,
    losses,
    predictions,
    samplers,
    schedules,
    timesteps,
    variance,
)
from ddpm_jax.denoise import make_denoise_fn
from ddpm_jax.errors import UserError
from ddpm_jax.losses import denoising_loss
from ddpm_jax.process import (
    GaussianProcess,
    make_process,
    q_mean_variance,
    q_one_step,
    q_posterior,
    q_sample,
    respace,
    snr,
)
from ddpm_jax.sampling import make_sample, sample_in_chunks
from ddpm_jax.types import Prediction

__version__ = "0.1.0"

__all__ = [
    "GaussianProcess",
    "Prediction",
    "UserError",
    "denoising_loss",
    "editing",
    "guidance",
    "interop",
    "load",
    "losses",
    "make_denoise_fn",
    "make_process",
    "make_sample",
    "predictions",
    "q_mean_variance",
    "q_one_step",
    "q_posterior",
    "q_sample",
    "respace",
    "sample_in_chunks",
    "samplers",
    "schedules",
    "snr",
    "timesteps",
    "train",
    "variance",
]


def __getattr__(name: str) -> Any:
    """Import `load`, `train` and `interop` when they are first asked for.

    `load` needs Flax and Orbax, the others optax and TFDS too; the mathematics needs none of them.
    """
    if name == "load":
        from ddpm_jax.runs import load

        return load
    if name == "train":
        from ddpm_jax.training.loop import train

        return train
    if name == "interop":
        import ddpm_jax.interop as interop

        return interop
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
