"""What the commands share: a parser with one-line errors, argument types, exit statuses."""

import argparse
import functools
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from utils import log
from utils.errors import OtherProcessFailed, UserError, environment_error
from utils.interrupt import Interrupted
from utils.letterbox import MAX_IMGSZ, imgsz_bounds
from utils.yolov5_flags import translate


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises UserError instead of printing its usage and exiting.

    Flags of YOLOv5 and Ultralytics are taken where they mean the same, and answered otherwise.
    """

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse `args`, or the command line for None, once `translate` has seen them."""
        words = sys.argv[1:] if args is None else args
        words = translate(self.prog, words, self._option_string_actions)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with `message`."""
        raise UserError(message)


def run_cli(command: str, main_fn: Callable[[], None]) -> int:
    """Run `main_fn` and return the exit status of `command`.

    0 on success, 128 + its number after a signal (Ctrl-C: 130), and 2, after one line on stderr,
    for a UserError or an `environment_error`. For OtherProcessFailed it is 2 without a line. Output
    that nobody reads, as in `| head`, changes none of this.
    """
    log.accept_any_text()
    log.start_clock()
    try:
        main_fn()
    except UserError as error:
        # From a DataLoader worker the message arrives after the worker's traceback.
        message = str(error).rstrip().rpartition("UserError: ")[2]
        log.error(f"{command}: {message}")
        return 2
    except OtherProcessFailed:
        return 2
    except (OSError, MemoryError, RuntimeError) as error:
        message = environment_error(error)
        if not message:
            raise
        log.error(f"{command}: {message}")
        return 2
    except Interrupted as error:
        if error.message:
            log.error(f"{command}: {error.message}")
        return 128 + error.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        log.flush()
    return 0


def cli_command(name: str) -> Callable[[Callable[..., None]], Callable[..., int]]:
    """Decorate the main function of a command, so that it returns the exit status of `run_cli`."""

    def decorate(main_fn: Callable[..., None]) -> Callable[..., int]:
        @functools.wraps(main_fn)
        def main(argv: list[str] | None = None) -> int:
            return run_cli(name, lambda: main_fn(argv))

        return main

    return decorate


# ----------------------------------------------------------------------------------------------
# Argument types: each converts the text of an argument or raises argparse.ArgumentTypeError.


def int_range(low: int, high: int = 10**9) -> Callable[[str], int]:
    """Return an argument type: an integer from `low` to `high`."""

    def integer(text: str) -> int:
        # int() refuses very long texts with an error of its own, and accepts "1_000" and " 1".
        is_integer = text.removeprefix("-").isdecimal() and len(text) < 20
        if not is_integer or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"found {text[:40]!r}, need an integer from {low} to {high}"
            )
        return int(text)

    return integer


def _float_range(text: str, high: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= high:  # false for nan, too
        raise argparse.ArgumentTypeError(f"found {text!r}, need {expected}")
    return value


def unit_interval(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    return _float_range(text, 1, "a number from 0 to 1")


def non_negative_float(text: str) -> float:
    """Argument type: a finite number from 0."""
    return _float_range(text, sys.float_info.max, "a finite number from 0")


def batch_size(text: str) -> int | str:
    """Argument type: an integer from 1, or auto."""
    return text if text == "auto" else int_range(1)(text)


_imgsz = int_range(32, MAX_IMGSZ)


def imgsz_range(text: str) -> int | str:
    """Argument type: an image size in pixels, or MIN-MAX; not yet rounded to the stride."""
    low, dash, high = text.partition("-")
    if not dash:
        return _imgsz(text)
    sizes = f"{_imgsz(low)}-{_imgsz(high)}"
    minimum, maximum = imgsz_bounds(sizes)
    if minimum >= maximum:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, need MIN-MAX with MAX at least 32 above MIN"
        )
    return sizes


def freeze_spec(text: str) -> str:
    """Argument type: backbone, or a number of layers from 1."""
    return text if text == "backbone" else str(int_range(1)(text))


def dir_name(text: str) -> str:
    """Argument type: a directory name, or a relative path of nested ones without `.` and `..`."""
    if not all(part.strip(".") for part in text.split("/")) or "\0" in text:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, need a directory name without . and .. (--project is its parent)"
        )
    return text


def weights_path(text: str) -> str | None:
    """Argument type: DEFAULT, a path, made absolute, or '' for random weights."""
    if not text:
        return None
    return text if text == "DEFAULT" else abs_path(text)


def abs_path(text: str) -> str:
    """Argument type: a path, made absolute so that it is valid in any working directory."""
    return os.path.abspath(text)  # noqa: PTH100 - Path.resolve() would also follow symbolic links
