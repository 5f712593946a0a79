"""The metrics of the steps, written an interval late: the host never waits for the newest step."""

from collections.abc import Callable
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.runs.metrics import Interval, MetricsWriter
from ddpm_jax.training.progress import ProgressLine
from ddpm_jax.types import Array


class Log:
    """Gathers metrics on the device and writes each interval when the next one has ended.

    Args:
      writer: of the metrics' file and TensorBoard.
      progress: the line on the terminal.
      rate: step -> learning rate.
      max_nonfinite: updates that may be skipped in a row.
      last_good: () -> where the last good checkpoint is, in words.
    """

    def __init__(
        self,
        writer: MetricsWriter,
        progress: ProgressLine,
        rate: Callable[[Any], Any],
        max_nonfinite: int,
        last_good: Callable[[], str],
    ):
        self._writer, self._progress, self._rate = writer, progress, rate
        self._max_nonfinite, self._last_good = max_nonfinite, last_good
        self._current = Interval()
        self._late: tuple[int, Interval] | None = None

    def add(self, metrics: dict[str, Array]) -> None:
        """Add the metrics of one call."""
        self._current.add(metrics)

    def end_interval(self, step: int) -> None:
        """Write the interval before this one; this one ends after `step` steps of the run."""
        self.flush()
        self._writer.flush()
        if self._current:
            self._late, self._current = (step, self._current), Interval()

    def flush(self) -> int:
        """Give the ended interval to the writer; return the updates skipped in a row at its end.

        Raises:
          UserError: as many as `max_nonfinite` were skipped.
        """
        if self._late is None:
            return 0
        (step, interval), self._late = self._late, None
        row = interval.fetch()
        speed = self._progress.update(step, row["loss"])
        # Step n + 1, counted from 1, takes the rate at n updates
        row.update(learning_rate=float(self._rate(step - 1)), images_per_second=speed)
        self._writer.scalars(step, row)
        if row["skipped_in_a_row"] >= self._max_nonfinite:
            raise UserError(
                f"stopped at step {step}: the last {row['skipped_in_a_row']} updates were not "
                f"finite (NaN or infinity) and were skipped; {self._last_good()}; try a lower "
                "optim.learning_rate, optim.clip_norm=1.0 or model.dtype=float32"
            )
        return int(row["skipped_in_a_row"])
