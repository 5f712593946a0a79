"""A request to stop: Ctrl-C or SIGTERM lets the step in progress end and a checkpoint be saved."""

import signal
from types import FrameType


class StopRequest:
    """Inside `with StopRequest() as stop`, the first SIGINT or SIGTERM sets `stop.signal`.

    A second one acts as it would without us (Ctrl-C raises KeyboardInterrupt, SIGTERM ends the
    process). Must be entered in the main thread.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
