"""The directory of a run, runs/train/exp: what is written to it besides plots, and its name."""

import copy
import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.atomic import atomic_write
from utils.checkpoint import HEADER, NEW_HEADER, save_checkpoint
from utils.errors import UserError
from utils.log import warning

BEST_KEYS = (*HEADER, *NEW_HEADER, "ema", "progress")  # of a checkpoint: what best.pt holds


def new_dir(project: Path, name: str, exist_ok: bool) -> Path:
    """Make `project`/`name`, or if it exists and `exist_ok` is not set, name2, name3, ...

    Raises UserError when it cannot be made.
    """
    path, number = project / name, 1
    while True:
        try:
            path.mkdir(parents=True, exist_ok=exist_ok)
            return path
        except FileExistsError:
            if exist_ok:  # mkdir raises it for a file even then
                raise UserError(f"--project {project}: {path} is not a directory") from None
            number += 1
            path = project / f"{name}{number}"
        except OSError as error:
            raise UserError(
                f"--project {project}: cannot create {path}: {error.strerror}"
            ) from None


def new_run_dir(project: Path, name: str, exist_ok: bool) -> Path:
    """Make a `new_dir` for a training run, with `weights` in it.

    Deletes old checkpoints and results, so that they are not mistaken for the new run's. Raises
    UserError when the directory cannot be made.
    """
    path = new_dir(project, name, exist_ok)
    try:
        (path / "weights").mkdir(exist_ok=True)
        for old in (*saved_checkpoints(path), path / "results.csv"):
            old.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--project {project}: cannot use {path}: {error.strerror}") from None
    return path


def saved_checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints in a run directory: last.pt and best.pt, if it has them, epochN.pt."""
    weights = run_dir / "weights"
    named = [path for path in (weights / "last.pt", weights / "best.pt") if path.exists()]
    numbered = sorted(weights.glob("epoch*.pt"))
    return named + [path for path in numbered if path.stem.removeprefix("epoch").isdecimal()]


def run_dir_of(checkpoint: Path) -> Path:
    """Return the run directory of a checkpoint. Raises UserError when it is not inside of one."""
    # Not resolve(), which would follow a link from `weights` to another disk.
    path = Path(os.path.abspath(checkpoint)).parent  # noqa: PTH100
    if path.name != "weights":
        raise UserError(f"{checkpoint}: not inside a run directory (expected RUN/weights/last.pt)")
    return path.parent


def latest_checkpoint(project: Path) -> Path:
    """Return the newest `weights/last.pt` below `project`. Raises UserError when there is none."""
    checkpoints = list(project.glob("**/weights/last.pt"))
    if not checkpoints:
        raise UserError(
            f"--resume: no weights/last.pt found below {project} (name the run, --resume RUN, or "
            "the --project that it is in)"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime_ns)


class RunDir:
    """Writes a run's state to the directory `path`.

    `last_save_time` is when it last tried to, on the clock of `time.monotonic`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_save_time = time.monotonic()
        self._best: dict[str, Any] | None = None  # a best checkpoint that is not yet written

    def write_yaml(self, **files: Mapping[str, Any]) -> None:
        """Write each of `files` to NAME.yaml. Raises OSError when one cannot be written."""
        for name, values in files.items():
            with atomic_write(self.path / f"{name}.yaml") as file:
                text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
                file.write(text.encode())

    def save(
        self, checkpoint: Mapping[str, Any], improved: bool = False, number: int | None = None
    ) -> str | None:
        """Write best.pt if the model has `improved`, last.pt and results.csv.

        With a `number`, the checkpoint is also kept as epochNUMBER.pt; that comes before last.pt,
        so that a run which is killed in between writes it when it is resumed. Each file is replaced
        whole or not at all. If a checkpoint cannot be written, the rest stays as it is, the best
        checkpoint is kept in memory until the next time, and the error message is returned. If only
        results.csv cannot be, this prints a warning: last.pt has all its rows.
        """
        self.last_save_time = time.monotonic()
        if improved:
            self._best = {key: value for key, value in checkpoint.items() if key in BEST_KEYS}
        path = self.path / "weights" / "best.pt"
        try:
            if self._best is not None:
                save_checkpoint(self._best, path)
                self._best = None
            if number is not None:
                path = self.path / "weights" / f"epoch{number}.pt"
                save_checkpoint(checkpoint, path)
            path = self.path / "weights" / "last.pt"
            save_checkpoint(checkpoint, path)
        except OSError as error:
            self._best = copy.deepcopy(self._best)  # training goes on to change its tensors
            return f"{path}: cannot be written: {error.strerror or error}"
        if history := checkpoint["progress"]["history"]:
            self._write_results(history)
        return None

    def _write_results(self, history: Sequence[Mapping[str, Any]]) -> None:
        path = self.path / "results.csv"
        try:
            with atomic_write(path) as file:
                file.write(_csv(history))
        except OSError as error:  # on Windows while another program, such as Excel, has it open
            reason = error.strerror or error
            warning(f"{path}: cannot be written: {reason} (the next checkpoint tries again)")


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    # Rows can lack columns: those without validation, or from before a fork added a column to a run
    # that it resumed. The newest row has the most, in the order that is meant.
    columns = dict.fromkeys(name for row in reversed(rows) for name in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
