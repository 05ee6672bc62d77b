"""Films and cameras, frame by frame, by OpenCV, which nothing else here needs: `pip install opencv-python-headless`."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}


def _opencv(source: str) -> ModuleType:
    try:
        import cv2
    except ImportError:
        raise UserError(
            f"--source {source}: films and cameras need OpenCV: pip install opencv-python-headless"
        ) from None
    return cv2


def read_video(source: str) -> Iterator[tuple[Tensor, float]]:
    """Each frame (3, h, w) uint8 RGB of a film's file, or of the camera with the number `source`, and the frames a second.

    Raises UserError when OpenCV is not installed, or gets no frame from the source.
    """
    if not source.isdecimal() and not Path(source).is_file():
        raise UserError(f"--source {source}: is not there")
    cv2 = _opencv(source)
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0  # a camera may not say
        there, frame = capture.read()
        if not there:
            raise UserError(
                f"--source {source}: gives no frame; it is no film or camera that OpenCV can read"
            )
        while there:
            yield torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1), rate
            there, frame = capture.read()
    finally:
        capture.release()


class VideoWriter:
    """Writes a film, MPEG-4 in the file `path`, whose size and frames a second are those of its first frame."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None

    def write(self, image: Tensor, rate: float) -> None:
        """Add the frame (3, h, w) uint8 RGB. Raises UserError when the file cannot be written."""
        cv2 = _opencv(str(self.path))
        if self._writer is None:
            self._writer = cv2.VideoWriter(
                str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), rate, tuple(image.shape[:0:-1])
            )
            if not self._writer.isOpened():
                raise UserError(f"{self.path}: cannot be written as a film")
        self._writer.write(cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Write what the file needs at its end."""
        if self._writer is not None:
            self._writer.release()
