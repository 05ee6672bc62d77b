"""Command lines: a parser whose mistakes are one sentence, and the kinds of arguments that the commands share."""

import argparse
import math
import os
from collections.abc import Callable
from typing import NoReturn

from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises UserError for a mistake in place of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with `message`."""
        raise UserError(message)


def at_least(lowest: int, highest: int = 10**9) -> Callable[[str], int]:
    """An argument's type: a whole number from `lowest` to `highest`."""

    def integer(text: str) -> int:
        if not (text.removeprefix("-").isdecimal() and len(text) < 20 and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"found {text!r}, need a whole number from {lowest} to {highest}")
        return int(text)

    return integer


def minutes(text: str) -> float:
    """An argument's type: a number of minutes from 0, with or without a fraction."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, need a number of minutes from 0")
    return value


def share(text: str) -> float:
    """An argument's type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, need a number from 0 to 1")
    return value


def weights(text: str) -> str:
    """An argument's type: DEFAULT, or a path, made absolute."""
    return text if text == "DEFAULT" else absolute(text)


def absolute(text: str) -> str:
    """A path, made absolute, so that it names the same file from another folder."""
    return os.path.abspath(text)  # noqa: PTH100 - a link stays what it is called
