"""Null conditioning for classifier-free guidance (Ho & Salimans 2022).

One network learns both p(x | c) and p(x). For p(x) it receives a null value in place of each entry
of the conditioning c. In training, `drop` replaces c by its null value in some examples, all
entries at once. In sampling, `with_null` adds an unconditional copy of each row. `models.inputs`
reads the null values.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.types import Array, Conditioning

# The null value of each entry of cond. None: the entry has no null value and always stays.
NULL: Mapping[str, Any] = {
    "label": -1,
    "embedding": 0,
    "context": 0,
    "context_mask": False,
    "image": None,
    "view": 0,
    "pose": 0,
    "focal": None,
    "centre": None,
}


def drop(
    cond: Conditioning, hidden: Array, null: Mapping[str, Any] | None = None
) -> dict[str, Array]:
    """Return cond with null values in the rows where `hidden` is True.

    Args:
      cond: arrays with leading axis B.
      hidden: bool [B].
      null: {entry: its null value}; the value broadcasts to a row. An entry with None always stays.
        By default `NULL`.

    Raises:
      UserError: an entry of cond is not in `null`.
    """
    null = NULL if null is None else null

    def hide(name: str, rows: Array | np.ndarray) -> Array:
        if name not in null:
            raise UserError(
                f"cond[{name!r}] has no null value for classifier-free guidance; entries with one: "
                f"{sorted(null)}; pass null={{{name!r}: ...}}"
            )
        rows = jnp.asarray(rows)
        if null[name] is None:
            return rows
        nothing = jnp.broadcast_to(jnp.asarray(null[name], rows.dtype), rows.shape)
        return jnp.where(hidden.reshape(-1, *[1] * (rows.ndim - 1)), nothing, rows)

    return {name: hide(name, rows) for name, rows in cond.items()}


def with_null(cond: Conditioning | None, null: Mapping[str, Any] | None = None) -> dict[str, Array]:
    """Return cond with each row followed by its null copy: leading axis 2B.

    The two rows are neighbours, so both stay on the same device if the batch is sharded.

    Args:
      cond: arrays with leading axis B.
      null: as in `drop`.

    Raises:
      UserError: cond is empty, none of its entries can be null, or an entry is not in `null`.
    """
    if not cond:
        raise UserError(
            "classifier-free guidance needs a condition, but cond is empty; pass "
            "cond={'label': labels}, or set guidance=0"
        )
    rows = {name: jnp.repeat(jnp.asarray(value), 2, axis=0) for name, value in cond.items()}
    twice = next(iter(rows.values())).shape[0]  # may be a symbolic dimension of jax.export
    twins = drop(rows, jnp.arange(twice) % 2 == 1, null)
    if all((NULL if null is None else null)[name] is None for name in cond):
        raise UserError(
            f"classifier-free guidance needs a condition that can be null, but cond has only "
            f"{sorted(cond)}; pass another entry too, such as 'label', or set guidance=0"
        )
    return twins
