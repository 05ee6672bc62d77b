"""Videos and cameras, frame by frame, with OpenCV: `pip install opencv-python-headless`.

OpenCV is needed for nothing else, so it is imported only when a video is read or written.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

VIDEO_SUFFIXES = {
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"),
    *(".mts", ".m2ts", ".3gp", ".3g2", ".asf", ".ogv", ".vob", ".mxf"),
}
DEFAULT_FPS = 25.0  # of a camera that does not report its own


def _import_cv2(source: str) -> ModuleType:
    # Its messages name no file; what matters in them is reported here.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError:
        raise UserError(
            f"{source}: videos and cameras need OpenCV (pip install opencv-python-headless)"
        ) from None
    return cv2


def read_video(source: str) -> Iterator[tuple[Tensor, float]]:
    """Yield the frames (3, h, w) uint8 RGB of a video, each with the frames per second.

    `source` is a file, or the index of a camera, if there is no such file. Raises UserError if
    OpenCV is not installed, cannot read a frame, or reads fewer frames than the file says it has:
    this after the last frame.
    """
    is_file = Path(source).is_file()
    cv2 = _import_cv2(source)
    capture = cv2.VideoCapture(source if is_file else int(source))
    try:
        fps = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
        expected = capture.get(cv2.CAP_PROP_FRAME_COUNT) if is_file else 0
        count, (success, frame) = 0, capture.read()
        if not success:
            raise UserError(
                f"{source}: no frame could be read (need a video or camera that OpenCV supports)"
            )
        while success:
            yield torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1), fps
            count += 1
            success, frame = capture.read()
    finally:
        capture.release()
    if count < expected:
        raise UserError(f"{source}: read {count} of the {expected:.0f} frames that it says it has")


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
                raise UserError(f"{self.path}: cannot be written as a video (MPEG-4, by OpenCV)")
        self._writer.write(cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
