"""Command lines: a parser whose mistakes are one sentence, and the kinds of arguments that the commands share."""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises UserError for a mistake in place of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with `message`."""
        raise UserError(message)


def at_least(lowest: int) -> Callable[[str], int]:
    """An argument's type: a whole number from `lowest`."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"found {text!r}, need a whole number from {lowest}")
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
