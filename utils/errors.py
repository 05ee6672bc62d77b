"""The one exception for a mistake in what a user gave us."""


class UserError(Exception):
    """One sentence for the person who made the mistake: the file, the line or key, what was found, what is allowed.

    `train.py` prints it on stderr without a traceback and ends with exit status 2.
    """
