"""An object in a temporary file, whose arrays several processes map into their memory."""

import mmap
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ALIGNMENT = 64  # bytes, of the arrays in the file


class SharedFile(NamedTuple):
    """The path of the file, and the lengths of the parts in it: a pickle, and its arrays' bytes."""

    path: str
    lengths: list[int]


def write_shared(value: object) -> SharedFile:
    """Write `value` to a temporary file that only this user can read. Raises OSError."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
    handle, path = tempfile.mkstemp()
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
                file.write(bytes(-len(part) % ALIGNMENT))
    except BaseException:
        Path(path).unlink()
        raise
    return SharedFile(path, [*map(len, parts)])


def read_shared(file: SharedFile) -> Any:
    """Return the object in `file`; its arrays are the pages of the file, copied when changed.

    On Linux and macOS the file may be deleted afterwards.
    """
    with Path(file.path).open("rb") as opened:
        content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
    parts, start = [], 0
    for length in file.lengths:
        parts.append(content[start : start + length])
        start += length + -length % ALIGNMENT
    return pickle.loads(parts[0], buffers=parts[1:])
