"""Videos, streams and cameras, frame by frame, with OpenCV: `pip install opencv-python-headless`.

OpenCV is needed for nothing else, so it is imported only when a video is read or written.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from data.urls import is_http, is_url, open_url, without_password
from utils.errors import UserError
from utils.log import plural

VIDEO_SUFFIXES = {
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"),
    *(".mts", ".m2ts", ".3gp", ".3g2", ".asf", ".ogv", ".vob", ".mxf"),
}
DEFAULT_FPS = 25.0  # of a camera that does not report its own
MAX_FPS = 240.0  # what a stream reports above this is the clock of its time stamps
STREAM_TIMEOUT = 10_000  # milliseconds that the server of a stream may be silent
# A playlist that a server sends must not lead to a file of this machine.
FFMPEG_OPTIONS = (
    "rtsp_transport;tcp|"
    "protocol_whitelist;http,https,httpproxy,tcp,tls,udp,rtp,rtsp,rtmp,rtmps,crypto"
)


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


def is_camera(source: str) -> bool:
    """Return whether `source` is the index of a camera: a number that is not the name of a file."""
    return source.isdecimal() and len(source) < 10 and not Path(source).exists()


def read_video(source: str) -> Iterator[tuple[Tensor, float]]:
    """Yield the frames (3, h, w) uint8 RGB of a video, each with the frames per second.

    `source` is a file, a URL or the index of a camera. Raises UserError if OpenCV is not installed,
    cannot read a frame, or reads fewer frames than the file says it has, or a stream ends, which
    does not say how many it has: this after the last frame.
    """
    has_url = is_url(source)
    name = without_password(source) if has_url else source
    cv2 = _import_cv2(name)
    capture = _open(cv2, source)
    try:
        fps = capture.get(cv2.CAP_PROP_FPS)
        fps = fps if 0 < fps <= MAX_FPS else DEFAULT_FPS
        expected = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        count, (success, frame) = 0, capture.read()
        if not success:
            raise UserError(f"{name}: no frame could be read ({_why_no_frame(source)})")
        while success:
            yield torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).permute(2, 0, 1), fps
            count += 1
            success, frame = capture.read()
    finally:
        capture.release()
    if count < expected:
        raise UserError(f"{name}: read {count} of the {expected:.0f} frames that it says it has")
    if has_url and expected <= 0:
        raise UserError(f"{name}: the stream ended after {plural(count, 'frame')}")


def _open(cv2: ModuleType, source: str) -> Any:
    """Return OpenCV's reader of a file, a URL or a camera; what cannot be opened has no frames."""
    if is_camera(source):
        return cv2.VideoCapture(int(source))
    if not is_url(source):
        return cv2.VideoCapture(_path_for_cv2(Path(source)))
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, STREAM_TIMEOUT]
    timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, STREAM_TIMEOUT]
    key = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
    if key in os.environ:  # a person's own choice goes before ours
        return cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
    os.environ[key] = FFMPEG_OPTIONS
    try:
        return cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
    finally:
        del os.environ[key]  # a local file is opened without it


def _path_for_cv2(path: Path) -> str:
    """Return a path as OpenCV takes it. Raises UserError if it is not UTF-8: OpenCV would crash."""
    # Absolute, because FFmpeg takes what is before the colon of 10:30.mp4 for a protocol.
    text = str(path.absolute())
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: OpenCV needs a path in UTF-8 (rename it)") from None
    return text


def _why_no_frame(source: str) -> str:
    """Return why OpenCV reads nothing: a server's answer, if it is one that says why."""
    if is_url(source) and is_http(source):
        try:
            open_url(source).close()
        except UserError as error:
            return str(error).partition(": cannot be read: ")[2]
    if is_url(source):
        seconds = STREAM_TIMEOUT // 1000
        return f"need a stream that OpenCV supports, and an answer within {seconds} seconds"
    return "need a video or camera that OpenCV supports"


class VideoWriter:
    """Writes a video (MPEG-4) to the file `path`, with the size and rate of its first frame.

    Frames of another size, as when a stream changes its resolution, are resized.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None
        self._size = 0, 0  # width and height
        self._count = 0

    def write(self, image: Tensor, fps: float) -> None:
        """Append a frame (3, h, w) uint8 RGB. Raises UserError if the file cannot be written."""
        cv2 = _import_cv2(str(self.path))
        if self._writer is None:
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            height, width = image.shape[1:]
            self._size = width, height
            self._writer = cv2.VideoWriter(_path_for_cv2(self.path), codec, fps, self._size)
            if not self._writer.isOpened():
                raise UserError(f"{self.path}: cannot be written as a video (MPEG-4, by OpenCV)")
        pixels = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR)
        if pixels.shape[1::-1] != self._size:
            pixels = cv2.resize(pixels, self._size)  # OpenCV would drop the frame
        self._writer.write(pixels)
        self._count += 1

    def close(self) -> None:
        """Finish the file. Raises UserError if its frames are not in it, as on a full disk."""
        if self._writer is None:
            return
        self._writer.release()
        cv2 = _import_cv2(str(self.path))
        # OpenCV reports no error of a write.
        count = cv2.VideoCapture(_path_for_cv2(self.path)).get(cv2.CAP_PROP_FRAME_COUNT)
        if count < self._count:
            frames = plural(self._count - max(0, int(count)), "frame")
            raise UserError(f"{self.path}: {frames} could not be written (is the disk full?)")
