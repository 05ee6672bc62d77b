"""Checkpoints: plain data on disk, written whole or not at all, read without running anything that is in them."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError

FORMAT = 2  # raise it when the layout of the state changes


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) to `path`, replacing what is there only once all is on disk.

    Raises OSError when it cannot be written; `path` then still holds what it held.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must survive a power cut, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in the file `path`, on the CPU. Raises UserError when it is not there, damaged, or not one of ours."""
    try:
        with path.open("rb") as file:
            is_zip = zipfile.is_zipfile(file)  # what torch.save writes; torch's old loader for anything else is not needed
        state = torch.load(path, map_location="cpu", weights_only=True) if is_zip else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception:  # damaged bytes make the reader fail in whatever way they happen to
        raise UserError(f"{path}: is no checkpoint of this project, or is damaged") from None
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{path}: is no checkpoint of this project, or is damaged")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: has format {state['format']}, this version reads format {FORMAT}")
    return state


def newest_checkpoint(project: Path) -> Path:
    """The `weights/last.pt` below `project` that was written last. Raises UserError when there is none."""
    found = list(project.glob("**/weights/last.pt"))
    if not found:
        raise UserError(f"--resume: there is no weights/last.pt below {project}")
    return max(found, key=lambda path: path.stat().st_mtime_ns)
