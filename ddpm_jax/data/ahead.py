"""Work done in threads a few items ahead of whoever wants the results."""

import collections
import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

LINGER = 5  # seconds to wait for a thread's last task when nobody wants its result any more


def map_ahead(
    function: Callable[[In], Out],
    items: Iterable[In],
    num_threads: int,
    depth: int,
    timeout: float | None = None,
) -> Iterator[Out]:
    """Yield `function(item)` for each item, in order, the next `depth` being computed in threads.

    An error in a thread is raised where its result would have come, with its traceback. The threads
    end with the iterator: when it is exhausted, closed, or no longer referred to.

    Raises:
      TimeoutError: a result did not come within `timeout` seconds; what hangs is left behind, and
        does not keep the process from ending.
    """
    # Not a ThreadPoolExecutor: Python waits for its threads at exit, for ever if one hangs.
    tasks: queue.SimpleQueue = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_work, args=(function, tasks), daemon=True)
        for _ in range(num_threads)
    ]
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    hung = False

    def take() -> Out:
        nonlocal hung
        future = pending.popleft()
        hung = bool(concurrent.futures.wait([future], timeout).not_done)
        if hung:
            raise TimeoutError(f"no result within {timeout:g} s")
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
