"""What a main does, how far it is, and the time left: a live line, or plain lines in a log.

The line goes to stderr, since stdout is for results. Without a terminal, plain lines are written at
the start and the end of each part of the work, and every few seconds in between.
"""

import datetime
import logging
import math
import time

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LOG_EVERY = 5.0  # seconds between plain lines
REPORTS = 8  # chunks of a piece of work, if they are then large enough to be fast
# Images in such a chunk, at least. The digits' network takes 12% more CPU time for 64 images in
# chunks of 32 than at once, and 19% more in chunks of 16 (two cores, 2026-11-26).
SMALLEST = {"cpu": 32}
SMALLEST_ELSEWHERE = 64  # on each device: a GPU or TPU is not filled by fewer

logger = logging.getLogger("ddpm_jax.progress")  # below the logger that `command` sets up


class ProgressLine:
    """Shows the reports of `runtime.progress`; use it in `with`, and call it to report.

    The first images of a part include the compilation. The time left by them is an upper bound, and
    from then on it is measured without them.

    Args:
      console: where to write; None is stderr. It decides whether there is a terminal.
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
        """Show that `done` of the `total` units of this part of the work are done."""
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
        """Return the time left, or "" where it is not known."""
        if self._first is None or not 0 < done < total:
            return ""
        n, since, most = (*self._first, "")
        if done == n:
            n, since, most = 0, self._start, "at most "
        seconds = (now - since) / (done - n) * (total - done)
        return f"{most}{datetime.timedelta(seconds=round(seconds))} left"


def chunk_size(n: int, most: int) -> int:
    """Return how many of n images to compute at once, so that there are a few reports.

    Args:
      n: number of images.
      most: as many as fit on a device, `config.sample.chunk_size`.
    """
    least = SMALLEST.get(jax.default_backend(), SMALLEST_ELSEWHERE * jax.local_device_count())
    return min(most, max(least, math.ceil(n / REPORTS)))
