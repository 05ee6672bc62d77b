"""Keeps what the scan of a large data set found beside the data, so that the next run starts without it.

A cache is taken only if it answers the same question and every file that the scan looked at has the size and time it had then.
Where it cannot be written or read, the data are scanned.
"""

import hashlib
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

WORTH_KEEPING = 1.0  # seconds; a quicker scan leaves no file behind
Arrays = dict[str, np.ndarray]


def cached(path: Path, question: str, scan: Callable[[], tuple[Arrays, Iterable[str]]]) -> Arrays:
    """What `scan()` finds, or found when it was last asked `question`: arrays of numbers or text, and the files it looked at.

    `path` is the cache's file. Raises what `scan` raises.
    """
    if (kept := _read(path, question)) is not None:
        return kept
    began = time.monotonic()
    arrays, inputs = scan()
    if time.monotonic() - began > WORTH_KEEPING:
        _write(path, question, arrays, list(inputs))
    return arrays


def _state(question: str, inputs: Iterable[str]) -> np.ndarray:
    """A fingerprint (32,) uint8 of the question and of each input's path, size and time; a missing file's is its absence."""
    found = hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=32)
    for name in inputs:
        try:
            status = os.stat(name)  # noqa: PTH116 - quicker than by a Path, 200,000 times
            text = f"\n{name} {status.st_size} {status.st_mtime_ns}"
        except OSError:
            text = f"\n{name}"
        found.update(text.encode("utf-8", "surrogatepass"))
    return np.frombuffer(found.digest(), np.uint8)


def _read(path: Path, question: str) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            inputs = file["inputs"].tobytes().decode("utf-8", "surrogatepass").split("\0")
            if np.array_equal(file["state"], _state(question, inputs)):
                return {name: file[name] for name in file.files if name not in ("inputs", "state")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def _write(path: Path, question: str, arrays: Arrays, inputs: list[str]) -> None:
    names = np.frombuffer("\0".join(inputs).encode("utf-8", "surrogatepass"), np.uint8)
    try:
        # A name of its own: several processes may read the same data at the same time.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays, inputs=names, state=_state(question, inputs))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError:
        pass  # a folder that is not to be written, or a full disk: the next run scans again
