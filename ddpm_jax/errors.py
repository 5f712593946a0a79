"""Errors that the user can mend.

A `UserError` is a mistake in a config, a command line, a file or a call. Its message is one line
that names the key or file, what was found, what is allowed and what to do. The mains in
`experiments/` print it without a traceback and exit with code 2, or 75 if it is a `PassingError`;
every other exception is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend; the message is one line and says how."""


class PassingError(UserError):
    """What may be over when the same command is started again."""


class SourceError(PassingError):
    """Data that stopped coming while a run went on."""


class PeerError(PassingError):
    """Another process of the run that ended, or cannot be reached."""


def unknown(what: str, name: object, allowed: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a table, with the nearest right one.

    Args:
      what: what the name stands for, with its config key where there is one ("schedule").
      name: what was found.
      allowed: the names that exist.
    """
    allowed = sorted(allowed)
    nearest = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f" did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"unknown {what} {name!r};{hint} allowed: {', '.join(allowed)}")


def look_up(table: Mapping[str, Any], key: str, name: str) -> Any:
    """Return table[name], or say which names it has.

    Raises:
      UserError: it has none such; the message calls it `key`.
    """
    if name not in table:
        raise unknown(key, name, table)
    return table[name]
