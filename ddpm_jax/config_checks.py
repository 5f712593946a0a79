"""What a config's values may be: types, counts, probabilities, and options that something uses."""

import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ddpm_jax.errors import UserError, look_up

AT_LEAST_1 = (
    "process.num_timesteps",
    "model.channels",
    "model.num_res_blocks",
    "model.num_heads",
    "model.num_groups",
    "optim.max_nonfinite",
    "train.num_steps",
    "train.batch_size",
    "train.accumulate",
    "train.num_samples",
    "train.keep_last",
    "sample.chunk_size",
    "eval.num_examples",
    "eval.num_samples",
    "eval.num_seeds",
    "eval.num_steps",
)
BELOW_1 = ("model.dropout", "data.holdout", "loss.p_uncond", "optim.ema_decay")
SIGNED = ("mesh.data", "process.gamma_min", "process.gamma_max")  # may be negative
NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}


def check_ranges(flat: Mapping[str, Any]) -> None:
    """Check that every number of a config is in its range.

    Args:
      flat: the config as `config.flatten` returns it, {"section.field": value}.

    Raises:
      UserError: a count below 1, a probability outside [0, 1), or another number that must not be
        negative.
    """
    for key in AT_LEAST_1:
        if flat[key] < 1:
            raise UserError(f"config.{key} must be at least 1, found {flat[key]}")
    for key in BELOW_1:
        if not 0 <= flat[key] < 1:
            raise UserError(f"config.{key} must be in [0, 1), found {flat[key]}")
    for key, value in flat.items():
        if type(value) in (int, float) and value < 0 and key not in SIGNED:
            raise UserError(f"config.{key} must not be negative, found {value}")


def check_type(key: str, value: Any, hint: Any) -> Any:
    """Return `value` in the type of its field: an int becomes a float, a list becomes a tuple.

    Args:
      key: the name of the field, "section.field", for the message.
      value: the value found.
      hint: the type of the field: int, float, bool, str or tuple[int, ...].

    Raises:
      UserError: the value has another type.
    """
    if typing.get_origin(hint) is tuple:  # JSON has lists in place of tuples
        if isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
            return tuple(value)
        raise UserError(f"config.{key} must be a tuple of integers such as (1, 2), found {value!r}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"config.{key} must be {NAMES[hint]}, found {value!r}")
    return value


class Choice(NamedTuple):
    """A row of a table in `build/`: the meaning of a name in a config.

    Attributes:
      build: builds it from the config.
      options: the fields of the same section that only some rows of the table use, this one too.
    """

    build: Callable[..., Any]
    options: tuple[str, ...] = ()


def choose(table: Mapping[str, Choice], config: Any, field: str) -> Callable[..., Any]:
    """Return the builder that a field of a section names.

    Args:
      table: name -> row.
      config: the section, such as `config.process`.
      field: such as "schedule".

    Raises:
      UserError: no such name, or an option is set that only other rows use.
    """
    name = getattr(config, field)
    chosen = look_up(table, f"{_section(config)}.{field}", name)
    users: dict[str, list[str]] = {}
    for other, row in table.items():
        for option in row.options:
            users.setdefault(option, []).append(other)
    for option, names in users.items():
        if option not in chosen.options:
            who = f"{_section(config)}.{field}={name}"
            check_unused(config, [option], who, f" ({', '.join(names)}: yes)")
    return chosen.build


def check_unused(config: Any, options: Iterable[str], who: str, users: str = "") -> None:
    """Refuse options of a section that are set although nothing uses them.

    Args:
      config: the section, such as `config.loss`.
      options: names of its fields.
      who: what does not use them, for the message.
      users: what does, in brackets, if there is a list.

    Raises:
      UserError: an option is not at its default.
    """
    for name in options:
        value, default = getattr(config, name), getattr(type(config), name)
        if value != default:
            raise UserError(
                f"{_section(config)}.{name} is {value!r}, but {who} does not use it{users}; "
                f"leave it at {default!r}"
            )


def _section(config: Any) -> str:
    """Return the key of a section: "loss" for a `LossConfig`."""
    return type(config).__name__.removesuffix("Config").lower()
