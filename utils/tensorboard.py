"""`--tensorboard`: the columns of results.csv and the images of the run directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import UserError
from utils.log import warning


class TensorBoardLogger:
    """Writes TensorBoard events if `enabled`; else every method does nothing.

    Raises UserError when it is enabled and TensorBoard is not installed.
    """

    def __init__(self, enabled: bool) -> None:
        self._writer_class: Any = None
        self._writer: Any = None
        if enabled:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("--tensorboard: not installed (pip install tensorboard)") from None
            self._writer_class = SummaryWriter

    def open(self, run_dir: Path, first_epoch: int) -> None:
        """Start writing to `run_dir`; a resumed run replaces its events from `first_epoch` on."""
        if self._writer_class:
            self._writer = self._writer_class(str(run_dir), purge_step=first_epoch)

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Add a row of results.csv, each column to its curve; columns that are None are skipped.

        If it cannot be written, this prints a warning, and later rows are not written either.
        """
        if not self._writer:
            return
        try:
            for name, value in row.items():
                if name != "epoch" and value is not None:
                    self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()
        except OSError as error:  # a full disk
            reason = error.strerror or error
            warning(f"TensorBoard: cannot be written: {reason} (the run continues without it)")
            self._writer = None

    def close(self, run_dir: Path, epoch: int) -> None:
        """Add every image in `run_dir` under its file name, at step `epoch`, and finish writing."""
        if self._writer:
            for path in sorted([*run_dir.glob("*.jpg"), *run_dir.glob("*.png")]):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                self._writer.add_image(path.stem, pixels, epoch, dataformats="HWC")
            self._writer.close()
