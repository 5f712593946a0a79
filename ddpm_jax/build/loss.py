"""The training loss of a config, and the draw of the training timesteps.

A new weighting needs a function in `losses.py` and a row of `WEIGHTINGS`.
"""

import functools
from collections.abc import Callable

from ddpm_jax import losses, time_samplers
from ddpm_jax.config import Config, LossConfig
from ddpm_jax.config_checks import Choice, choose
from ddpm_jax.errors import UserError, look_up
from ddpm_jax.predictions import check_kind
from ddpm_jax.process import GaussianProcess
from ddpm_jax.time_samplers import TimeSampler
from ddpm_jax.types import ApplyFn, Array

WEIGHTINGS = {
    "simple": Choice(lambda c: losses.simple),
    "vlb": Choice(lambda c: losses.vlb),
    "min_snr": Choice(
        lambda c: functools.partial(losses.min_snr, gamma=c.min_snr_gamma), ("min_snr_gamma",)
    ),
    "p2": Choice(
        lambda c: functools.partial(losses.p2, k=c.p2_k, gamma=c.p2_gamma), ("p2_k", "p2_gamma")
    ),
}
OBJECTIVES = {  # the argument `objective` of `losses.denoising_loss`
    "simple": Choice(lambda c: "simple"),
    "hybrid": Choice(lambda c: "hybrid", ("vlb_lambda",)),
    "vlb": Choice(lambda c: "vlb"),
}
TIME_SAMPLERS = {
    "uniform": time_samplers.uniform,
    "stratified": time_samplers.stratified,
    "loss_second_moment": time_samplers.loss_second_moment,
}


def time_sampler(config: LossConfig, num_timesteps: int) -> TimeSampler:
    """Build the draw of the training timesteps in {1..num_timesteps}.

    Raises:
      UserError: loss.t_sampler is unknown.
    """
    return look_up(TIME_SAMPLERS, "loss.t_sampler", config.t_sampler)(num_timesteps)


def loss_fn(config: Config, process: GaussianProcess, apply_fn: ApplyFn) -> Callable[..., Array]:
    """Build the loss per example: (params, x_0, t, eps, cond, train, key) -> [B] float32.

    Raises:
      UserError: a name is unknown, an option is set that nothing uses, or the objective does not
        fit the network.
    """
    c, learned = config.loss, config.model.learn_variance
    check_kind(process, c.kind)
    weighting = choose(WEIGHTINGS, c, "weighting")(c)
    objective = choose(OBJECTIVES, c, "objective")(c)
    if c.objective == "simple" and learned:
        raise UserError(
            "model.learn_variance is True, but loss.objective=simple never trains the variance; "
            "set loss.objective to hybrid or vlb"
        )
    if c.objective == "hybrid" and not learned:
        raise UserError(
            "loss.objective is hybrid, which trains the variance by the bound, but "
            "model.learn_variance is False; set model.learn_variance to True"
        )

    def loss(params, x_0, t, eps, cond, train, key):
        return losses.denoising_loss(
            process,
            apply_fn,
            params,
            x_0,
            t,
            eps,
            cond,
            kind=c.kind,
            weighting=weighting,
            objective=objective,
            vlb_lambda=c.vlb_lambda,
            variance="learned_range" if learned else config.sample.variance,
            train=train,
            key=key,
        )

    return loss
