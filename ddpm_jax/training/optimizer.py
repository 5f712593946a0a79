"""The optimiser of a run, from optax parts, and the average of its iterates."""

import functools

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.config import OptimConfig
from ddpm_jax.errors import UserError, unknown


def learning_rate(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Return step -> learning rate: linear warm-up from 0, then constant or cosine to 0.

    Args:
      config: the rate, `warmup_steps` and `decay`.
      num_steps: length of the run, where a cosine reaches 0.
    """
    warmup = config.warmup_steps
    if config.decay == "constant":
        after = optax.constant_schedule(config.learning_rate)
    elif config.decay == "cosine":
        if warmup >= num_steps:
            raise UserError(
                f"optim.warmup_steps {warmup} leaves nothing of train.num_steps {num_steps} for "
                "the cosine decay; take fewer warm-up steps or optim.decay=constant"
            )
        after = optax.cosine_decay_schedule(config.learning_rate, num_steps - warmup)
    else:
        raise unknown("optim.decay", config.decay, ["constant", "cosine"])
    if not warmup:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, config.learning_rate, warmup), after], [warmup]
    )


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """Return the optimiser: clip, Adam or AdamW, scheduled rate; non-finite updates are skipped.

    A gradient with a NaN or an infinity changes neither parameters nor moments; it is counted in
    the state (`optax.ApplyIfFiniteState`), from which the loop decides when to stop.
    """
    rate = learning_rate(config, num_steps)
    betas = dict(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.name == "adam":
        update = optax.adam(rate, **betas)
    elif config.name == "adamw":
        update = optax.adamw(rate, **betas, weight_decay=config.weight_decay)
    else:
        raise unknown("optim.name", config.name, ["adam", "adamw"])
    if config.weight_decay and config.name != "adamw":
        raise UserError(
            f"optim.weight_decay is {config.weight_decay} but optim.name {config.name!r} has none; "
            "take optim.name=adamw"
        )
    if config.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return _skip_nonfinite(update)


def _skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimiser that neither moves nor learns anything from a non-finite gradient.

    Deviates from `optax.apply_if_finite`, whose state it has, in never giving up and in selecting
    instead of branching: XLA's CPU backend copies what a branch takes and returns. The norm is
    what clipping needs anyway; it is finite if the gradient is, and less than 1e19.
    """

    def init(params: optax.Params) -> optax.ApplyIfFiniteState:
        zero = jnp.zeros((), jnp.int32)
        return optax.ApplyIfFiniteState(zero, jnp.array(True), zero, inner.init(params))

    def update(grads: optax.Updates, state: optax.ApplyIfFiniteState, params: optax.Params):
        finite = jnp.isfinite(optax.tree.norm(grads))
        updates, inner_state = inner.update(grads, state.inner_state, params)
        keep = functools.partial(jnp.where, finite)  # a select: 0 * NaN is NaN
        count = jnp.where(finite, 0, state.notfinite_count + 1)
        total = state.total_notfinite + jnp.logical_not(finite)
        state = optax.ApplyIfFiniteState(
            count, finite, total, jax.tree.map(keep, inner_state, state.inner_state)
        )
        return jax.tree.map(lambda u: keep(u, 0.0), updates), state

    return optax.GradientTransformation(init, update)
