"""The chain of a config: its schedule is fixed, or learned together with the network.

A `Chain` holds everything that depends on this choice. It has two constructors: `fixed` and
`learned`. No other code asks which of them a run uses.

A learned schedule (`likelihood.continuous`) has its own parameters. The parameters of the run are
then {"model": the network's, "schedule": the schedule's}. One optimiser trains both.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import time_samplers
from ddpm_jax.build import loss, processes
from ddpm_jax.build.sampling import chain_sample_fn, grid
from ddpm_jax.config import Config
from ddpm_jax.config_checks import check_unused
from ddpm_jax.errors import unknown
from ddpm_jax.likelihood import continuous
from ddpm_jax.models import Model
from ddpm_jax.models.noise_schedule import make_gamma, table
from ddpm_jax.predictions import KINDS
from ddpm_jax.process import GaussianProcess
from ddpm_jax.time_samplers import TimeSampler
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey


class Chain(NamedTuple):
    """Everything that depends on whether the schedule is fixed or learned.

    Attributes:
      joint: network -> a model. Its `init` returns the parameters of the run, its `apply` takes the
        parameters of the network.
      time_sampler: draws the times of training.
      held_out_times: draws the times of the held-out loss. They follow the same distribution during
        the whole run, so that its values can be compared.
      loss: apply_fn -> the loss per example, (params, x_0, t, eps, cond, train, key) -> [B], where
        params are the parameters of the run. It raises `UserError` for options that do not fit.
      initial: () -> the process before training.
      split: parameters of the run -> (the process, the parameters of the network). The parameters
        may be on the host or on any devices.
      decoder: the decoder of L_0 in the bound (`likelihood.step_term`).
    """

    joint: Callable[[Model], Model]
    time_sampler: TimeSampler
    held_out_times: TimeSampler
    loss: Callable[[ApplyFn], Callable[..., Array]]
    initial: Callable[[], GaussianProcess]
    split: Callable[[Params], tuple[GaussianProcess, Params]]
    decoder: str


def make_chain(config: Config) -> Chain:
    """Build the chain of a config.

    Raises:
      UserError: an unknown loss.kind, schedule or time sampler, or an option that is out of its
        range or that the schedule does not use.
    """
    if config.loss.kind not in KINDS:
        raise unknown("loss.kind", config.loss.kind, KINDS)
    processes.check(config.process)
    return {"learned": learned}.get(config.process.schedule, fixed)(config)


def fixed(config: Config) -> Chain:
    """Build the chain of a fixed schedule, which a formula gives."""
    process, T = processes.process(config.process), config.process.num_timesteps
    return Chain(
        joint=lambda network: network,
        time_sampler=loss.time_sampler(config.loss, T),
        held_out_times=time_samplers.uniform(T),
        loss=lambda apply_fn: loss.loss_fn(config, process, apply_fn),
        initial=lambda: process,
        split=lambda params: (process, params),
        decoder="posterior",
    )


def learned(config: Config) -> Chain:
    """Build the chain of a learned schedule, trained on the bound in continuous time."""
    c, T = config.process, config.process.num_timesteps
    gamma, gamma_range = make_gamma(c.gamma_min, c.gamma_max), (c.gamma_min, c.gamma_max)

    def joint(network: Model) -> Model:
        def init(key: PRNGKey) -> Params:
            model_key, schedule_key = jax.random.split(key)
            return {"model": network.init(model_key), "schedule": gamma.init(schedule_key)}

        return Model(init, network.apply)

    def process_of(schedule: Params) -> GaussianProcess:
        found = table(gamma, jax.device_get(schedule), T)
        return continuous.process_from_gamma(np.asarray(found), gamma_range)

    def draw(state: tuple[()], key: PRNGKey, batch_size: int) -> tuple[Array, Array]:
        return continuous.sample_antithetic(key, batch_size, T), jnp.ones(batch_size)

    def bound(apply_fn: ApplyFn) -> Callable[..., Array]:
        who = "a learned schedule, trained on the bound in continuous time,"
        check_unused(config.loss, ("weighting", "objective", "t_sampler"), who)
        check_unused(config.model, ("learn_variance",), who)

        def loss_fn(params, x_0, t, eps, cond, train, key):
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
                told=gamma_range,
                train=train,
                key=key,
            )
            return terms.diffusion + terms.prior + terms.reconstruction

        return loss_fn

    times = TimeSampler(tuple, draw, lambda state, t, loss: state)
    return Chain(
        joint=joint,
        time_sampler=times,
        held_out_times=times,
        loss=bound,
        initial=lambda: process_of(gamma.init(jax.random.key(0))),
        split=lambda params: (process_of(params["schedule"]), params["model"]),
        decoder="discrete",  # the training trains the decoder at x_1 only
    )


def sample_fn(config: Config, network: Model, image_shape: tuple[int, int, int]) -> Callable:
    """Build `sample(params, key, n, cond=None, *, start=0)`, where params are those of a run.

    The process is an argument of the compiled program. Other parameters do not compile it again.

    Args:
      config: the config.
      network: the network, without the parameters of the schedule.
      image_shape: (H, W, C) of what the network sees: images, or latents.

    Raises:
      UserError: a name in the config is unknown, or an option does not fit.
    """
    chain = make_chain(config)
    draw = chain_sample_fn(config, chain.initial(), network, image_shape)

    def sample(
        params: Params, key: PRNGKey, n: int, cond: Conditioning | None = None, *, start: int = 0
    ) -> Array:
        process, own = chain.split(params)
        timesteps = grid(config.sample, process)
        return draw(process, timesteps, own, key, n, cond, start=start)

    return sample
