"""The optimiser of a run, from optax parts, and the average of its iterates."""

from typing import Any

import optax

from ddpm_jax.config import OptimConfig
from ddpm_jax.errors import UserError, unknown

NEVER = 2**31 - 2  # more non-finite updates in a row than any run survives


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
    return optax.apply_if_finite(update, max_consecutive_errors=NEVER)
