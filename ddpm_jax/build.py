"""Where configs meet functions: each section of the config becomes the object that it names.

The only tables of names; a new schedule, sampler or grid is one line here.
"""

import functools

import jax.numpy as jnp

from ddpm_jax import losses, schedules, timesteps
from ddpm_jax.api import make_sample
from ddpm_jax.config import Config, LossConfig, ModelConfig, ProcessConfig
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.guidance import Guide, check, classifier_free, with_null
from ddpm_jax.models import Model, UNet, as_model
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
    if config.class_conditional and not num_classes:
        raise UserError(
            "model.class_conditional is True, but the data have no labels; put the images into one "
            "sub-folder per class, or set model.class_conditional=False"
        )
    unet = UNet(
        out_channels=image_shape[-1],
        channels=config.channels,
        channel_multipliers=config.channel_multipliers,
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=config.attention_resolutions,
        num_heads=config.num_heads,
        dropout=config.dropout,
        num_groups=config.num_groups,
        scale_shift=config.scale_shift,
        num_classes=num_classes if config.class_conditional else 0,
        dtype=_look_up(DTYPES, "model.dtype", config.dtype),
        remat=config.remat,
    )
    unet.check_sizes(image_shape[:2])
    return as_model(unet, image_shape)


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


def guidance(config: Config, process: GaussianProcess) -> float | Guide:
    """Build the classifier-free guidance of `config.sample`; 0 is none.

    Raises:
      UserError: guidance of a model that has no classes or never learned the null class, numbers
        out of range, or settings of a guidance that is off.
    """
    c = config.sample
    w, interval, rescale = c.guidance, c.guidance_interval, c.guidance_rescale
    if not w:
        for name in ("guidance_interval", "guidance_rescale"):
            if getattr(c, name):
                raise UserError(
                    f"sample.{name} is {getattr(c, name)}, but sample.guidance is 0; set "
                    "sample.guidance to its weight w, for instance 1.5"
                )
        return 0.0
    if not config.model.class_conditional:
        raise UserError(
            f"sample.guidance is {w}, but the model has no classes to guide to "
            "(model.class_conditional is False); set sample.guidance=0"
        )
    if not config.loss.p_uncond:
        raise UserError(
            f"sample.guidance is {w}, but the null class is never trained (loss.p_uncond is 0); "
            "train with loss.p_uncond=0.1, or set sample.guidance=0"
        )
    if len(interval) not in (0, 2):
        raise UserError(f"sample.guidance_interval must be (low, high) or (), found {interval}")
    interval = interval or None
    check(w, interval, rescale, process.num_timesteps)

    def guide(denoiser, params, cond):
        pair_fn = denoiser(params, with_null(cond))
        return classifier_free(process, pair_fn, w, interval=interval, rescale=rescale)

    return guide


def sample_fn(
    config: Config, process: GaussianProcess, model: Model, image_shape: tuple[int, int, int]
):
    """Build `sample(params, key, n, cond=None)` as `config.sample` says (`make_sample`)."""
    T = process.num_timesteps
    grid = _look_up(GRIDS, "sample.timesteps", config.sample.timesteps)
    return make_sample(
        process,
        model.apply,
        shape=image_shape,
        sampler=_look_up(SAMPLERS, "sample.sampler", config.sample.sampler)(process, config.sample),
        kind=config.loss.kind,
        clip_x_0=config.sample.clip_x_0,
        guidance=guidance(config, process),
        percentile=config.sample.dynamic_threshold,
        timesteps=grid(T, config.sample.num_steps or T),
    )
