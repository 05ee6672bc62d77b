"""`--tensorboard`: what results.csv holds, and the run's pictures, for TensorBoard to show."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.errors import UserError


class TensorBoardLogger:
    """Writes events, if they are `wanted`. Raises UserError when they are and TensorBoard is not installed."""

    def __init__(self, wanted: bool) -> None:
        self._make: Any = None
        self._writer: Any = None
        if wanted:
            try:
                from torch.utils.tensorboard import (
                    SummaryWriter,  # not there, or not wanted, by most
                )
            except ImportError:
                raise UserError(
                    "--tensorboard: is not installed; pip install tensorboard"
                ) from None
            self._make = SummaryWriter

    def open(self, folder: Path, start: int) -> None:
        """Write into `folder`; of what a run that was cut off left there, epochs up to `start` count, where it goes on."""
        if self._make:
            self._writer = self._make(str(folder), purge_step=start)

    def row(self, row: Mapping[str, Any]) -> None:
        """An epoch's row of results.csv, every column a curve."""
        if self._writer:
            for name, value in row.items():
                if name != "epoch" and value is not None:
                    self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()

    def close(self, folder: Path, epoch: int) -> None:
        """Every picture in `folder`, by its file's name, as of `epoch`; then nothing more."""
        if self._writer:
            for path in sorted([*folder.glob("*.jpg"), *folder.glob("*.png")]):
                self._writer.add_image(
                    path.stem, np.asarray(Image.open(path).convert("RGB")), epoch, dataformats="HWC"
                )
            self._writer.close()
