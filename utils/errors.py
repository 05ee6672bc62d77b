"""The one exception for a mistake in what a user gave us, and which other errors are no fault of the program's."""

import errno
import signal
import sys
from collections.abc import Callable

DISK_ERRORS = (  # of an OSError
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG,
)  # fmt: skip

_NO_MEMORY = "there is too little memory; a smaller --batch-size or --imgsz needs less"
ENVIRONMENT_ERRORS = {  # what torch says in a RuntimeError of its own: what happened, and what may help
    "DataLoader worker (pid": "a loader process was killed, for which the system's log has a reason; too little memory, often",
    "out of memory": _NO_MEMORY,
    "can't allocate memory": _NO_MEMORY,
}


class UserError(Exception):
    """One sentence for the person who made the mistake: the file, the line or key, what was found, what is allowed.

    A command prints it on stderr without a traceback and ends with exit status 2.
    """


def environment_error(error: Exception) -> str:
    """What has failed beneath the program, as a sentence: a disk, memory, a loader's process. "" for anything else."""
    if isinstance(error, OSError):
        return (
            f"{error.filename or 'the disk'}: {error.strerror}"
            if error.errno in DISK_ERRORS
            else ""
        )
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    return next(
        (sentence for sign, sentence in ENVIRONMENT_ERRORS.items() if sign in str(error)), ""
    )


def run_cli(command: str, work: Callable[[], None]) -> int:
    """Do the `work` of a command; 0, or 2 after one sentence on stderr for a user's mistake or a `machine_fault`, or 130 after
    Ctrl-C."""
    try:
        work()
    except UserError as error:
        # One that a loader's process raised comes with that process's traceback before the sentence.
        print(f"{command}: {str(error).rstrip().rpartition('UserError: ')[2]}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, RuntimeError) as error:
        if not (sentence := environment_error(error)):
            raise
        print(f"{command}: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0
