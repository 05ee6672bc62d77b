"""Command lines: a parser whose mistakes are one sentence, and the kinds of arguments that the commands share."""

import argparse
import math
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from utils.errors import UserError

MAX_IMGSZ = 16384  # of a side; one sample takes 0.8 GB then


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises UserError for a mistake in place of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with `message`."""
        raise UserError(message)


def int_range(lowest: int, highest: int = 10**9) -> Callable[[str], int]:
    """An argument's type: a whole number from `lowest` to `highest`."""

    def integer(text: str) -> int:
        if not (
            text.removeprefix("-").isdecimal() and len(text) < 20 and lowest <= int(text) <= highest
        ):
            raise argparse.ArgumentTypeError(
                f"found {text[:40]!r}, need a whole number from {lowest} to {highest}"
            )
        return int(text)

    return integer


imgsz_pixels = int_range(32, MAX_IMGSZ)  # an argument's type: of a sample, in pixels


def imgsz_range(text: str) -> int | str:
    """An argument's type: pixels, or LOW-HIGH for a range of them, from 32 on; `span` rounds them up to steps of 32."""
    low, dash, high = text.partition("-")
    if not dash:
        return imgsz_pixels(text)
    sides = f"{imgsz_pixels(low)}-{imgsz_pixels(high)}"
    if imgsz_bounds(sides)[0] >= imgsz_bounds(sides)[1]:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, need a lower side before a higher one, 32 apart"
        )
    return sides


def imgsz_bounds(imgsz: int | str) -> tuple[int, int]:
    """The lowest and the highest side that `imgsz` means, pixels or LOW-HIGH, rounded up to steps of 32."""
    sides = [-(-int(imgsz_pixels) // 32) * 32 for imgsz_pixels in str(imgsz).split("-")]
    return sides[0], sides[-1]


def round_imgsz(imgsz: int | str) -> int | str:
    """`imgsz`, pixels or LOW-HIGH, with the sides that `span` takes it for."""
    low, high = imgsz_bounds(imgsz)
    return high if low == high else f"{low}-{high}"


def imgsz_warning(imgsz: int | str) -> list[str]:
    """A sentence if `rounded` is not what `imgsz` says."""
    taken = round_imgsz(imgsz)
    return (
        [f"imgsz {imgsz}: a side is a multiple of 32, so it is {taken}"]
        if str(taken) != str(imgsz)
        else []
    )


def freeze_spec(text: str) -> str:
    """An argument's type: backbone, or a number of layers from 1."""
    return text if text == "backbone" else str(int_range(1)(text))


def dir_name(text: str) -> str:
    """An argument's type: the name of a folder to be made, or folders in one another."""
    if not all(part.strip(".") for part in text.split("/")) or "\0" in text:
        raise argparse.ArgumentTypeError(f"found {text!r}, need the name of a folder")
    return text


def batch_size(text: str) -> int | str:
    """An argument's type: a whole number from 1, or auto."""
    return text if text == "auto" else int_range(1)(text)


def command_line(program: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The command that gives a program these arguments, those left out that have their defaults."""
    words = ["python", program]
    for key, value in arguments.items():
        if value != defaults[key] and key != "resume":
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def non_negative_float(text: str) -> float:
    """An argument's type: a number of minutes from 0, with or without a fraction."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, need a number of minutes from 0")
    return value


def unit_interval(text: str) -> float:
    """An argument's type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, need a number from 0 to 1")
    return value


def weights_path(text: str) -> str:
    """An argument's type: DEFAULT, or a path, made absolute."""
    return text if text == "DEFAULT" else abs_path(text)


def abs_path(text: str) -> str:
    """A path, made absolute, so that it names the same file from another folder."""
    return os.path.abspath(text)  # noqa: PTH100 - a link stays what it is called
