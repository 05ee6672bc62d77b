"""Messages of a run: printed by the main process only, and debug records that mark its stages.

A test or a tool that must act at a certain moment of a run adds a `logging.Handler` to `logger`.
The handler is called synchronously, with the stage as the record's message and its details in
`record.details`.
"""

import logging
import sys
from typing import Any

logger = logging.getLogger("train")
_is_main = True


def set_main(is_main: bool) -> None:
    """Choose whether this process prints; with several processes only rank 0 does."""
    global _is_main
    _is_main = is_main


def info(*lines: str) -> None:
    """Print each line on stdout."""
    if _is_main:
        for line in lines:
            print(line, flush=True)


def warning(*lines: str) -> None:
    """Print each line on stderr."""
    if _is_main:
        for line in lines:
            print(line, file=sys.stderr, flush=True)


def plural(count: int, noun: str) -> str:
    """Return "1 epoch" or "3 epochs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def stage(name: str, **details: Any) -> None:
    """Record that the run has reached the stage `name`, for example "batch", with its `details`."""
    logger.debug(name, extra={"details": details})
