"""Threads for work that waits for files or runs outside of Python."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

A, B = TypeVar("A"), TypeVar("B")
BLOCK = 10_000  # items given to the threads at once; each costs a kilobyte until it is done


def map_in_threads(fn: Callable[[A], B], items: Sequence[A], num_threads: int) -> Iterator[B]:
    """Yield `fn(item)` for each of `items`, in their order. Raises what `fn` raises."""
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(items), BLOCK):
            yield from pool.map(fn, items[start : start + BLOCK])


def map_ahead(fn: Callable[[A], B], items: Iterable[A], num_threads: int) -> Iterator[B]:
    """Yield `fn(item)` for each of `items`, in their order, with the next `num_threads` under way.

    Raises what `fn` raises, when it is that item's turn.
    """
    pool, pending = ThreadPoolExecutor(num_threads), deque()
    try:
        for item in items:
            pending.append(pool.submit(fn, item))
            if len(pending) > num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Background:
    """Calls functions in `num_threads` threads while the program continues.

    At most twice as many calls are open: then it waits for the first one.
    """

    def __init__(self, num_threads: int) -> None:
        self._pool, self._limit = ThreadPoolExecutor(num_threads), 2 * num_threads
        self._open: deque[Future] = deque()

    def call(self, fn: Callable[..., None], *args: object) -> Future:
        """Start `fn(*args)` and return its future. Raises what an earlier call has raised."""
        while self._open and (len(self._open) >= self._limit or self._open[0].done()):
            self._open.popleft().result()
        self._open.append(self._pool.submit(fn, *args))
        return self._open[-1]

    def wait(self) -> None:
        """Wait for all calls. Raises what the first of them has raised that raised anything."""
        wait(self._open)
        while self._open:
            self._open.popleft().result()

    def close(self) -> None:
        """Wait for all calls, as `wait` does, and end the threads."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
