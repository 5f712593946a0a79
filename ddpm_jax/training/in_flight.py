"""How far the host runs ahead of the devices.

A request to stop waits for all calls in flight, so this module limits their number.
"""

import collections
import dataclasses
import time
from typing import Any

import jax

SECONDS = 1.0  # seconds of work that the devices hold in advance
MOST = 8  # calls that the devices hold at most, if calls are short


@dataclasses.dataclass
class Call:
    """A call of the train step.

    Attributes:
      metrics: a pytree of arrays that the call returned.
      ended: the time when the host saw that the call had ended, in seconds of
        `time.perf_counter`; None before that.
    """

    metrics: Any
    ended: float | None = None

    def is_ready(self) -> bool:
        """Return whether the call has ended, without a wait."""
        return all(leaf.is_ready() for leaf in jax.tree.leaves(self.metrics))


class InFlight:
    """The calls of the train step that were sent to the devices and may still run.

    At least one call waits behind the call that runs, so the devices are never idle.
    """

    def __init__(self) -> None:
        self._calls: collections.deque[Call] = collections.deque()
        self._limit = 1
        self._since = 0.0

    def add(self, metrics: Any) -> Call:
        """Add the results of a call, then wait until few enough calls are in flight.

        Args:
          metrics: a pytree of arrays that the call returned.
        """
        added = Call(metrics)
        self._calls.append(added)
        ended = 0
        while self._calls and (len(self._calls) > self._limit or self._calls[0].is_ready()):
            call = self._calls.popleft()
            jax.block_until_ready(call.metrics)
            call.ended = time.perf_counter()
            ended += 1
        if ended:
            now = time.perf_counter()
            seconds = max((now - self._since) / ended, 1e-6)  # per call; a clock may go back
            self._limit = max(1, min(MOST, int(SECONDS / seconds)))
            self._since = now
        return added
