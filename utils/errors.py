"""The one exception for a mistake in what a user gave us, and which of the system's errors are no fault of the program's."""

import errno
import sys
from collections.abc import Callable

DISK_ERRORS = (  # of an OSError
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG,
)  # fmt: skip


class UserError(Exception):
    """One sentence for the person who made the mistake: the file, the line or key, what was found, what is allowed.

    A command prints it on stderr without a traceback and ends with exit status 2.
    """


def exit_status(command: str, work: Callable[[], None]) -> int:
    """Do the `work` of a command; 0, or 2 after one sentence on stderr for a user's mistake, or for a disk that fails."""
    try:
        work()
    except UserError as error:
        # One that a loader's process raised comes with that process's traceback before the sentence.
        print(f"{command}: {str(error).rstrip().rpartition('UserError: ')[2]}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"{command}: {error.filename or 'the disk'}: {error.strerror}", file=sys.stderr)
        return 2
    return 0
