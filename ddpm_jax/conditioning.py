"""Being told nothing: the null value of each kind of conditioning, for training and for guidance.

Classifier-free guidance (Ho & Salimans 2022) wants one network that is both p(x | c) and p(x). In
training, `drop` hides c from some examples, all of it at once; in sampling, `with_null` puts beside
each row its twin that is told nothing. What the network makes of null values is
`models.inputs`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.types import Array, Conditioning

# What the network knows as "no condition", per entry of cond; None: the entry is never hidden.
NULL: Mapping[str, Any] = {
    "label": -1,
    "embedding": 0,
    "context": 0,
    "context_mask": False,
    "image": None,
}


def drop(
    cond: Conditioning, hidden: Array, null: Mapping[str, Any] | None = None
) -> dict[str, Array]:
    """Return cond with null values in the rows where `hidden` is True.

    Args:
      cond: arrays with leading axis B.
      hidden: bool [B].
      null: per entry its null value, broadcastable to a row, or None where the entry is never
        hidden; None is `NULL`.

    Raises:
      UserError: an entry has no null value.
    """
    null = NULL if null is None else null

    def hide(name: str, rows: Array) -> Array:
        if name not in null:
            raise UserError(
                f"cond[{name!r}] has no null value for classifier-free guidance; known are "
                f"{sorted(null)}; pass null={{{name!r}: ...}}"
            )
        rows = jnp.asarray(rows)
        if null[name] is None:
            return rows
        nothing = jnp.broadcast_to(jnp.asarray(null[name], rows.dtype), rows.shape)
        return jnp.where(hidden.reshape(-1, *[1] * (rows.ndim - 1)), nothing, rows)

    return {name: hide(name, rows) for name, rows in cond.items()}


def with_null(cond: Conditioning | None, null: Mapping[str, Any] | None = None) -> dict[str, Array]:
    """Return cond with each row followed by its null twin: leading axis 2B.

    Twins are neighbours, so that a device of those that share the batch keeps both.

    Args:
      cond: arrays with leading axis B.
      null: as in `drop`.

    Raises:
      UserError: there is no cond, or nothing in it that can be null, or an entry has no null value.
    """
    if not cond:
        raise UserError(
            "classifier-free guidance needs a condition, but cond is empty; pass "
            "cond={'label': labels}, or guidance=0"
        )
    rows = {name: jnp.repeat(jnp.asarray(value), 2, axis=0) for name, value in cond.items()}
    twice = len(next(iter(rows.values())))
    twins = drop(rows, jnp.arange(twice) % 2 == 1, null)
    if all((NULL if null is None else null)[name] is None for name in cond):
        raise UserError(
            f"classifier-free guidance needs a condition that can be null, but cond has only "
            f"{sorted(cond)}; pass another, such as 'label', or guidance=0"
        )
    return twins
