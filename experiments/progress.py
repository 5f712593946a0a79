"""The progress of a main and the time left: a live line on a terminal, plain lines otherwise.

The progress goes to stderr, because stdout is for results. Plain lines are logged at the start and
the end of each part of the work, and every few seconds in between.
"""

import datetime
import logging
import math
import time

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LOG_EVERY = 5.0  # seconds between plain lines
REPORTS = 8  # chunks of the work, if the chunks are then large enough to be fast
# Minimum number of images in a chunk. For 64 images, the digits' network takes 12% more CPU time in
# chunks of 32 than in one chunk, and 19% more in chunks of 16 (two cores, 2026-11-26).
SMALLEST = {"cpu": 32}
SMALLEST_ELSEWHERE = 64  # on each device: fewer images do not fill a GPU or TPU

logger = logging.getLogger("ddpm_jax.progress")  # below the logger that `command` sets up


class ProgressLine:
    """Shows the reports of `runtime.progress`. Use it in `with`, and pass it as `progress`.

    The time of the first images includes the compilation. So the first estimate of the time left is
    an upper bound. Later estimates exclude the first images.

    Args:
      console: the console to write to; None is stderr. It decides whether there is a terminal.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True)
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[far]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._what = ""
        self._task = self._live.add_task("starting", total=None, far="")
        self._start = 0.0
        self._first: tuple[int, float] | None = None
        self._logged = -math.inf

    def __enter__(self) -> "ProgressLine":
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` units are done in the part `what` of the work."""
        now = time.perf_counter()
        begins = what != self._what
        if begins:
            self._what, self._start, self._first, self._logged = what, now, None, -math.inf
            self._live.remove_task(self._task)
            self._task = self._live.add_task(what, total=total, far="")
        if done and self._first is None:
            self._first = (done, now)
        left = self._left(done, total, now)
        far = f"{done:,}/{total:,}" if total > 1 else ""
        far += f", {left}" if left else ""
        self._live.update(self._task, completed=done, far=far)
        if self._console.is_terminal:
            return
        if begins or done >= total or now - self._logged >= LOG_EVERY:
            self._logged = now
            logger.info("%s: %s", what, far or ("done" if done else "started"))

    def _left(self, done: int, total: int, now: float) -> str:
        """Return a phrase with the time left, or "" if it is not known."""
        if self._first is None or not 0 < done < total:
            return ""
        n, since, most = (*self._first, "")
        if done == n:
            n, since, most = 0, self._start, "at most "
        seconds = (now - since) / (done - n) * (total - done)
        return f"{most}{datetime.timedelta(seconds=round(seconds))} left"


def chunk_size(n: int, most: int) -> int:
    """Return the number of images in a chunk, small enough for a few reports.

    Args:
      n: number of all images.
      most: maximum number of images in a chunk, `config.sample.chunk_size`.
    """
    least = SMALLEST.get(jax.default_backend(), SMALLEST_ELSEWHERE * jax.local_device_count())
    return min(most, max(least, math.ceil(n / REPORTS)))
