"""Work done in threads a few items ahead of whoever wants the results."""

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

LOOK = 1  # seconds between looks at whether to hurry
GRACE = 5  # seconds that a result may still take once told to hurry
LINGER = 5  # seconds to wait for a thread's last task when nobody wants its result any more


def map_ahead(
    function: Callable[[In], Out],
    items: Iterable[In],
    num_threads: int,
    depth: int,
    timeout: float | None = None,
    hurry: Callable[[], bool] = lambda: False,
) -> Iterator[Out]:
    """Yield `function(item)` for each item, in order, the next `depth` being computed in threads.

    An error in a thread is raised where its result would have come, with its traceback. The threads
    end with the iterator: when it is exhausted, closed, or no longer referred to.

    Raises:
      TimeoutError: a result did not come within `timeout` seconds, or `GRACE` once `hurry()` is
        true; what hangs is left behind, and does not keep the process from ending.
    """
    # Not a ThreadPoolExecutor: Python waits for its threads at exit, for ever if one hangs.
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
            concurrent.futures.wait([future], max(0.0, min(LOOK, limit - waited)))
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
    """Do tasks, (future, item), until there comes None."""
    while (task := tasks.get()) is not None:
        future, item = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)
        del task, future, item  # not to be held while waiting for the next
