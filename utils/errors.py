"""`UserError` for invalid input, and messages for failures of the disk, memory and processes."""

import errno

DISK_ERRORS = (  # values of OSError.errno that mean the disk or its permissions, not a bug
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENAMETOOLONG,
)

_OUT_OF_MEMORY = "out of memory (reduce --batch-size or --imgsz)"
_LOST_PROCESS = "lost the connection to another process of the run (its own message says why)"
ENVIRONMENT_ERRORS = {  # part of the message of a RuntimeError raised by torch -> our message
    "shared memory": (  # before the next one, because it may be why a worker was killed
        "out of shared memory for batches (make /dev/shm larger, in Docker with --shm-size, or "
        "reduce --workers or --batch-size)"
    ),
    "DataLoader worker (pid": (
        "a DataLoader worker was killed, often for lack of memory (the system log has the reason)"
    ),
    "out of memory": _OUT_OF_MEMORY,
    "can't allocate memory": _OUT_OF_MEMORY,
    "Storage size calculation overflowed": _OUT_OF_MEMORY,
    "gloo/transport": _LOST_PROCESS,
    "remote process exited": _LOST_PROCESS,  # NCCL
}


class UserError(Exception):
    """Invalid input; the message is one sentence for the person who gave it.

    It names the file, the line or key, what was found and what is allowed. A
    command prints it on stderr without a traceback and exits with status 2.
    """


class OtherProcessFailed(Exception):
    """Another process of this run has failed, and reports the error; this one ends silently."""


def environment_error(error: Exception) -> str:
    """Return a message if `error` means a failure of the disk, memory or a process, else ""."""
    if isinstance(error, OSError):
        if error.errno not in DISK_ERRORS:
            return ""
        return f"{error.filename or 'the disk'}: {error.strerror}"
    if isinstance(error, MemoryError):
        return _OUT_OF_MEMORY
    matches = (message for text, message in ENVIRONMENT_ERRORS.items() if text in str(error))
    return next(matches, "")
