"""Where configs meet functions: each section of the config becomes the object that it names.

The only tables of names; a new schedule, sampler or grid is one line here.
"""

import functools

import jax.numpy as jnp

from ddpm_jax import guides, losses, schedules, timesteps
from ddpm_jax.api import make_sample
from ddpm_jax.config import Config, LossConfig, ModelConfig, ProcessConfig
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.guidance import Denoiser, make_guided_denoise_fn
from ddpm_jax.models import Classifier, Model, UNet, as_model
from ddpm_jax.predictions import check_kind
from ddpm_jax.process import GaussianProcess, make_process
from ddpm_jax.samplers import ancestral

SCHEDULES = {
    "linear": lambda c: schedules.linear(c.num_timesteps, c.beta_1 or None, c.beta_T or None),
    "quadratic": lambda c: schedules.quadratic(c.num_timesteps, c.beta_1 or None, c.beta_T or None),
    "sigmoid": lambda c: schedules.sigmoid(c.num_timesteps, c.beta_1 or None, c.beta_T or None),
    "constant": lambda c: schedules.constant(c.num_timesteps, c.beta_T or None),
    "cosine": lambda c: schedules.cosine(c.num_timesteps),
}
WEIGHTINGS = {
    "simple": lambda c: losses.simple,
    "vlb": lambda c: losses.vlb,
    "min_snr": lambda c: functools.partial(losses.min_snr, gamma=c.min_snr_gamma),
    "p2": lambda c: functools.partial(losses.p2, k=c.p2_k, gamma=c.p2_gamma),
}
TIME_SAMPLERS = {"uniform": timesteps.sample_uniform, "stratified": timesteps.sample_stratified}
GRIDS = {
    "uniform": timesteps.uniform,
    "trailing": timesteps.trailing,
    "quadratic": timesteps.quadratic,
}
SAMPLERS = {"ancestral": lambda process, c: ancestral(process, c.variance)}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def _look_up(table: dict, key: str, name: str):
    """Return the entry of a table, or say which names it has."""
    if name not in table:
        raise unknown(key, name, table)
    return table[name]


def process(config: ProcessConfig) -> GaussianProcess:
    """Build the forward process of `config.process`."""
    betas = _look_up(SCHEDULES, "process.schedule", config.schedule)(config)
    unused = {"cosine": ["beta_1", "beta_T"], "constant": ["beta_1"]}
    for name in unused.get(config.schedule, []):
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
            "sub-folder per class, or set model.class_conditional=False"
        )
    unet = UNet(
        out_channels=image_shape[-1],
        num_classes=num_classes if config.class_conditional else 0,
        **_sizes(config),
    )
    unet.check_sizes(image_shape[:2])
    return as_model(unet, image_shape)


def classifier(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """Build the classifier of `config.model`: its `apply` returns logits [B, num_classes]."""
    _check_name(config, "classifier", "a classifier is wanted here (denoisers: experiments.train)")
    if not num_classes:
        raise UserError(
            "a classifier needs labels, but the data have none; put the images into one "
            "sub-folder per class"
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
        dtype=_look_up(DTYPES, "model.dtype", config.dtype),
        remat=config.remat,
    )


def time_sampler(config: LossConfig, num_timesteps: int):
    """Build the draw of training times: (key, batch_size) -> int32 [B] in {1..T}."""
    draw = _look_up(TIME_SAMPLERS, "loss.t_sampler", config.t_sampler)
    return functools.partial(draw, T=num_timesteps)


def loss_fn(config: LossConfig, process: GaussianProcess, model: Model):
    """Build the loss per example: (params, x_0, t, eps, cond, train, key) -> [B]."""
    check_kind(process, config.kind)
    weighting = _look_up(WEIGHTINGS, "loss.weighting", config.weighting)(config)

    def loss(params, x_0, t, eps, cond, train, key):
        return losses.denoising_loss(
            process,
            model.apply,
            params,
            x_0,
            t,
            eps,
            cond,
            kind=config.kind,
            weighting=weighting,
            train=train,
            key=key,
        )

    return loss


def denoiser(config: Config, process: GaussianProcess, model: Model) -> Denoiser:
    """Build (params, cond) -> DenoiseFn, guided and clipped as `config.sample` says."""

    def build_denoise_fn(params, cond):
        return make_guided_denoise_fn(
            process,
            model.apply,
            params,
            cond,
            kind=config.loss.kind,
            guidance=guides.from_config(config, process),
            clip_x_0=config.sample.clip_x_0,
            percentile=config.sample.dynamic_threshold,
        )

    return build_denoise_fn


def sample_fn(
    config: Config,
    process: GaussianProcess,
    model: Model,
    image_shape: tuple[int, int, int],
    *,
    classifier: Model | None = None,
    scale: float = 1.0,
):
    """Build `sample(params, key, n, cond=None)` as `config.sample` says (`make_sample`).

    With a classifier, its guidance comes on top (`guides.with_classifier`).
    """
    guide = guides.from_config(config, process)
    if classifier is not None:
        guide = guides.with_classifier(config, process, classifier, scale)
    T = process.num_timesteps
    grid = _look_up(GRIDS, "sample.timesteps", config.sample.timesteps)
    return make_sample(
        process,
        model.apply,
        shape=image_shape,
        sampler=_look_up(SAMPLERS, "sample.sampler", config.sample.sampler)(process, config.sample),
        kind=config.loss.kind,
        clip_x_0=config.sample.clip_x_0,
        guidance=guide,
        percentile=config.sample.dynamic_threshold,
        timesteps=grid(T, config.sample.num_steps or T),
    )
