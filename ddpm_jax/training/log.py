"""The log of a run. Metrics are written one interval late.

So the host never waits for the newest step.
"""

import time
from collections.abc import Callable
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.runs.metrics import Interval, MetricsWriter
from ddpm_jax.training.in_flight import Call
from ddpm_jax.training.progress import ProgressLine
from ddpm_jax.types import Array


class Log:
    """Collects metrics on the device. Writes each interval when the next interval has ended.

    Args:
      writer: writes the metrics file and TensorBoard.
      progress: the progress line on the terminal.
      rate: step -> learning rate.
      max_nonfinite: the run stops after this number of skipped updates in a row.
      last_good: () -> a phrase that says where the last good checkpoint is.
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
        self._late: tuple[int, Interval, Call] | None = None

    def add(self, metrics: dict[str, Array]) -> None:
        """Add the metrics of one call: scalars or [n], on the device."""
        self._current.add(metrics)

    def end_interval(self, step: int, call: Call) -> None:
        """Write the previous interval, and end the current one.

        Args:
          step: the number of steps of the run at the end of the interval.
          call: the last call of the interval.

        Raises:
          UserError: as `flush`.
        """
        self.flush()
        self._writer.flush()
        if self._current:
            self._late, self._current = (step, self._current, call), Interval()

    def flush(self) -> int:
        """Write the ended interval; return how many updates in a row were skipped at its end.

        Raises:
          UserError: `max_nonfinite` updates in a row were skipped.
        """
        if self._late is None:
            return 0
        (step, interval, call), self._late = self._late, None
        row = interval.fetch()  # waits until the call has ended
        speed = self._progress.update(step, row["loss"], call.ended or time.perf_counter())
        # Step n + 1, counted from 1, uses the learning rate after n updates
        row.update(learning_rate=float(self._rate(step - 1)), images_per_second=speed)
        self._writer.scalars(step, row)
        if row["skipped_in_a_row"] >= self._max_nonfinite:
            raise UserError(
                f"stopped at step {step}: the last {row['skipped_in_a_row']} updates were not "
                f"finite (NaN or infinity) and were skipped; {self._last_good()}; try a lower "
                "optim.learning_rate, optim.clip_norm=1.0 or model.dtype=float32"
            )
        return int(row["skipped_in_a_row"])
