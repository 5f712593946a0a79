"""`map_ahead`: the order, how far ahead it computes, errors, and that its threads end."""

import threading
import time
import traceback

import pytest

from ddpm_jax.data import ahead
from ddpm_jax.data.ahead import map_ahead


def wait_for_threads(count: int) -> int:
    """Wait until at most `count` threads run, at most two seconds; return how many run."""
    deadline = time.monotonic() + 2
    while threading.active_count() > count and time.monotonic() < deadline:
        time.sleep(0.01)
    return threading.active_count()


@pytest.mark.parametrize(("num_threads", "depth"), [(1, 0), (1, 2), (4, 8), (2, 100)])
def test_results_come_in_order(num_threads, depth):
    def slow_if_even(i):
        time.sleep(0.002 * (i % 2 == 0))
        return i * i

    assert list(map_ahead(slow_if_even, range(30), num_threads, depth)) == [
        i * i for i in range(30)
    ]


def test_works_depth_items_ahead_and_no_further():
    done = []
    results = map_ahead(lambda i: done.append(i) or i, range(100), num_threads=1, depth=3)
    assert next(results) == 0
    deadline = time.monotonic() + 2
    while len(done) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert done == [0, 1, 2, 3]
    results.close()


def test_an_error_arrives_in_its_place_with_its_traceback():
    def fails_at_three(i):
        if i == 3:
            raise KeyError("three")
        return i

    results = map_ahead(fails_at_three, range(10), num_threads=1, depth=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three") as caught:
        next(results)
    assert "fails_at_three" in "".join(traceback.format_tb(caught.value.__traceback__))


@pytest.mark.parametrize("how", ["exhausted", "closed", "dropped", "error"])
def test_no_thread_is_left(how):
    before = threading.active_count()

    def work(i):
        if how == "error" and i == 5:
            raise RuntimeError("five")
        return i

    results = map_ahead(work, range(1000), num_threads=2, depth=4)
    next(results)
    assert threading.active_count() > before
    if how == "exhausted":
        assert sum(1 for _ in results) == 999
    elif how == "closed":
        results.close()
    elif how == "dropped":
        del results
    else:
        with pytest.raises(RuntimeError, match="five"):
            list(results)
    assert wait_for_threads(before) == before


def test_what_hangs_is_given_up_soon_once_told_to_hurry(monkeypatch):
    monkeypatch.setattr(ahead, "GRACE", 0.2)
    monkeypatch.setattr(ahead, "POLL", 0.05)
    released, told = threading.Event(), threading.Event()
    results = map_ahead(
        lambda i: i == 0 or released.wait(60), range(3), 1, 0, timeout=50, hurry=told.is_set
    )
    assert next(results)
    threading.Timer(0.3, told.set).start()
    with pytest.raises(TimeoutError, match="nothing came within 0.2 seconds"):  # not within 50
        next(results)
    assert told.is_set()
    released.set()
