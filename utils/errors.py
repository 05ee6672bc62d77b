"""The one exception for a mistake in what a user gave us, and which of the system's errors are no fault of the program's."""

import errno

DISK_ERRORS = (  # of an OSError
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG,
)  # fmt: skip


class UserError(Exception):
    """One sentence for the person who made the mistake: the file, the line or key, what was found, what is allowed.

    `train.py` prints it on stderr without a traceback and ends with exit status 2.
    """
