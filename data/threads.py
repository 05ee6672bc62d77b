"""Threads for work that waits for files or runs outside of Python."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A, B = TypeVar("A"), TypeVar("B")
BLOCK = 10_000  # items given to the threads at once; each costs a kilobyte until it is done


def map_in_threads(fn: Callable[[A], B], items: Sequence[A], num_threads: int) -> Iterator[B]:
    """Yield `fn(item)` for each of `items`, in their order. Raises what `fn` raises."""
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(items), BLOCK):
            yield from pool.map(fn, items[start : start + BLOCK])
