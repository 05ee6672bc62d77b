"""Work in threads: in order, bounded, and with its errors."""

import threading
import time

import pytest

from data.threads import Background, map_ahead


def test_map_ahead_is_in_order_and_never_far_ahead():
    started = []

    def square(n: int) -> int:
        started.append(n)
        time.sleep(0.001 * (n % 3))
        return n * n

    results = map_ahead(square, iter(range(20)), num_threads=3)
    for n, result in enumerate(results):
        assert result == n * n
        assert len(started) <= n + 4
    assert len(started) == 20


def test_map_ahead_raises_at_the_items_turn_and_ends_its_threads():
    def invert(n: int) -> float:
        return 1 / n

    before = threading.active_count()
    results = map_ahead(invert, [2, 1, 0, 1], num_threads=2)
    assert next(results) == 0.5 and next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    abandoned = map_ahead(invert, [1] * 100, num_threads=2)
    next(abandoned)
    abandoned.close()
    assert threading.active_count() == before


def test_background_waits_and_raises_the_first_error():
    done = []

    def write(n: int) -> None:
        time.sleep(0.01)
        if n in (3, 5):
            raise OSError(f"disk full at {n}")
        done.append(n)

    background = Background(2)
    with pytest.raises(OSError, match="at 3"):
        for n in range(10):
            background.call(write, n)
            assert n - len(done) < 6
    with pytest.raises(OSError, match="at 5"):
        background.close()
    assert {0, 1, 2, 4} <= set(done)
