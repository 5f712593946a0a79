"""Reports of progress: what long work calls, and what shows them is the caller's choice.

A function that takes long receives `progress` and calls it as `progress(what, done, total)`: at the
start of each part of the work with done = 0, and again whenever more of it is done.
"""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Show nothing."""
