"""Checkpoints: plain data on disk, written whole or not at all, read without running anything that is in them."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from utils.atomic import atomic_write
from utils.errors import UserError

FORMAT = 3  # raise it when the layout of the state changes


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) to `path`, replacing what is there only once all is on disk.

    Raises OSError when it cannot be written; `path` then still holds what it held.
    """
    try:
        with atomic_write(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except RuntimeError as error:
        # torch's writer trips over its own count when the file below it fails; what went wrong is the failure before.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in the file `path`, on the CPU. Raises UserError when it is not there, damaged, or not one of ours."""
    try:
        with zipfile.ZipFile(
            path
        ) as file:  # what torch.save writes; torch's old loader for anything else is not needed
            # torch.save does not compress, so what is loaded is no larger than the file; torch.load would unpack a bomb.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
            whole = (
                stored and file.testzip() is None
            )  # torch.save writes checksums, torch.load does not look at them
        state = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception:  # damaged bytes make the reader fail in whatever way they happen to
        raise UserError(f"{path}: is no checkpoint of this project, or is damaged") from None
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path}: is no checkpoint of this project, or is damaged")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: has format {state['format']}, this version reads format {FORMAT}")
    return state


@contextmanager
def checkpoint_errors(path: Path) -> Iterator[None]:
    """While the state of the checkpoint `path` is taken over: what it lacks, or holds in another kind or shape than is needed,
    is a UserError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{path}: holds no state that this version can go on from: {what[:300]}"
        ) from None
