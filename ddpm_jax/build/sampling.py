"""The sampler, the grid of timesteps and the sampling function that a config asks for."""

import functools
import math
from typing import Any

import numpy as np

from ddpm_jax import samplers, timesteps
from ddpm_jax.build.guidance import from_config, with_classifier
from ddpm_jax.config import Config, SampleConfig
from ddpm_jax.errors import UserError, look_up
from ddpm_jax.guidance import Denoiser, make_guided_denoise_fn
from ddpm_jax.models import Model
from ddpm_jax.process import GaussianProcess
from ddpm_jax.samplers.base import Collect, Sampler
from ddpm_jax.samplers.edm import MAX_GAMMA
from ddpm_jax.sampling import make_sample

GRIDS = {
    "uniform": lambda process, n, c: timesteps.uniform(process.num_timesteps, n),
    "trailing": lambda process, n, c: timesteps.trailing(process.num_timesteps, n),
    "quadratic": lambda process, n, c: timesteps.quadratic(process.num_timesteps, n),
    "karras": lambda process, n, c: timesteps.karras(process.log_snr, n, c.rho),
    "log_snr": lambda process, n, c: timesteps.log_snr_uniform(process.log_snr, n),
}
SAMPLERS = {  # functions of the process and of `config.sample`
    "ancestral": lambda process, c: samplers.ancestral(process, c.variance),
    "ddim": lambda process, c: samplers.ddim(process, c.eta),
    "euler": lambda process, c: samplers.euler(process, **_churn(process, c)),
    "heun": lambda process, c: samplers.heun(process, **_churn(process, c)),
    "dpm_solver_pp_2m": lambda process, c: samplers.dpm_solver_pp_2m(process, c.stochastic),
    "dpm_solver_pp_3m": lambda process, c: samplers.dpm_solver_pp_3m(process),
    "dpm_solver_pp_2s": lambda process, c: samplers.dpm_solver_pp_2s(process),
    "unipc": lambda process, c: samplers.unipc(process, c.order),
    "predictor_corrector": lambda process, c: samplers.predictor_corrector(
        process, c.variance, c.corrector_snr, c.num_corrections
    ),
}
# Which options are whose; one that is set although nothing reads it is a mistake
SAMPLER_OPTIONS = {
    "variance": ("ancestral", "predictor_corrector"),
    "eta": ("ddim",),
    "order": ("unipc",),
    "stochastic": ("dpm_solver_pp_2m",),
    "s_churn": ("euler", "heun"),
    "s_min": ("euler", "heun"),
    "s_max": ("euler", "heun"),
    "s_noise": ("euler", "heun"),
    "corrector_snr": ("predictor_corrector",),
    "num_corrections": ("predictor_corrector",),
}


def sampler(config: SampleConfig, process: GaussianProcess) -> Sampler:
    """Build the sampler of `config.sample`."""
    built = look_up(SAMPLERS, "sample.sampler", config.sampler)(process, config)
    for name, users in SAMPLER_OPTIONS.items():
        value, default = getattr(config, name), getattr(SampleConfig, name)
        if config.sampler not in users and value != default:
            raise UserError(
                f"sample.{name} is {value}, but the {config.sampler} sampler does not use it "
                f"({', '.join(users)}: yes); leave it at {default}"
            )
    return built


def grid(config: SampleConfig, process: GaussianProcess) -> np.ndarray:
    """Build the timesteps of `config.sample`: [K+1] int32, descending from T to 0."""
    if config.timesteps != "karras" and config.rho != SampleConfig.rho:
        raise UserError(f"sample.rho is {config.rho}, but only the karras timesteps use it")
    build_grid = look_up(GRIDS, "sample.timesteps", config.timesteps)
    return build_grid(process, config.num_steps or process.num_timesteps, config)


def _churn(process: GaussianProcess, config: SampleConfig) -> dict[str, float]:
    """Return the churn of each step: S_churn / num_steps, capped (Karras et al. 2022, alg. 2)."""
    gamma = config.s_churn / (config.num_steps or process.num_timesteps)
    return dict(
        gamma=min(gamma, MAX_GAMMA),
        s_min=config.s_min,
        s_max=config.s_max or math.inf,
        s_noise=config.s_noise,
    )


def denoiser(config: Config, process: GaussianProcess, model: Model) -> Denoiser:
    """Build (params, cond) -> DenoiseFn, guided and clipped as `config.sample` says."""
    return functools.partial(
        make_guided_denoise_fn,
        process,
        model.apply,
        kind=config.loss.kind,
        guidance=from_config(config, process),
        clip_x_0=config.sample.clip_x_0,
        percentile=config.sample.dynamic_threshold,
    )


def sample_fn(
    config: Config,
    process: GaussianProcess,
    model: Model,
    image_shape: tuple[int, int, int],
    *,
    classifier: Model | None = None,
    scale: float = 1.0,
    collect: Collect | None = None,
    num_frames: int | None = None,
) -> Any:
    """Build `sample(params, key, n, cond=None)` as `config.sample` says (`make_sample`).

    With a classifier, its guidance comes on top (`build.guidance.with_classifier`). `collect` and
    `num_frames` keep something along the way, such as `samplers.predicted_x_0`.
    """
    c, guide = config.sample, from_config(config, process)
    if c.variance == "learned_range" and not config.model.learn_variance:
        raise UserError(
            "sample.variance is learned_range, but model.learn_variance is False: the network does "
            "not say its variance; take fixed_small or fixed_large"
        )
    if classifier is not None:
        guide = with_classifier(config, process, classifier, scale)
    return make_sample(
        process,
        model.apply,
        shape=image_shape,
        sampler=sampler(c, process),
        kind=config.loss.kind,
        clip_x_0=c.clip_x_0,
        guidance=guide,
        percentile=c.dynamic_threshold,
        timesteps=grid(c, process),
        collect=collect,
        num_frames=num_frames,
    )
