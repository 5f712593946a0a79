"""The parts of a run, built from its config: everything that can be wrong in one shows here."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from ddpm_jax import build
from ddpm_jax.build.chain import sample_fn
from ddpm_jax.config import Config
from ddpm_jax.data.cond import check, make_cond_fn
from ddpm_jax.models import Model
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runtime.sharding import gatherer
from ddpm_jax.training.optimizer import learning_rate, make_optimizer
from ddpm_jax.training.step import LossFn, init_state, make_eval_step, make_train_step
from ddpm_jax.types import Array, Params, PRNGKey


class Parts(NamedTuple):
    """Pure functions, none of them jitted but `sample`.

    Attributes:
      model: the network.
      rate: step -> learning rate.
      init: () -> the state before the first step.
      train_step: (state, batch) -> (state, metrics).
      eval_step: (params, batch, index) -> loss [B].
      sample: (params, key, n, cond) -> images.
      sample_key: for the grids of a run.
    """

    model: Model
    rate: optax.Schedule
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]
    eval_step: Callable[[Params, dict[str, Array], Array], Array]
    sample: Callable
    sample_key: PRNGKey


def build_parts(
    config: Config,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    mesh: Mesh | None = None,
) -> Parts:
    """Build the parts of a run.

    Args:
      config: the run's.
      image_shape: (H, W, C).
      num_classes: of the data; 0 is none.
      mesh: where a state that is cut over its devices will lie; None is for a whole one.

    Raises:
      UserError: a name, number or combination in the config that cannot be.
    """
    model = build.model(config.model, image_shape, num_classes)
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    chain = build.make_chain(config)
    loss_fn = chain.loss(model.apply)
    model = chain.joint(model)
    if mesh is not None:
        loss_fn = _of_gathered(loss_fn, gatherer(mesh))
    seed_key = jax.random.key(config.train.seed)
    init_key, train_key, eval_key, sample_key = jax.random.split(seed_key, 4)
    check(config, image_shape)
    cond_fn = make_cond_fn(config)
    train_step = make_train_step(
        loss_fn,
        chain.time_sampler,
        optimizer,
        num_timesteps=config.process.num_timesteps,
        loss_config=config.loss,
        optim_config=config.optim,
        cond_fn=cond_fn,
        accumulate=config.train.accumulate,
        key=train_key,
    )
    return Parts(
        model=model,
        rate=learning_rate(config.optim, config.train.num_steps),
        init=lambda: init_state(model, optimizer, init_key, chain.time_sampler),
        train_step=train_step,
        eval_step=make_eval_step(loss_fn, chain.held_out_times, cond_fn=cond_fn, key=eval_key),
        sample=sample_fn(config, model, image_shape),
        sample_key=sample_key,
    )


def _of_gathered(loss_fn: LossFn, gather: Callable[[Params], Params]) -> LossFn:
    """Return the loss of parameters that are gathered first."""
    return lambda params, *rest: loss_fn(gather(params), *rest)
