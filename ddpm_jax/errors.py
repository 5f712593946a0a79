"""Errors that the user can fix.

A `UserError` reports a mistake in a config, a command line, a file or a call. Its message is one
line that names the key or file, what was found, what is allowed and what to do. The mains in
`experiments/` print this line without a traceback. They exit with code 2, or with code 75 for a
`PassingError`. Every other exception is a bug in this library and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake that the user can fix; the message is one line and says how."""


class NotFiniteError(UserError):
    """Images with a NaN or an infinity."""


class PassingError(UserError):
    """A failure that may be gone when the same command is started again."""


class SourceError(PassingError):
    """The data could no longer be read while a run was training."""


class PeerError(PassingError):
    """Another process of the run ended, or cannot be reached."""


def unknown(what: str, name: object, allowed: Iterable[str]) -> UserError:
    """Return the error for an unknown name; the message suggests the nearest known name.

    Args:
      what: what the name chooses, such as "kind", or its config key, such as "process.schedule".
      name: the unknown name.
      allowed: the known names.
    """
    allowed = sorted(allowed)
    nearest = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f" did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"unknown {what} {name!r};{hint} allowed: {', '.join(allowed)}")


def look_up(table: Mapping[str, Any], key: str, name: str) -> Any:
    """Return table[name].

    Args:
      table: the values by name.
      key: what the name chooses, such as its config key "process.schedule", for the message.
      name: the name to look up.

    Raises:
      UserError: the table has no such name; the message lists the names that it has.
    """
    if name not in table:
        raise unknown(key, name, table)
    return table[name]
