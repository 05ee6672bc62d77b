"""Files that are replaced completely or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.errors import DISK_ERRORS


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, which replaces `path` once it is completely on disk.

    A cache need not be `durable`: it is not waited for until it is on the disk, and several
    processes may write it at once, each to a temporary file of its own. A power failure can leave
    a part of it, which its reader has to recognize.

    If anything fails before that (an OSError, which then has a `filename`, or any exception of the
    caller), the old content of `path` is left unchanged.
    """
    unique = "" if durable else f".{uuid.uuid4().hex}"
    temporary = path.with_name(f"{path.name}{unique}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    if durable and os.name == "posix":
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Wait until a rename in the directory is on disk; a power failure can undo it otherwise.

    Some network file systems cannot do it; the file is in its place all the same. A disk that fails
    or is full is an error.
    """
    try:
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            error.filename = str(path)
            raise
