"""Checkpoints: plain data, written whole or not at all, read without running anything in them.

A checkpoint is a header and the state of each part of a run. A part is any object with
`state_dict` and `load_state_dict`; `parts` maps names to them. Saving walks that dict, and so does
restoring.
"""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from utils.atomic import atomic_write
from utils.errors import UserError, environment_error

FORMAT = 4  # to be raised when the layout changes
HEADER = (
    "format", "args", "hyp", "class_names", "model_config", "data_fingerprint", "environment",
)  # fmt: skip
NEW_HEADER = ("detection_limit", "stride")  # what older checkpoints lack


class Part(Protocol):
    """Something whose state is saved and restored with a run."""

    def state_dict(self) -> Any:
        """Return the state as plain data: tensors, numbers, strings, lists, dicts."""

    def load_state_dict(self, state: Any) -> Any:
        """Restore what `state_dict` returned."""


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write `state` (plain data) to `path`, which is replaced only once all of it is on disk.

    Raises OSError when it cannot be written; `path` then still holds what it held.
    """
    try:
        with atomic_write(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except RuntimeError as error:
        # If the file below it fails, or a signal handler raises (as torch's does when a DataLoader
        # worker was killed), torch's writer then raises an error of its own about the file's end.
        if isinstance(error.__context__, OSError | RuntimeError):
            raise error.__context__ from None
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load the checkpoint `path` to the CPU.

    Raises UserError when it is not found, corrupted, of another format, or not one of ours, and
    MemoryError or RuntimeError when there is too little memory for it.
    """
    try:
        # torch.save writes zip files; torch's loader for older formats is not needed.
        with zipfile.ZipFile(path) as file:
            # torch.save does not compress. torch.load would unpack a compressed file of any size.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
            intact = stored and file.testzip() is None  # torch.load does not check the checksums
        state = torch.load(path, map_location="cpu", weights_only=True) if intact else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # corrupted bytes make the reader fail in any possible way
        if environment_error(error):  # too little memory
            raise
        state = None
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(
            f"{path}: not a checkpoint of this project, or corrupted (need best.pt or last.pt of "
            "a run of train.py)"
        )
    if state["format"] != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {state['format']}, but this version reads format {FORMAT} "
            "(use the version that wrote it, or start a new run)"
        )
    return state


def part_states(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return the state of each part by its name."""
    return {name: part.state_dict() for name, part in parts.items()}


def restore(parts: Mapping[str, Part], checkpoint: Mapping[str, Any], path: Path) -> None:
    """Restore every part from `checkpoint`, which was read from `path`.

    Raises UserError that names a part without a state, a state without a part, or the part whose
    state does not fit.
    """
    saved = checkpoint.keys() - {*HEADER, *NEW_HEADER}
    if missing := sorted(parts.keys() - saved):
        raise UserError(f"{path}: no state for {', '.join(missing)} (--resume needs a last.pt)")
    if unknown := sorted(saved - parts.keys()):
        raise UserError(
            f"{path}: state of {', '.join(unknown)}, which this version does not have (use the "
            "version that wrote it)"
        )
    for name, part in parts.items():
        with checkpoint_errors(path, name):
            part.load_state_dict(checkpoint[name])


@contextmanager
def checkpoint_errors(path: Path, part: str = "") -> Iterator[None]:
    """Turn an error from a missing or wrong entry of the checkpoint `path` into a UserError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        what = f"{path}: {part}" if part else str(path)
        raise UserError(
            f"{what}: cannot be used by this version: {reason[:300]} (use the version that wrote "
            "it)"
        ) from None
