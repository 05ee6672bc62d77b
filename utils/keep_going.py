"""What a run can do without: plots and the report. If they fail, the run continues."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError, environment_error
from utils.log import warning

ROOT = Path(__file__).resolve().parents[1]


class KeepGoing:
    """Contexts in which an error is a warning that says what is missing, and why.

    `succeeded` is False once there was one. Signals and Ctrl-C are not errors and pass through.
    """

    def __init__(self) -> None:
        self.succeeded = True

    @contextmanager
    def without(self, name: object) -> Iterator[None]:
        """Context that makes `name`, for example the path of a file."""
        try:
            yield
        except Exception as error:
            self.succeeded = False
            warning(f"{name}: cannot be made: {explain(error)}")


def explain(error: Exception) -> str:
    """Return why `error` happened: in a sentence if that is known, else what it is and where."""
    known = str(error) if isinstance(error, UserError) else environment_error(error)
    if known:
        return known
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    frame = (ours or frames)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({frame.filename}, line {frame.lineno})"
