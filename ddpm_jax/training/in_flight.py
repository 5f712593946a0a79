"""How far the host runs ahead of the devices.

A request to stop waits for all calls in flight, so this module limits their number.
"""

import collections
import time
from typing import Any

import jax

SECONDS = 1.0  # seconds of work that the devices hold in advance
MOST = 8  # calls that the devices hold at most, if calls are short


class InFlight:
    """The calls of the train step that were sent to the devices and may still run.

    At least one call waits behind the call that runs, so the devices are never idle.
    """

    def __init__(self) -> None:
        self._calls: collections.deque[Any] = collections.deque()
        self._limit = 1
        self._since = 0.0

    def add(self, metrics: Any) -> None:
        """Add the results of a call, then wait until few enough calls are in flight.

        Args:
          metrics: a pytree of arrays that the call returned.
        """
        self._calls.append(metrics)
        ended = max(0, len(self._calls) - self._limit)
        for _ in range(ended):
            jax.block_until_ready(self._calls.popleft())
        if ended:
            now = time.perf_counter()
            seconds = max((now - self._since) / ended, 1e-6)  # per call; a clock may go back
            self._limit = max(1, min(MOST, int(SECONDS / seconds)))
            self._since = now
