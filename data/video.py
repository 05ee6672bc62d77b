"""Videos and cameras, frame by frame, with OpenCV: `pip install opencv-python-headless`.

OpenCV is needed for nothing else, so it is imported only when a video is read or written.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}
DEFAULT_FPS = 25.0  # of a camera that does not report its own


def _import_cv2(source: str) -> ModuleType:
    try:
        import cv2
    except ImportError:
        raise UserError(
            f"--source {source}: videos and cameras need OpenCV (pip install "
            "opencv-python-headless)"
        ) from None
    return cv2


def read_video(source: str) -> Iterator[tuple[Tensor, float]]:
    """Yield the frames (3, h, w) uint8 RGB of a video, each with the frames per second.

    `source` is a file, or the index of a camera. Raises UserError if OpenCV is not installed or
    cannot read a frame.
    """
    if not source.isdecimal() and not Path(source).is_file():
        raise UserError(f"--source {source}: not found")
    cv2 = _import_cv2(source)
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        fps = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
        success, frame = capture.read()
        if not success:
            raise UserError(
                f"--source {source}: no frame could be read (need a video or camera that OpenCV "
                "supports)"
            )
        while success:
            yield torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1), fps
            success, frame = capture.read()
    finally:
        capture.release()


class VideoWriter:
    """Writes a video (MPEG-4) to the file `path`, with the size and rate of its first frame."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None

    def write(self, image: Tensor, fps: float) -> None:
        """Append a frame (3, h, w) uint8 RGB. Raises UserError if the file cannot be written."""
        cv2 = _import_cv2(str(self.path))
        if self._writer is None:
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            height, width = image.shape[1:]
            self._writer = cv2.VideoWriter(str(self.path), codec, fps, (width, height))
            if not self._writer.isOpened():
                raise UserError(f"{self.path}: cannot be written as a video")
        self._writer.write(cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
