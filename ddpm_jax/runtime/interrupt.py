"""A request to stop: Ctrl-C or SIGTERM lets the step in progress end and a checkpoint be saved."""

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Inside `with StopRequest() as stop`, SIGINT and SIGTERM ask the run to stop.

    In a run of one process the first of either sets `stop.signal`, and a second one acts as it
    would without us (Ctrl-C raises KeyboardInterrupt, SIGTERM ends the process). In a run of
    several, JAX itself notes a SIGTERM to any of them (a Ctrl-C is handed on as one), and they
    agree on the call after which all stop. Must be entered in the main thread.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._several = jax.process_count() > 1

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def now(self, call: int) -> bool:
        """Return whether to stop after this call; to be asked once after each, by every process.

        Args:
          call: 0, 1, 2, ...: the same in all processes.
        """
        if self._several and multihost_utils.reached_preemption_sync_point(call):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, self._before[number])
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = number
