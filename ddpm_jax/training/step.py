"""The train step and the metrics of held-out images, as pure functions for `jax.jit`.

One step draws t and ε from `fold_in(key, step)` and takes the gradient of the mean weighted loss.
If the update is finite, the step updates the parameters and their average,

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

from ddpm_jax.conditioning import drop
from ddpm_jax.config import OptimConfig
from ddpm_jax.models import Model
from ddpm_jax.pixels import to_x_0
from ddpm_jax.runs.state import TrainState
from ddpm_jax.time_samplers import TimeSampler
from ddpm_jax.types import Array, Conditioning, Params, PRNGKey

# (params, x_0, t, eps, cond, train, key) -> [B]: the loss per example
LossFn = Callable[[Params, Array, Array, Array, Conditioning | None, bool, PRNGKey | None], Array]
# batch -> the conditioning that the network receives, or None
CondFn = Callable[[dict[str, Array]], Conditioning | None]
# (state, batch) -> (state, metrics)
TrainStep = Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]
# (params, batch, index of the batch) -> {name: [B]}: metrics of each image
EvalStep = Callable[[Params, dict[str, Array], Array], dict[str, Array]]

QUARTILES = 4
ACCURACIES = tuple(f"accuracy_t_quartile_{i + 1}" for i in range(QUARTILES))


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    time_sampler: TimeSampler,
) -> TrainState:
    """Return the state before the first step; pure, for `jax.jit` and `jax.eval_shape`.

    Args:
      model: the network.
      optimizer: the optimiser from `make_optimizer`.
      key: the key of the initial weights.
      time_sampler: draws the times of a batch; it may have a state.
    """
    params = model.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),  # a copy: the step donates both
        opt_state=optimizer.init(params),
        time_state=time_sampler.init(),
    )


def loss_by_quartile(
    loss: Array, weight: Array, t: Array, num_timesteps: int
) -> tuple[Array, Array]:
    """Return the sums of weight * loss and of weight over each quarter of {1..T}: [4] and [4].

    Args:
      loss: [B] float, the loss per example.
      weight: [B] float, the weight per example.
      t: [B] int32 or float, in 1..T.
      num_timesteps: T.
    """
    quartile = ((t - 1) * QUARTILES // num_timesteps).astype(jnp.int32)  # t may be fractional
    quartile = jax.nn.one_hot(quartile, QUARTILES)  #                              [B, 4]
    return ((weight * loss)[:, None] * quartile).sum(0), (weight[:, None] * quartile).sum(0)


def make_train_step(
    loss_fn: LossFn,
    time_sampler: TimeSampler,
    optimizer: optax.GradientTransformation,
    *,
    num_timesteps: int,
    p_uncond: float,
    optim_config: OptimConfig,
    cond_fn: CondFn,
    accumulate: int,
    key: PRNGKey,
) -> TrainStep:
    """Return train_step(state, batch) -> (state, metrics).

    Args:
      loss_fn: the loss per example, [B].
      time_sampler: draws the times of a batch and their weights.
      optimizer: the optimiser from `make_optimizer`.
      num_timesteps: T.
      p_uncond: probability that the conditioning of an example is dropped, in [0, 1].
      optim_config: its fields `ema_decay` and `ema_warmup` are used.
      cond_fn: batch -> the conditioning that the network receives, or None.
      accumulate: number of micro-batches; it divides B. t and ε do not depend on it.
      key: the training key of the run.

    `batch` is {"image": uint8 [B, H, W, C], "label": int32 [B]}, and other arrays that `cond_fn`
    reads. The metrics are scalars, except `quartile_sum` and `quartile_count`, which are [4].
    """

    def train_step(state: TrainState, batch: dict[str, Array]):
        step_key = jax.random.fold_in(key, state.step)
        t_key, eps_key, null_key, dropout_key = jax.random.split(step_key, 4)
        x_0 = to_x_0(batch["image"])  #                                            [B, H, W, C]
        t, weight = time_sampler.draw(state.time_state, t_key, x_0.shape[0])  #    [B]
        eps = jax.random.normal(eps_key, x_0.shape)
        cond = cond_fn(batch)
        if cond is not None:  # one draw per example drops all of its conditioning, or nothing
            cond = drop(cond, jax.random.bernoulli(null_key, p_uncond, t.shape))

        def mean_loss(params, examples, key):
            x_0, t, eps, cond, weight = examples
            loss = loss_fn(params, x_0, t, eps, cond, True, key)  #                [B / accumulate]
            return (weight * loss).mean(), loss

        def micro_step(gradient, part):
            examples, key = part
            grads, loss = jax.grad(mean_loss, has_aux=True)(state.params, examples, key)
            return jax.tree.map(jnp.add, gradient, grads), loss

        examples = (x_0, t, eps, cond, weight)
        if accumulate == 1:
            gradient, loss = micro_step(
                optax.tree.zeros_like(state.params), (examples, dropout_key)
            )
        else:
            # Micro-batch i has examples i, i + accumulate, ...: no example changes its device.
            parts = jax.tree.map(
                lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), examples
            )
            gradient, loss = jax.lax.scan(
                micro_step,
                optax.tree.zeros_like(state.params),
                (parts, jax.random.split(dropout_key, accumulate)),
            )  #                                                                   loss [A, B / A]
            gradient = jax.tree.map(lambda g: g / accumulate, gradient)
            loss = loss.swapaxes(0, 1).reshape(-1)

        opt_state: Any  # optax.ApplyIfFiniteState
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        n = state.step.astype(jnp.float32)
        warm = (1 + n) / (10 + n) if optim_config.ema_warmup else optim_config.ema_decay
        decay = jnp.minimum(optim_config.ema_decay, warm)
        moved = optax.incremental_update(params, state.ema_params, 1 - decay)
        keep = functools.partial(jnp.where, opt_state.last_finite)  # a select: 0 * NaN is NaN
        ema_params = jax.tree.map(keep, moved, state.ema_params)
        learned = time_sampler.update(state.time_state, t, loss)
        known = opt_state.last_finite & jnp.isfinite(loss).all()
        time_state = jax.tree.map(functools.partial(jnp.where, known), learned, state.time_state)

        sums, counts = loss_by_quartile(loss, weight, t, num_timesteps)
        metrics = dict(
            loss=(weight * loss).mean(),
            quartile_sum=sums,
            quartile_count=counts,
            grad_norm=optax.tree.norm(gradient),
            param_norm=optax.tree.norm(params),
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

    def train_steps(state: TrainState, batches: dict[str, Array]):
        return jax.lax.scan(train_step, state, batches, length=num_steps)

    return train_steps


def make_eval_step(
    loss_fn: LossFn, time_sampler: TimeSampler, *, cond_fn: CondFn, key: PRNGKey
) -> Callable[[Params, dict[str, Array], Array], Array]:
    """Return eval_step(params, batch, index) -> weighted loss [B].

    t and ε depend only on `key` and `index`, so the losses of two sets of weights can be compared.

    Args:
      loss_fn: the loss per example, [B].
      time_sampler: draws the times of a batch and their weights.
      cond_fn: batch -> the conditioning that the network receives, or None.
      key: the evaluation key of the run.
    """

    def eval_step(params: Params, batch: dict[str, Array], index: Array) -> Array:
        t_key, eps_key = jax.random.split(jax.random.fold_in(key, index))
        x_0 = to_x_0(batch["image"])
        t, weight = time_sampler.draw(time_sampler.init(), t_key, x_0.shape[0])
        eps = jax.random.normal(eps_key, x_0.shape)
        return weight * loss_fn(params, x_0, t, eps, cond_fn(batch), False, None)

    return eval_step


def make_accuracy_step(
    right_fn: Callable[[Params, Array, Array, Array, Array], Array],
    num_timesteps: int,
    *,
    key: PRNGKey,
) -> EvalStep:
    """Return accuracy_step(params, batch, index) -> {"accuracy_t_quartile_1": [B], ...}.

    Every image is classified once in each quarter of {1..T}. t and ε depend only on `key`, `index`
    and the quarter.

    Args:
      right_fn: (params, x_0, t, eps, label) -> bool [B], whether the network's class for x_t is
        the label.
      num_timesteps: T.
      key: the evaluation key of the run.
    """

    def accuracy_step(params: Params, batch: dict[str, Array], index: Array) -> dict[str, Array]:
        x_0, label = to_x_0(batch["image"]), batch["label"]

        def right_in(quarter: Array) -> Array:
            quarter_key = jax.random.fold_in(jax.random.fold_in(key, quarter), index)
            t_key, eps_key = jax.random.split(quarter_key)
            u = jax.random.uniform(t_key, label.shape)
            t = 1 + ((quarter + u) * (num_timesteps / QUARTILES)).astype(jnp.int32)
            t = jnp.minimum(t, num_timesteps)  # the product can round up
            return right_fn(params, x_0, t, jax.random.normal(eps_key, x_0.shape), label)

        right = jax.lax.map(right_in, jnp.arange(QUARTILES))  #                   [4, B]
        return dict(zip(ACCURACIES, right, strict=True))

    return accuracy_step
