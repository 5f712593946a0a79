"""Metrics of a run: collected on the device, fetched once per log line, written to files.

The files are `metrics.jsonl` and TensorBoard's event files. A number that is not finite is null in
`metrics.jsonl`, because JSON has no NaN; `read` returns NaN for it.
"""

import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from ddpm_jax.runs.workdir import WorkDir
from ddpm_jax.runtime.files import replacing, to_json


class Interval:
    """The metrics of the steps since the last log line, still on the device."""

    def __init__(self) -> None:
        self._steps: list[dict[str, jax.Array]] = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Add the metrics of one call of the train step.

        Args:
          metrics: name -> scalar, or [steps, ...] if the call takes several steps.
        """
        self._steps.append(metrics)

    def __len__(self) -> int:
        """Return the number of calls."""
        return len(self._steps)

    def fetch(self) -> dict[str, float]:
        """Wait for the steps and return one row of metrics.

        Returns:
          "loss": mean over the interval's steps.
          "loss_t_quartile_<i>": mean loss of the images with t in the i-th quarter of {1..T}, if
            the objective has times.
          Other metrics of the objective: mean over the interval's steps.
          "grad_norm", "param_norm", "skipped", "skipped_in_a_row": values of the last step.
        """
        host = jax.device_get(self._steps)
        merged = {
            name: np.concatenate([np.atleast_1d(step[name]) for step in host])
            for name in host[0]
            if not name.startswith("quartile")
        }
        row = {"loss": float(merged["loss"].mean())}
        if "quartile_sum" in host[0]:
            row |= _by_quartile(host)
        last, counts = ("grad_norm", "param_norm"), ("skipped", "skipped_in_a_row")
        for name in sorted(merged.keys() - {"loss", *last, *counts}):
            row[name] = float(merged[name].mean())
        row |= {name: float(merged[name][-1]) for name in last}
        return row | {name: int(merged[name][-1]) for name in counts}


def _by_quartile(host: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Return the mean loss of the images with t in each quarter of {1..T} that has any."""
    sums = np.sum([step["quartile_sum"].reshape(-1, 4).sum(0) for step in host], axis=0)
    counts = np.sum([step["quartile_count"].reshape(-1, 4).sum(0) for step in host], axis=0)
    return {
        f"loss_t_quartile_{i}": float(total / count)
        for i, (total, count) in enumerate(zip(sums, counts, strict=True), start=1)
        if count
    }


class MetricsWriter:
    """Writes rows to `metrics.jsonl` and TensorBoard: one row for a step.

    A run that resumes at `step` may find rows of later steps, written before it was interrupted.
    These rows are deleted, so the file looks as if the run had never stopped.

    Args:
      workdir: the work directory of the run.
      step: the step at which the run starts or resumes.
      enabled: if False, nothing is written, as in processes that are not the leader.
    """

    def __init__(self, workdir: WorkDir, step: int, *, enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        self._row: dict[str, Any] = {}
        _cut(workdir.metrics, step)
        self._file = workdir.metrics.open("a")
        self._board = _summary_writer()(str(workdir.tensorboard), purge_step=step + 1)

    def scalars(self, step: int, row: dict[str, float]) -> None:
        """Add scalars to the row of a step, with the time (Unix, seconds).

        The row is written by `flush`, by `close` or before the first scalars of another step.
        """
        if not self._enabled:
            return
        if self._row and self._row["step"] != step:
            self.flush()
        self._row = self._row or {"step": step, "time": time.time()}
        self._row |= row
        for name, value in row.items():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a picture [H, W, C] uint8 to TensorBoard."""
        if self._enabled:
            self._board.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Write the row, if there is one; no more scalars of its step may come."""
        if self._enabled and self._row:
            self._file.write(_line(self._row))
            self._file.flush()
            self._row = {}

    def close(self) -> None:
        """Flush and close both files."""
        if self._enabled:
            self.flush()
            self._file.close()
            self._board.close()


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`; leave out lines damaged by a kill or by the disk.

    Older versions wrote NaN and Infinity, and could write two rows for a step; both are read.
    """
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append({k: math.nan if v is None else v for k, v in row.items()})
    return rows


def _line(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON."""
    return to_json(row) + "\n"


def _summary_writer() -> type:
    """Return tensorboardX's `SummaryWriter`, and keep tensorboardX from importing PyTorch.

    tensorboardX imports PyTorch if it is installed, only to check for it. That takes half the time
    of all imports of a training, and memory that nothing uses.
    """
    absent = "torch" not in sys.modules
    if absent:
        modules: dict[str, Any] = sys.modules
        modules["torch"] = None  # makes `import torch` raise ImportError
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules["torch"]
    return SummaryWriter


def _cut(path: pathlib.Path, step: int) -> None:
    """Delete the rows after `step`, atomically."""
    if not path.exists():
        return
    rows = [row for row in read(path) if row["step"] <= step]
    with replacing(path) as part:
        part.write_text("".join(map(_line, rows)))
