"""A map over items that computes a few results ahead, in threads."""

import collections
import concurrent.futures
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

POLL = 1  # seconds between two calls of hurry()
GRACE = 5  # seconds that a result may take once hurry() is true
LINGER = 5  # seconds to wait at the end for each thread's last task


def map_ahead(
    function: Callable[[In], Out],
    items: Iterable[In],
    num_threads: int,
    depth: int,
    timeout: float | None = None,
    hurry: Callable[[], bool] = lambda: False,
) -> Iterator[Out]:
    """Yield `function(item)` for each item, in order; threads compute the next `depth` results.

    An error in a thread is raised in place of that item's result, with its traceback. The threads
    end when the iterator is exhausted, closed or garbage-collected.

    Args:
      function: called in the threads.
      items: read lazily, at most `depth` + 1 items ahead.
      num_threads: number of threads.
      depth: number of results computed ahead.
      timeout: seconds to wait for one result; None is no limit.
      hurry: called about once a second during a wait; true lowers the limit to `GRACE` seconds.

    Raises:
      TimeoutError: a result took more than `timeout` seconds, or more than `GRACE` seconds while
        `hurry()` was true. The hanging thread stays, but it does not keep the process alive.
    """
    # Not a ThreadPoolExecutor: at exit Python joins its threads, so one hanging thread blocks it.
    tasks: queue.SimpleQueue = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_work, args=(function, tasks), daemon=True)
        for _ in range(num_threads)
    ]
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    hung, limit = False, math.inf

    def take() -> Out:
        nonlocal hung, limit
        future = pending.popleft()
        start = time.monotonic()
        while not (hung or future.done()):
            waited = time.monotonic() - start
            limit = min(timeout or math.inf, GRACE if hurry() else math.inf)
            hung = waited >= limit
            concurrent.futures.wait([future], max(0.0, min(POLL, limit - waited)))
        if hung:
            raise TimeoutError(f"nothing came within {limit:g} seconds")
        return future.result()

    try:
        for thread in threads:
            thread.start()
        for item in items:
            pending.append(concurrent.futures.Future())
            tasks.put((pending[-1], item))
            if len(pending) > depth:
                yield take()
        while pending:
            yield take()
    finally:
        for future in pending:
            future.cancel()
        for _ in threads:
            tasks.put(None)
        for thread in threads if not hung else ():
            thread.join(LINGER)


def _work(function: Callable[[In], Out], tasks: queue.SimpleQueue) -> None:
    """Run tasks (future, item) from the queue until a None comes."""
    while (task := tasks.get()) is not None:
        future, item = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)
        del task, future, item  # so that the wait for the next task keeps no result alive
