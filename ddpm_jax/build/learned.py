"""Runs whose noise schedule is learned with the network (`process.schedule="learned"`; `likelihood.continuous`).

Their parameters are {"model": the network's, "schedule": the schedule's}, trained together by one
optimiser. What samples needs a fixed chain, which is built on the host from the schedule's
parameters: from then on a run is as any other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import build
from ddpm_jax.likelihood import continuous
from ddpm_jax.config import Config, LossConfig, ProcessConfig
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.models import Model
from ddpm_jax.models.noise_schedule import Gamma, make_gamma, table
from ddpm_jax.predictions import KINDS
from ddpm_jax.process import GaussianProcess
from ddpm_jax.time_samplers import TimeSampler
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey


def joint_model(config: ProcessConfig, network: Model) -> Model:
    """Return the network with the schedule's parameters beside its own, if the schedule is learned.

    `apply` takes the network's own parameters.
    """
    if config.schedule != "learned":
        return network
    gamma = _gamma(config)

    def init(key: PRNGKey) -> Params:
        model_key, schedule_key = jax.random.split(key)
        return {"model": network.init(model_key), "schedule": gamma.init(schedule_key)}

    return Model(init, network.apply)


def split(config: ProcessConfig, params: Params) -> tuple[GaussianProcess, Params]:
    """Return the process of a trained run, and the parameters of its network.

    Args:
      config: of the run.
      params: as `joint_model` has them, on the host or on any devices.
    """
    if config.schedule != "learned":
        return build.process(config), params
    found = table(_gamma(config), jax.device_get(params["schedule"]), config.num_timesteps)
    return continuous.process_from_gamma(np.asarray(found), _told(config)), params["model"]


def time_sampler(num_timesteps: int) -> TimeSampler:
    """Build draws of t in 1..T, float32 and evenly spaced in every batch."""

    def draw(state: tuple[()], key: PRNGKey, batch_size: int) -> tuple[Array, Array]:
        return continuous.sample_antithetic(key, batch_size, num_timesteps), jnp.ones(batch_size)

    return TimeSampler(tuple, draw, lambda state, t, loss: state)


def loss_fn(config: Config, apply_fn: ApplyFn) -> Callable[..., Array]:
    """Build the bound per example, (params, x_0, t, eps, cond, train, key) -> [B] in bits/dim.

    Raises:
      UserError: an unknown kind, or options that a learned schedule does not use.
    """
    if config.loss.kind not in KINDS:
        raise unknown("loss.kind", config.loss.kind, KINDS)
    for name in ("weighting", "objective", "t_sampler"):
        value, default = getattr(config.loss, name), getattr(LossConfig, name)
        if value != default:
            raise UserError(
                f"loss.{name} is {value!r}, but a learned schedule is trained on the bound in "
                f"continuous time alone; leave it at {default!r}, or take another process.schedule"
            )
    if config.model.learn_variance:
        raise UserError(
            "model.learn_variance is True, but in continuous time there is no variance to learn; "
            "set it to False, or take another process.schedule"
        )
    gamma, told = _gamma(config.process), _told(config.process)
    T = config.process.num_timesteps

    def loss(params, x_0, t, eps, cond, train, key):
        terms = continuous.bound_terms(
            apply_fn,
            params["model"],
            gamma.ends(params["schedule"]),
            lambda u: gamma.progress(params["schedule"], u),
            x_0,
            (t - 1.0) / (T - 1.0),
            eps,
            cond,
            kind=config.loss.kind,
            told=told,
            train=train,
            key=key,
        )
        return terms.diffusion + terms.prior + terms.reconstruction

    return loss


def sample_fn(config: Config, network: Model, image_shape: tuple[int, int, int]) -> Callable:
    """Build `sample(params, key, n, cond=None, *, start=0)` of the parameters of `joint_model`.

    Where the schedule is learned the chain is theirs, so other parameters compile anew.
    """
    if config.process.schedule != "learned":
        return build.sample_fn(config, build.process(config.process), network, image_shape)

    def build_sample(params: Params) -> Callable:
        process, _ = split(config.process, params)
        return build.sample_fn(config, process, network, image_shape)

    # A mistake in config.sample shows here, on the chain before training
    schedule = _gamma(config.process).init(jax.random.key(0))
    build_sample({"model": None, "schedule": schedule})
    kept: list[Any] = [None, None]  # the last parameters, and what samples with their chain

    def sample(
        params: Params, key: PRNGKey, n: int, cond: Conditioning | None = None, *, start: int = 0
    ) -> Array:
        if kept[0] is not params:
            kept[:] = params, build_sample(params)
        return kept[1](params["model"], key, n, cond, start=start)

    return sample


def _gamma(config: ProcessConfig) -> Gamma:
    """Build the schedule, or say which options it does not use."""
    for name in ("beta_1", "beta_T", "zero_terminal_snr"):
        if getattr(config, name):
            raise UserError(
                f"process.{name} is {getattr(config, name)}, but a learned schedule does not use "
                f"it (gamma_min and gamma_max: yes); leave it at {getattr(ProcessConfig, name)}"
            )
    return make_gamma(config.gamma_min, config.gamma_max)


def _told(config: ProcessConfig) -> tuple[float, float]:
    return config.gamma_min, config.gamma_max
