"""The optimiser of a run and its learning rate, from optax parts."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.config import OptimConfig
from ddpm_jax.errors import UserError, unknown


def learning_rate(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Return step -> learning rate: linear warm-up from 0, then constant or cosine to 0.

    Args:
      config: its fields `learning_rate`, `warmup_steps` and `decay` are used.
      num_steps: length of the run; the cosine reaches 0 there.

    Raises:
      UserError: an unknown `decay`, or a warm-up that leaves no steps for the cosine.
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
    """Return the optimiser: clip, then Adam or AdamW, with the scheduled learning rate.

    Non-finite updates are skipped. The state counts them, and the loop stops at too many in a row.

    Args:
      config: the config of the optimiser; `clip_norm` = 0 does not clip.
      num_steps: length of the run.

    Raises:
      UserError: an unknown `name` or `decay`, weight decay with an optimiser other than AdamW, or
        a warm-up that leaves no steps for the cosine.
    """
    rate = learning_rate(config, num_steps)
    betas: dict[str, Any] = dict(b1=config.b1, b2=config.b2, eps=config.eps)
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
    return skip_nonfinite(update)


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wrap an optimiser: an update that is not finite changes neither parameters nor moments.

    An update is finite if the norm of the gradient, the new parameters and the new state of `inner`
    are finite. `optax.apply_if_finite` checks only the gradient. But a finite gradient can give a
    NaN, for instance with eps = 0, and `optax.apply_if_finite` applies this NaN. The state has the
    same type, `optax.ApplyIfFiniteState`, so that old checkpoints can be resumed.
    """
    init = optax.apply_if_finite(inner, max_consecutive_errors=0).init

    def update(updates: optax.Updates, state: Any, params: Any = None) -> tuple[optax.Updates, Any]:
        moves, inner_state = inner.update(updates, state.inner_state, params)
        applied = optax.apply_updates(params, moves)
        finite = all_finite((optax.tree.norm(updates), applied, inner_state))

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(finite, new, old)  # a select: 0 * NaN is NaN

        moves = jax.tree.map(lambda move: keep(move, jnp.zeros_like(move)), moves)
        return moves, optax.ApplyIfFiniteState(
            notfinite_count=jnp.where(finite, 0, state.notfinite_count + 1),
            last_finite=finite,
            total_notfinite=state.total_notfinite + jnp.where(finite, 0, 1),
            inner_state=jax.tree.map(keep, inner_state, state.inner_state),
        )

    return optax.GradientTransformation(init, update)


def all_finite(tree: Any) -> jax.Array:
    """Return whether all leaves of a pytree are finite (no NaN, no infinity): a bool scalar."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
