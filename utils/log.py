"""Messages of a run: printed by the main process only, and debug records that mark its stages.

A test or a tool that must act at a certain moment of a run adds a `logging.Handler` to `logger`.
The handler is called synchronously, with the stage as the record's message and its details in
`record.details`.
"""

import contextlib
import errno
import logging
import os
import sys
import time
from typing import Any, TextIO

logger = logging.getLogger("train")
_is_main = True
_last_output = time.monotonic()  # when a line was printed


def set_main(is_main: bool) -> None:
    """Choose whether this process prints; with several processes only rank 0 does."""
    global _is_main
    _is_main = is_main


def is_main() -> bool:
    """Return whether this process prints."""
    return _is_main


def seconds_since_output() -> float:
    """Return for how long nothing has been printed, at most since `start_clock`."""
    return time.monotonic() - _last_output


def start_clock() -> None:
    """Begin a command: in a long-lived process the last output may be of another one, hours ago."""
    global _last_output
    _last_output = time.monotonic()


def info(*lines: str) -> None:
    """Print each line on stdout."""
    if _is_main:
        for line in lines:
            _print(line, sys.stdout)


def warning(*lines: str) -> None:
    """Print each line on stderr."""
    if _is_main:
        for line in lines:
            _print(line, sys.stderr)


def progress(line: str) -> None:
    """Print a line on stderr, where a terminal would have a progress bar."""
    if _is_main:
        _print(line, sys.stderr)


def error(line: str) -> None:
    """Print on stderr, from any process, why a command ends."""
    _print(line, sys.stderr)


def _print(line: str, stream: TextIO) -> None:
    """Print a line. A log that cannot be written (a closed pipe, a full disk) never ends a run."""
    global _last_output
    _last_output = time.monotonic()
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        _give_up(stream, error)


def flush() -> None:
    """Write what others have printed on stdout, such as argparse's help."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _give_up(sys.stdout, error)


def _give_up(stream: TextIO, error: OSError) -> None:
    """Discard what is printed from now on; say so if nobody has chosen it, as `| head` does."""
    _discard(stream)
    if stream is sys.stdout and error.errno != errno.EPIPE:
        warning(f"stdout: cannot be written: {error.strerror} (this does not end the run)")


def _discard(stream: TextIO) -> None:
    """Let all that is written to `stream` disappear, what is left in its buffer too.

    Otherwise Python reports the same error again when it exits.
    """
    with contextlib.suppress(OSError), open(os.devnull, "w") as null:  # noqa: PTH123 - a device
        os.dup2(null.fileno(), stream.fileno())


def accept_any_text() -> None:
    """Let stdout and stderr print every text in every encoding, or none if they are closed.

    A character that the encoding lacks, and a byte of a file name that is not UTF-8, becomes a
    backslash with its number.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the process was started with it closed: `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - for good
    for stream in (sys.stdout, sys.stderr):
        # Python's choice for the C locale, surrogateescape, prints such bytes as they are.
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return "1 epoch" or "3 epochs"; `nouns` is the plural where it is not `noun` with an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {nouns or f'{noun}s'}"


def stage(name: str, **details: Any) -> None:
    """Record that the run has reached the stage `name`, for example "batch", with its `details`."""
    logger.debug(name, extra={"details": details})
