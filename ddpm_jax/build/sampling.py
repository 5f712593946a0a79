"""The sampler, the grid of timesteps and the sampling function of a config.

A new sampler needs its own file in `samplers/` and a row of `SAMPLERS`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax import timesteps
from ddpm_jax.build import latents
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
from ddpm_jax.sampling import CondAt, make_chain_sample, make_walk
from ddpm_jax.types import Array, Conditioning, Params, PRNGKey

GRIDS = {  # functions of the process, the number of steps and `config.sample`
    "uniform": Choice(lambda process, n, c: timesteps.uniform(process.num_timesteps, n)),
    "trailing": Choice(lambda process, n, c: timesteps.trailing(process.num_timesteps, n)),
    "leading": Choice(lambda process, n, c: timesteps.leading(process.num_timesteps, n)),
    "quadratic": Choice(lambda process, n, c: timesteps.quadratic(process.num_timesteps, n)),
    "karras": Choice(lambda process, n, c: timesteps.karras(process.log_snr, n, c.rho), ("rho",)),
    "log_snr": Choice(lambda process, n, c: timesteps.log_snr_uniform(process.log_snr, n)),
}
CHURN = ("s_churn", "s_min", "s_max", "s_noise")
SAMPLERS = {  # functions of the process and of `config.sample`, with the options that they read
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
      UserError: the sampler is unknown, or an option is out of its range or not used by this
        sampler.
    """
    return choose(SAMPLERS, config, "sampler")(process, config)


def without_sampler_options(config: SampleConfig) -> dict[str, Any]:
    """Return {option: default} of the options that only some samplers use."""
    names = {option for row in SAMPLERS.values() for option in row.options}
    return {name: getattr(type(config), name) for name in names}


def grid(config: SampleConfig, process: GaussianProcess) -> np.ndarray:
    """Build the timesteps of `config.sample`: [K+1] int32, descending from T to 0.

    num_steps = 0 is one step for every timestep.

    Raises:
      UserError: the grid is unknown, or an option is out of its range or not used by this grid.
    """
    build_grid = choose(GRIDS, config, "timesteps")
    return build_grid(process, config.num_steps or process.num_timesteps, config)


def _churn(process: GaussianProcess, config: SampleConfig) -> dict[str, float]:
    """Return the options of churn: γ = S_churn / num_steps, capped at √2 - 1, and its limits.

    (Karras et al. 2022, algorithm 2.) s_max = 0 is no upper limit.
    """
    gamma = config.s_churn / (config.num_steps or process.num_timesteps)
    return dict(
        gamma=min(gamma, MAX_GAMMA),
        s_min=config.s_min,
        s_max=config.s_max or math.inf,
        s_noise=config.s_noise,
    )


def denoiser(config: Config, process: GaussianProcess, model: Model) -> Denoiser:
    """Build (params, cond) -> DenoiseFn, with the guidance and clipping of `config.sample`."""
    return functools.partial(
        make_guided_denoise_fn,
        process,
        model.apply,
        kind=config.loss.kind,
        guidance=from_config(config, process),
        clip_x_0=latents.clip(config),
        percentile=config.sample.dynamic_threshold,
    )


def sample_fn(
    config: Config,
    process: GaussianProcess,
    model: Model,
    image_shape: tuple[int, int, int],
    **options: Any,
) -> Any:
    """Build `sample(params, key, n, cond=None)` of `config.sample` (as in `make_sample`).

    Arguments and errors as in `chain_sample_fn`.
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
    cond_at: CondAt | None = None,
) -> Any:
    """Build `draw(process, timesteps, params, key, n, cond=None)` (`make_chain_sample`).

    One compiled program serves every process with the same T.

    Args:
      config: the config.
      process: one of these processes; the config is checked against it.
      model: the network.
      image_shape: (H, W, C) of what the network sees: images, or latents.
      classifier: a classifier that guides in addition (`build.guidance.with_classifier`), or None.
      scale: weight of the classifier's guidance, at least 0.
      collect, num_frames: as in `samplers.sample_loop`, for instance `samplers.predicted_x_0`.
      cond_at: as in `make_sample`, for instance `novel_views.random_view`.

    Raises:
      UserError: a name in the config is unknown, or an option does not fit.
    """
    guide = from_config(config, process)
    if classifier is not None:
        guide = with_classifier(config, process, classifier, scale)
    return make_chain_sample(
        model.apply,
        shape=image_shape,
        guidance=guide,
        collect=collect,
        num_frames=num_frames,
        cond_at=cond_at,
        **_chain_options(config, process),
    )


def walk_fn(
    config: Config, process: GaussianProcess, model: Model, image_shape: tuple[int, int, int]
) -> Callable[..., Array]:
    """Build `walk(params, key, index, cond=None, guidance=None)`: x_0 of the numbers `index`.

    It is `sample_fn` as a JAX function that is not compiled yet (`sampling.make_walk`). `guidance`
    is a weight w that may be traced; it replaces `config.sample.guidance`.

    Arguments and errors as in `chain_sample_fn`.
    """
    from_config(config, process)  # raises the errors of the guidance
    options, timesteps = _chain_options(config, process), grid(config.sample, process)

    def walk(
        params: Params,
        key: PRNGKey,
        index: Array,
        cond: Conditioning | None = None,
        guidance: Array | None = None,
    ) -> Array:
        guide = from_config(config, process, guidance)
        draw = make_walk(model.apply, shape=image_shape, guidance=guide, **options)
        return draw(process, timesteps, params, key, index, cond)

    return walk


def _chain_options(config: Config, process: GaussianProcess) -> dict[str, Any]:
    """Return the options of `make_walk` that the config decides, except guidance and shape."""
    c = config.sample
    if c.variance == "learned_range" and not config.model.learn_variance:
        raise UserError(
            "sample.variance is learned_range, but model.learn_variance is False: the network does "
            "not predict its variance; set sample.variance to fixed_small or fixed_large"
        )
    check_kind(process, config.loss.kind)
    grid(c, process)
    return dict(
        sampler=sampler(c, process),
        kind=config.loss.kind,
        clip_x_0=latents.clip(config),
        percentile=c.dynamic_threshold,
    )
