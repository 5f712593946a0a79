"""Reports of progress. A slow function sends reports; its caller chooses how to show them.

A slow function receives `progress` and calls `progress(what, done, total)`. It calls with done = 0
at the start of each part of the work, and again when more units of this part are done.
"""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Show nothing.

    Args:
      what: the name of this part of the work.
      done: number of units that are done, in 0..total.
      total: number of units of this part.
    """
