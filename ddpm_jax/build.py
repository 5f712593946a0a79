"""Where configs meet functions: the only tables of names; a new sampler is one line here."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddpm_jax import guides, samplers, schedules, timesteps
from ddpm_jax.api import make_sample
from ddpm_jax.config import Config, ModelConfig, ProcessConfig, SampleConfig
from ddpm_jax.errors import UserError, look_up, unknown
from ddpm_jax.guidance import Denoiser, make_guided_denoise_fn
from ddpm_jax.models import Classifier, Model, UNet, as_model
from ddpm_jax.process import GaussianProcess, make_process
from ddpm_jax.samplers.base import Collect, Sampler
from ddpm_jax.samplers.edm import MAX_GAMMA

SCHEDULES = {
    "linear": lambda c: schedules.linear(c.num_timesteps, c.beta_1 or None, c.beta_T or None),
    "quadratic": lambda c: schedules.quadratic(c.num_timesteps, c.beta_1 or None, c.beta_T or None),
    "sigmoid": lambda c: schedules.sigmoid(c.num_timesteps, c.beta_1 or None, c.beta_T or None),
    "constant": lambda c: schedules.constant(c.num_timesteps, c.beta_T or None),
    "cosine": lambda c: schedules.cosine(c.num_timesteps),
}
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
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def process(config: ProcessConfig) -> GaussianProcess:
    """Build the forward process of `config.process`, of a schedule that is not learned."""
    if config.schedule == "learned":
        raise UserError(
            "process.schedule is learned, so its chain is known only of a trained run "
            f"(ddpm_jax.load); here, take one of {', '.join(SCHEDULES)}"
        )
    for name in ("gamma_min", "gamma_max"):
        if getattr(config, name) != getattr(ProcessConfig, name):
            raise UserError(
                f"process.{name} is {getattr(config, name)}, but the {config.schedule} schedule "
                f"does not use it (learned: yes); leave it at {getattr(ProcessConfig, name)}"
            )
    betas = look_up(SCHEDULES, "process.schedule", config.schedule)(config)
    for name in {"cosine": ["beta_1", "beta_T"], "constant": ["beta_1"]}.get(config.schedule, []):
        if getattr(config, name):
            raise UserError(
                f"process.{name} is {getattr(config, name)}, but the {config.schedule} schedule "
                "does not use it; leave it at 0"
            )
    return make_process(schedules.zero_terminal_snr(betas) if config.zero_terminal_snr else betas)


def model(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """Build the network of `config.model` for images (H, W, C) of `num_classes` classes."""
    _check_name(config, "unet", "a denoiser is wanted here (classifiers: --classifier)")
    if config.class_conditional and not num_classes:
        raise UserError(
            "model.class_conditional is True, but the data have no labels; put the images into one "
            "sub-folder per class, or set it to False"
        )
    unet = UNet(
        out_channels=image_shape[-1] * (2 if config.learn_variance else 1),
        num_classes=num_classes if config.class_conditional else 0,
        image_channels=image_shape[-1] if config.super_resolution else 0,
        fourier_features=config.fourier_features,
        embedding_dim=config.embedding_dim,
        context_dim=config.context_dim,
        **_sizes(config),
    )
    unet.check_sizes(image_shape[:2])
    return as_model(unet, image_shape)


def classifier(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """Build the classifier of `config.model`: its `apply` returns logits [B, num_classes]."""
    _check_name(config, "classifier", "a classifier is wanted here (denoisers: experiments.train)")
    if not num_classes:
        raise UserError(
            "a classifier needs labels, but the data have none; one sub-folder per class gives them"
        )
    UNet(**_sizes(config)).check_sizes(image_shape[:2])
    return as_model(Classifier(num_classes=num_classes, **_sizes(config)), image_shape)


def _check_name(config: ModelConfig, wanted: str, why: str) -> None:
    """Refuse a network of the other sort."""
    if config.name not in ("unet", "classifier"):
        raise unknown("model.name", config.name, ["unet", "classifier"])
    if config.name != wanted:
        raise UserError(f"model.name is {config.name!r}, but {why}")


def _sizes(config: ModelConfig) -> dict:
    """Return what the U-Net and the classifier have in common."""
    return dict(
        channels=config.channels,
        channel_multipliers=config.channel_multipliers,
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=config.attention_resolutions,
        num_heads=config.num_heads,
        dropout=config.dropout,
        num_groups=config.num_groups,
        scale_shift=config.scale_shift,
        dtype=look_up(DTYPES, "model.dtype", config.dtype),
        remat=config.remat,
        remat_keep=config.remat_keep,
    )


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
        guidance=guides.from_config(config, process),
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

    With a classifier, its guidance comes on top (`guides.with_classifier`). `collect` and
    `num_frames` keep something along the way, such as `samplers.predicted_x_0`.
    """
    c, guide = config.sample, guides.from_config(config, process)
    if c.variance == "learned_range" and not config.model.learn_variance:
        raise UserError(
            "sample.variance is learned_range, but model.learn_variance is False: the network does "
            "not say its variance; take fixed_small or fixed_large"
        )
    if classifier is not None:
        guide = guides.with_classifier(config, process, classifier, scale)
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
