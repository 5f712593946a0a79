"""The train step, as a pure function for `jax.jit`.

One step draws the inputs of its objective (such as t and ε) from `fold_in(key, step)` and takes the
gradient of the mean weighted loss. If the update is finite, the step updates the parameters and
their average,

    ema ← d ema + (1 - d) params,   d = min(ema_decay, (1 + n) / (10 + n))

where n is the step. The warm-up of the decay soon forgets the initial weights.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.config import OptimConfig
from ddpm_jax.runs.state import TrainState
from ddpm_jax.training.objectives import NUM_KEYS, Batch, Objective
from ddpm_jax.training.optimizer import norm
from ddpm_jax.types import Array, Params, PRNGKey

# (state, batch) -> (state, metrics)
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def init_state(
    init: Callable[[PRNGKey], Params],
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    time_state: Any = (),
) -> TrainState:
    """Return the state before the first step; pure, for `jax.jit` and `jax.eval_shape`.

    Args:
      init: key -> the parameters of the run.
      optimizer: the optimiser from `make_optimizer`.
      key: the key of the initial weights.
      time_state: the first state of the objective (`Objective.init`).
    """
    params = init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),  # a copy: the step donates both
        opt_state=optimizer.init(params),
        time_state=time_state,
    )


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    optim_config: OptimConfig,
    accumulate: int,
    key: PRNGKey,
) -> TrainStep:
    """Return train_step(state, batch) -> (state, metrics).

    Args:
      objective: what is minimised.
      optimizer: the optimiser from `make_optimizer`.
      optim_config: its fields `ema_decay` and `ema_warmup` are used.
      accumulate: number of micro-batches; it divides B. What the objective draws does not depend
        on it.
      key: the training key of the run.

    The metrics are scalars, except those of the objective's report that have a longer shape.
    """

    def train_step(state: TrainState, batch: Batch):
        step_key = jax.random.fold_in(key, state.step)
        *keys, dropout_key = jax.random.split(step_key, NUM_KEYS + 1)
        inputs, weight = objective.draw(state.time_state, state.step, keys, batch)

        def mean_loss(params, examples, key):
            inputs, weight = examples
            loss, parts = objective.loss(params, inputs, key)  #                   [B / accumulate]
            return (weight * loss).mean(), (loss, parts)

        def micro_step(gradient, part):
            examples, key = part
            grads, losses = jax.grad(mean_loss, has_aux=True)(state.params, examples, key)
            return jax.tree.map(jnp.add, gradient, grads), losses

        zeros, examples = optax.tree.zeros_like(state.params), (inputs, weight)
        if accumulate == 1:
            gradient, (loss, parts) = micro_step(zeros, (examples, dropout_key))
        else:
            # Micro-batch i has examples i, i + accumulate, ...: no example changes its device.
            shares = jax.tree.map(
                lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), examples
            )
            keys = jax.random.split(dropout_key, accumulate)
            gradient, losses = jax.lax.scan(micro_step, zeros, (shares, keys))
            gradient = jax.tree.map(lambda g: g / accumulate, gradient)
            loss, parts = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1), losses)

        opt_state: Any  # optax.ApplyIfFiniteState
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        n = state.step.astype(jnp.float32)
        warm = (1 + n) / (10 + n) if optim_config.ema_warmup else optim_config.ema_decay
        decay = jnp.minimum(optim_config.ema_decay, warm)
        moved = optax.incremental_update(params, state.ema_params, 1 - decay)
        keep = functools.partial(jnp.where, opt_state.last_finite)  # a select: 0 * NaN is NaN
        ema_params = jax.tree.map(keep, moved, state.ema_params)
        learned = objective.learn(state.time_state, inputs, loss)
        known = opt_state.last_finite & jnp.isfinite(loss).all()
        time_state = jax.tree.map(functools.partial(jnp.where, known), learned, state.time_state)

        metrics = dict(
            loss=(weight * loss).mean(),
            **{name: part.mean() for name, part in parts.items()},
            **objective.report(inputs, weight, loss),
            grad_norm=norm(gradient),
            param_norm=norm(params),
            skipped=opt_state.total_notfinite,
            skipped_in_a_row=opt_state.notfinite_count,
        )
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            time_state=time_state,
        )
        return state, metrics

    return train_step


def fuse_steps(train_step: Callable, num_steps: int) -> Callable:
    """Return train_steps(state, batches) -> (state, metrics), which takes `num_steps` steps.

    The batches and the metrics are stacked: [num_steps, ...]. The result equals the result of
    `num_steps` single steps.
    """

    def train_steps(state: TrainState, batches: Batch):
        return jax.lax.scan(train_step, state, batches, length=num_steps)

    return train_steps
