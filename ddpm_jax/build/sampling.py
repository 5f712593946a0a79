"""The sampler, the grid of timesteps and the sampling function that a config asks for."""

import functools
import math
from typing import Any

import numpy as np

from ddpm_jax import timesteps
from ddpm_jax.build.guidance import from_config, with_classifier
from ddpm_jax.config import Config, SampleConfig
from ddpm_jax.config_checks import Choice, choose
from ddpm_jax.errors import UserError
from ddpm_jax.guidance import Denoiser, make_guided_denoise_fn
from ddpm_jax.models import Model
from ddpm_jax.predictions import check_kind
from ddpm_jax.process import GaussianProcess
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.base import Collect, Sampler
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.dpm_solver import dpm_solver_pp_2m, dpm_solver_pp_2s, dpm_solver_pp_3m
from ddpm_jax.samplers.edm import MAX_GAMMA, euler, heun
from ddpm_jax.samplers.predictor_corrector import predictor_corrector
from ddpm_jax.samplers.unipc import unipc
from ddpm_jax.sampling import make_chain_sample

GRIDS = {  # functions of the process, the number of steps and `config.sample`
    "uniform": Choice(lambda process, n, c: timesteps.uniform(process.num_timesteps, n)),
    "trailing": Choice(lambda process, n, c: timesteps.trailing(process.num_timesteps, n)),
    "quadratic": Choice(lambda process, n, c: timesteps.quadratic(process.num_timesteps, n)),
    "karras": Choice(lambda process, n, c: timesteps.karras(process.log_snr, n, c.rho), ("rho",)),
    "log_snr": Choice(lambda process, n, c: timesteps.log_snr_uniform(process.log_snr, n)),
}
CHURN = ("s_churn", "s_min", "s_max", "s_noise")
SAMPLERS = {  # functions of the process and of `config.sample`, and the options that they read
    "ancestral": Choice(lambda process, c: ancestral(process, c.variance), ("variance",)),
    "ddim": Choice(lambda process, c: ddim(process, c.eta), ("eta",)),
    "euler": Choice(lambda process, c: euler(process, **_churn(process, c)), CHURN),
    "heun": Choice(lambda process, c: heun(process, **_churn(process, c)), CHURN),
    "dpm_solver_pp_2m": Choice(
        lambda process, c: dpm_solver_pp_2m(process, c.stochastic), ("stochastic",)
    ),
    "dpm_solver_pp_3m": Choice(lambda process, c: dpm_solver_pp_3m(process)),
    "dpm_solver_pp_2s": Choice(lambda process, c: dpm_solver_pp_2s(process)),
    "unipc": Choice(lambda process, c: unipc(process, c.order), ("order",)),
    "predictor_corrector": Choice(
        lambda process, c: predictor_corrector(
            process, c.variance, c.corrector_snr, c.num_corrections
        ),
        ("variance", "corrector_snr", "num_corrections"),
    ),
}


def sampler(config: SampleConfig, process: GaussianProcess) -> Sampler:
    """Build the sampler of `config.sample`.

    Raises:
      UserError: no such sampler, or an option is set that it does not use or cannot take.
    """
    return choose(SAMPLERS, config, "sampler")(process, config)


def without_sampler_options(config: SampleConfig) -> dict[str, Any]:
    """Return the defaults of all options that belong to some sampler."""
    names = {option for row in SAMPLERS.values() for option in row.options}
    return {name: getattr(type(config), name) for name in names}


def grid(config: SampleConfig, process: GaussianProcess) -> np.ndarray:
    """Build the timesteps of `config.sample`: [K+1] int32, descending from T to 0.

    Raises:
      UserError: no such grid, or an option is set that it does not use or cannot take.
    """
    build_grid = choose(GRIDS, config, "timesteps")
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
    **options: Any,
) -> Any:
    """Build `sample(params, key, n, cond=None)` as `config.sample` says (`make_sample`).

    Arguments as in `chain_sample_fn`.
    """
    draw = chain_sample_fn(config, process, model, image_shape, **options)
    return functools.partial(draw, process, grid(config.sample, process))


def chain_sample_fn(
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
    """Build `draw(process, timesteps, params, key, n, cond=None)` (`make_chain_sample`).

    It serves every process of the same T without compiling again.

    Args:
      config: the config.
      process: one of these processes, to check the config on.
      model: the network.
      image_shape: (H, W, C).
      classifier: a classifier whose guidance comes on top (`build.guidance.with_classifier`).
      scale: weight of the classifier's guidance.
      collect, num_frames: what to keep along the way, such as `samplers.predicted_x_0`.

    Raises:
      UserError: a name or an option in the config that cannot be.
    """
    c, guide = config.sample, from_config(config, process)
    if c.variance == "learned_range" and not config.model.learn_variance:
        raise UserError(
            "sample.variance is learned_range, but model.learn_variance is False: the network does "
            "not say its variance; take fixed_small or fixed_large"
        )
    if classifier is not None:
        guide = with_classifier(config, process, classifier, scale)
    check_kind(process, config.loss.kind)
    grid(c, process)
    return make_chain_sample(
        model.apply,
        shape=image_shape,
        sampler=sampler(c, process),
        kind=config.loss.kind,
        clip_x_0=c.clip_x_0,
        guidance=guide,
        percentile=c.dynamic_threshold,
        collect=collect,
        num_frames=num_frames,
    )
