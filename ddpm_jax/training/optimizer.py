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
        update = optax.chain(clip(config.clip_norm), update)
    return skip_nonfinite(update)


def norm(tree: Any) -> jax.Array:
    """Return the square root of the sum of all squares in a pytree: a float32 scalar.

    The vectors are concatenated first: two leaves of three are biases and scales, and each sum
    costs one or two kernels on a GPU.
    """
    leaves = jax.tree.leaves(tree)
    parts = [leaf for leaf in leaves if leaf.ndim >= 2]
    if vectors := [leaf.ravel() for leaf in leaves if leaf.ndim < 2]:
        parts.append(jnp.concatenate(vectors))
    return jnp.sqrt(sum(jnp.square(part).sum() for part in parts))


def clip(largest: float) -> optax.GradientTransformation:
    """Scale gradients down to a global norm: `optax.clip_by_global_norm`, with our `norm`."""
    init = optax.clip_by_global_norm(largest).init

    def update(updates: optax.Updates, state: Any, params: Any = None) -> tuple[optax.Updates, Any]:
        found = norm(updates)
        scale = largest / jnp.maximum(found, largest)
        return jax.tree.map(lambda g: scale * g, updates), state

    return optax.GradientTransformation(init, update)


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Wrap an optimiser: a gradient that is not finite changes neither parameters nor moments.

    A gradient is finite if its norm is. Then no square of an entry overflows. So the moments of
    Adam are finite, and so is m̂ / (√v̂ + ε), because ε is not tiny (`config_checks`). One check
    before the update costs no second pass over the state. The state has the type of
    `optax.apply_if_finite`, so that old checkpoints can be resumed.
    """
    init = optax.apply_if_finite(inner, max_consecutive_errors=0).init

    def update(updates: optax.Updates, state: Any, params: Any = None) -> tuple[optax.Updates, Any]:
        finite = jnp.isfinite(norm(updates))
        moves, inner_state = inner.update(updates, state.inner_state, params)

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
