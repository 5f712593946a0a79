"""Work done in threads a few items ahead of whoever wants the results."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def map_ahead(
    function: Callable[[In], Out], items: Iterable[In], num_threads: int, depth: int
) -> Iterator[Out]:
    """Yield `function(item)` for each item, in order, the next `depth` being computed in threads.

    An error in a thread is raised where its result would have come, with its traceback. The threads
    end with the iterator: when it is exhausted, closed, or no longer referred to.
    """
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
