"""Requests to stop: after Ctrl-C, SIGTERM or SIGHUP a run ends its step and saves a checkpoint."""

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class StopRequest:
    """Inside `with StopRequest() as stop`, SIGINT, SIGTERM and SIGHUP ask the run to stop.

    SIGHUP comes when a terminal or an ssh connection closes. Under nohup, SIGHUP is still ignored.

    In a run of one process, the first signal sets `stop.signal`. The next signal of the same kind
    acts as usual: Ctrl-C raises KeyboardInterrupt, SIGTERM ends the process. A second SIGHUP does
    nothing, because the shell and the kernel both send SIGHUP.

    In a run of several processes, JAX catches a SIGTERM to any process. Ctrl-C and SIGHUP are
    converted to SIGTERM. The processes then agree on the call after which all of them stop.

    The `with` block must be in the main thread.

    Attributes:
      signal: number of the signal that asked to stop, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._several = jax.process_count() > 1

    def __enter__(self) -> "StopRequest":
        numbers = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
        if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:  # ignored: nohup
            numbers.append(HANGUP)
        for number in numbers:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def now(self, call: int) -> bool:
        """Return whether to stop now. Every process must call this once after each training call.

        Args:
          call: index of the training call, 0, 1, 2, ..., the same in all processes.
        """
        if self._several and multihost_utils.reached_preemption_sync_point(call):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number != HANGUP:
            signal.signal(number, self._before[number])
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.signal is None:
            self.signal = number
