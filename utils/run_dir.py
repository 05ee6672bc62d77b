"""A run's folder, runs/train/exp: what is in it besides pictures, and where the next one goes."""

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
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

BEST_KEYS = (
    "args",
    "hyp",
    "names",
    "epoch",
    "best",
    "average",
    "detections",
)  # of the state: what best.pt holds


def new_dir(project: Path, name: str, exist_ok: bool) -> Path:
    """Make `project`/`name`; if taken and `exist_ok` is not set, the first of name2, name3, ... that is not.

    Raises UserError when it cannot be made.
    """
    folder, number = project / name, 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
            return folder
        except FileExistsError:
            if exist_ok:  # it is a file, then
                raise UserError(
                    f"--project {project}: {folder} is there, but is no folder"
                ) from None
            number += 1
            folder = project / f"{name}{number}"
        except OSError as error:
            raise UserError(
                f"--project {project}: {folder} cannot be made: {error.strerror}"
            ) from None


def new_run_dir(project: Path, name: str, exist_ok: bool) -> Path:
    """A `new_folder` for a run of training, with one for weights in it.

    A run that begins in a folder that was used takes its checkpoints and table away, lest they be taken for its own. Raises
    UserError when the folder cannot be made.
    """
    folder = new_dir(project, name, exist_ok)
    try:
        (folder / "weights").mkdir(exist_ok=True)
        for old in ("weights/last.pt", "weights/best.pt", "results.csv"):
            (folder / old).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--project {project}: {folder} cannot be used: {error.strerror}") from None
    return folder


def run_dir_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint in its weights; links in it are not followed. Raises UserError when it is elsewhere."""
    folder = Path(os.path.abspath(checkpoint)).parent  # noqa: PTH100 - resolve() would follow a link from weights to another disk
    if folder.name != "weights":
        raise UserError(
            f"{checkpoint}: is not in the weights of a run folder, so there is nowhere to go on"
        )
    return folder.parent


def latest_checkpoint(project: Path) -> Path:
    """The `weights/last.pt` below `project` that was written last. Raises UserError when there is none."""
    found = list(project.glob("**/weights/last.pt"))
    if not found:
        raise UserError(f"--resume: there is no weights/last.pt below {project}")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


class RunDir:
    """Writes the run's state into `path`; `saved` is when it last tried to, on the clock of `time.monotonic`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved = time.monotonic()
        self._best: dict[str, Any] | None = None  # a best model that is yet to be written

    def write_yaml(self, **files: Mapping[str, Any]) -> None:
        """Write each of `files` to the folder, by its name and .yaml. Raises OSError when one cannot be written."""
        for name, values in files.items():
            with atomic_write(self.path / f"{name}.yaml") as file:
                file.write(
                    yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).encode()
                )

    def save(self, state: dict[str, Any], improved: bool = False) -> str | None:
        """Write results.csv from the state's `rows`, best.pt if the model has `improved`, and the whole state as last.pt.

        Each is replaced whole or not at all. If one cannot be written, the rest is left as it was, the best model is kept in
        memory for the next time, and a sentence comes back that says what is wrong.
        """
        self.saved = time.monotonic()
        if improved:
            self._best = {key: state[key] for key in BEST_KEYS}
        path = self.path / "results.csv"
        try:
            if state["rows"]:
                with atomic_write(path) as file:
                    file.write(_csv(state["rows"]))
            if self._best is not None:
                path = self.path / "weights" / "best.pt"
                save_checkpoint(self._best, path)
                self._best = None
            path = self.path / "weights" / "last.pt"
            save_checkpoint(state, path)
        except OSError as error:
            self._best = copy.deepcopy(self._best)  # training changes the tensors that it holds
            return f"{path}: cannot be written: {error.strerror or error}"
        return None


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
