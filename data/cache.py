"""Caches the result of a slow scan in the dataset's directory, so that the next run starts faster.

A cache is used only if its key is the same, and every file that the scan read still has its size
and modification time. If the cache cannot be read or written, the dataset is scanned again.
"""

import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from utils.atomic import atomic_write

MIN_SCAN_SECONDS = 1.0  # a faster scan is not cached
MAX_CLOCK_ERROR = 60 * 10**9  # nanoseconds that the clock of a file server may be ahead
Arrays = dict[str, np.ndarray]


def cached(path: Path, cache_key: str, scan: Callable[[], tuple[Arrays, Iterable[str]]]) -> Arrays:
    """Return the arrays of `scan()`, from the cache file `path` if that is up to date.

    `scan` returns arrays of numbers or strings, and the files and directories it has read;
    `cache_key` is everything else that the result depends on. Raises what `scan` raises.
    """
    arrays = _read(path, cache_key)
    if arrays is not None:
        return arrays
    start, start_ns = time.monotonic(), time.time_ns()
    arrays, inputs = scan()
    if time.monotonic() - start > MIN_SCAN_SECONDS:
        _write(path, cache_key, arrays, list(inputs), start_ns)
    return arrays


def _fingerprint(cache_key: str, inputs: Iterable[str]) -> tuple[np.ndarray, int]:
    """Return a hash (32,) uint8 of the key and the path, size and time of every input.

    Also the latest of the times until now, in nanoseconds. A missing input counts, too: the hash
    changes when it appears.
    """
    digest = hashlib.blake2b(cache_key.encode("utf-8", "surrogatepass"), digest_size=32)
    latest_ns, now_ns = 0, time.time_ns() + MAX_CLOCK_ERROR
    for name in inputs:
        try:
            status = os.stat(name)  # noqa: PTH116 - faster than Path, 200,000 times
            text = f"\n{name} {status.st_size} {status.st_mtime_ns}"
            if status.st_mtime_ns <= now_ns:  # a date in the future is not that of a change
                latest_ns = max(latest_ns, status.st_mtime_ns)
        except OSError:
            text = f"\n{name}"
        digest.update(text.encode("utf-8", "surrogatepass"))
    return np.frombuffer(digest.digest(), np.uint8), latest_ns


def _read(path: Path, cache_key: str) -> Arrays | None:
    """Return the cached arrays, or None if there are none or they are outdated."""
    try:
        with np.load(path, allow_pickle=False) as file:
            inputs = file["inputs"].tobytes().decode("utf-8", "surrogatepass").split("\0")
            fingerprint, _ = _fingerprint(cache_key, inputs)
            if np.array_equal(file["fingerprint"], fingerprint):
                names = set(file.files) - {"inputs", "fingerprint"}
                return {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def _write(
    path: Path, cache_key: str, arrays: Arrays, inputs: list[str], scan_start_ns: int
) -> None:
    names = np.frombuffer("\0".join(inputs).encode("utf-8", "surrogatepass"), np.uint8)
    fingerprint, latest_ns = _fingerprint(cache_key, inputs)
    if latest_ns >= scan_start_ns:
        return  # it was changed during the scan, perhaps after it was read
    try:
        with atomic_write(path, durable=False) as file:
            np.savez(file, **arrays, inputs=names, fingerprint=fingerprint)
    except OSError:
        pass  # a read-only directory or a full disk: the next run scans again
