"""Tables in a terminal or a log, with all their columns."""

from rich.console import Console

WIDTH = 120


def console() -> Console:
    """Return a console that breaks no line, and cuts no table of up to `WIDTH` characters.

    By itself rich takes a log for a terminal of 80 characters, and shortens the cells.
    """
    width = max(WIDTH, Console().width)
    return Console(soft_wrap=True, markup=False, highlight=False, width=width)
