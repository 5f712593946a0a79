"""The optimiser of a run, from optax parts, and the average of its iterates."""

from typing import Any

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

    The skipped updates are counted in the state, from which the loop decides when to stop.
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
    are. `optax.apply_if_finite` asks only for a finite gradient, and so applies the NaN that a
    finite gradient gives with, for instance, eps = 0. The state is the same as there,
    `optax.ApplyIfFiniteState`, so that old checkpoints can be resumed.
    """
    init = optax.apply_if_finite(inner, max_consecutive_errors=0).init

    def update(
        gradient: optax.Updates, state: Any, params: Any = None
    ) -> tuple[optax.Updates, optax.ApplyIfFiniteState]:
        updates, inner_state = inner.update(gradient, state.inner_state, params)
        applied = optax.apply_updates(params, updates)
        finite = all_finite((optax.tree.norm(gradient), applied, inner_state))

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(finite, new, old)  # a select: 0 * NaN is NaN

        skipped = jnp.where(finite, 0, 1)
        return jax.tree.map(lambda u: keep(u, jnp.zeros_like(u)), updates), (
            optax.ApplyIfFiniteState(
                notfinite_count=jnp.where(finite, 0, state.notfinite_count + 1),
                last_finite=finite,
                total_notfinite=state.total_notfinite + skipped,
                inner_state=jax.tree.map(keep, inner_state, state.inner_state),
            )
        )

    return optax.GradientTransformation(init, update)


def all_finite(tree: Any) -> jax.Array:
    """Return whether no leaf of a tree has a NaN or an infinity: a bool scalar."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
