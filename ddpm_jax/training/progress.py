"""The progress of a training run: a live line on a terminal, plain lines otherwise."""

import collections
import datetime
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS = 10.0  # between lines
REMEMBERED = 10  # intervals; their mean speed gives the time left


class ProgressLine:
    """Shows the step, the loss, images/s and the time left.

    Args:
      console: the console to write to; it decides whether there is a terminal.
      start: the step where the run starts or resumes.
      stop: the step where the run ends.
      batch_size: number of images in a step.
    """

    def __init__(self, console: Console, start: int, stop: int, batch_size: int):
        self._console = console
        self._stop = stop
        self._batch_size = batch_size
        self._since: tuple[int, float] | None = None
        self._rate = 0.0
        self._past: collections.deque[tuple[int, float]] = collections.deque(maxlen=REMEMBERED)
        self._live = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("starting", total=stop, completed=start)

    def __enter__(self) -> "ProgressLine":
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def restart_clock(self, step: int) -> None:
        """Measure the speed from now on. Call it after compilation, pictures and checkpoints."""
        self._since = (step, time.perf_counter())

    def update(self, step: int, loss: float, ended: float) -> float:
        """Show the step and its loss; return the speed in images/s since the last update.

        Args:
          step: the step.
          loss: the mean loss since the last update.
          ended: the time when the step ended, in seconds of `time.perf_counter`.
        """
        if self._since is not None and step > self._since[0]:
            seconds = ended - self._since[1]
            if seconds > 0:  # a clock may stop or go back; then the last speed is kept
                steps = step - self._since[0]
                self._rate = steps * self._batch_size / seconds
                self._past.append((steps, seconds))
        self._since = (step, ended)
        left = "--"
        if self._past:
            steps, seconds = map(sum, zip(*self._past, strict=True))
            left = str(datetime.timedelta(seconds=round((self._stop - step) * seconds / steps)))
        text = f"loss {loss:.4f}  {self._rate:,.0f} images/s  {left} left"
        self._live.update(self._task, completed=step, description=text)
        if not self._console.is_terminal:
            self._console.print(f"step {step}/{self._stop}  {text}", highlight=False)
        return self._rate


class Throttled:
    """Prints the progress of work before the first step, at most every few seconds.

    It is a `runtime.progress.Progress`.

    Args:
      console: the console to write to.
    """

    def __init__(self, console: Console):
        self._console, self._last = console, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last >= SECONDS:
            self._last = now
            self._console.print(f"{what}: {done:,} of {total:,}")
