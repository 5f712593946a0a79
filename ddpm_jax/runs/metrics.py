"""Metrics of a run: gathered on the device, fetched late, written to JSONL and TensorBoard."""

import json
import os
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from ddpm_jax.runs.workdir import WorkDir


class Interval:
    """The metrics of the steps since the last log line, still on the device."""

    def __init__(self) -> None:
        self._steps: list[dict[str, jax.Array]] = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Add the metrics of one call, of one step or of several stacked."""
        self._steps.append(metrics)

    def __len__(self) -> int:
        """Return the number of calls."""
        return len(self._steps)

    def fetch(self) -> dict[str, float]:
        """Wait for the steps and return the interval's means and last values."""
        host = jax.device_get(self._steps)
        merged = {
            name: np.concatenate([np.atleast_1d(step[name]) for step in host])
            for name in host[0]
            if not name.startswith("quartile")
        }
        row = {"loss": float(merged["loss"].mean())}
        sums = np.sum([step["quartile_sum"].reshape(-1, 4).sum(0) for step in host], axis=0)
        counts = np.sum([step["quartile_count"].reshape(-1, 4).sum(0) for step in host], axis=0)
        for i, (total, count) in enumerate(zip(sums, counts, strict=True), start=1):
            if count:  # t in the i-th quarter of {1..T}
                row[f"loss_t_quartile_{i}"] = float(total / count)
        for name in ("grad_norm", "param_norm"):
            row[name] = float(merged[name][-1])
        for name in ("skipped", "skipped_in_a_row"):
            row[name] = int(merged[name][-1])
        return row


class MetricsWriter:
    """Writes rows to `metrics.jsonl` and TensorBoard.

    Not `enabled`, as in the processes of a run that are not its leader, it writes nothing. Opened
    again at `step`, it drops the rows that an interrupted run wrote beyond it, so the file
    reads as if the run had never stopped.
    """

    def __init__(self, workdir: WorkDir, step: int, *, enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        _cut(workdir.metrics, step)
        self._file = workdir.metrics.open("a")
        self._board = _summary_writer()(str(workdir.tensorboard), purge_step=step + 1)

    def scalars(self, step: int, row: dict[str, float]) -> None:
        """Write one row of scalars."""
        if not self._enabled:
            return
        self._file.write(json.dumps({"step": step, "time": time.time(), **row}) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a picture [H, W, C] uint8 to TensorBoard."""
        if self._enabled:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both."""
        if self._enabled:
            self._file.close()
            self._board.close()


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`, leaving out lines that a kill or the disk damaged."""
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _summary_writer() -> type:
    """Return tensorboardX's `SummaryWriter`, imported without PyTorch.

    It would import it wherever it is installed, to see whether it is: half the time of all imports
    of a training, and memory that nothing uses.
    """
    absent = "torch" not in sys.modules
    if absent:
        modules: dict[str, Any] = sys.modules
        modules["torch"] = None  # by which `import torch` is an ImportError
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules["torch"]
    return SummaryWriter


def _cut(path: pathlib.Path, step: int) -> None:
    """Drop the rows beyond `step`, atomically."""
    if not path.exists():
        return
    rows = [row for row in read(path) if row["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, path)
