"""Detect objects in images and videos with a trained detector.

python detect.py --weights runs/train/exp/weights/best.pt --source images/
python detect.py --weights runs/train/exp/weights/best.pt --source video.mp4 --conf 0.5 --save-txt
python detect.py --weights runs/train/exp/weights/best.pt --source rtsp://camera/stream
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from utils.cpus import limit_spinning

if __name__ == "__main__":
    limit_spinning()  # before torch is loaded

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import rgb_to_grayscale, to_pil_image

from data.images import checked_image, image_suffixes, unique_stem
from data.listing import Listing, has_suffix, list_images
from data.urls import fetch_image, is_url, url_name, without_password
from data.video import VIDEO_SUFFIXES, VideoWriter, read_video
from predictor import CONF, load
from utils.atomic import atomic_write
from utils.cli import Parser, dir_name, int_range, run_cli, unit_interval
from utils.device import set_threads
from utils.errors import UserError
from utils.interrupt import Interrupted, StopSignals
from utils.log import info, plural, warning
from utils.memory import disable_malloc_trim
from utils.plots import draw_boxes
from utils.run_dir import new_dir

# Formats in which results are written; those of images in others are JPEGs.
WRITTEN_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, by default the process's. Raises UserError if it is invalid."""
    p = Parser(
        prog="detect.py",
        description="Detect objects with a trained detector. Defaults in parentheses.",
    )
    p.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        help="best.pt or last.pt of a run; its EMA weights are used",
    )
    p.add_argument(
        "--source",
        metavar="SOURCE",
        required=True,
        help="image, video, directory or glob of both, .txt list of both, camera index, or the URL "
        "of an image (http) or a stream (http, rtsp, rtmp)",
    )
    p.add_argument(
        "--imgsz",
        type=int_range(32),
        metavar="PX",
        help="size in pixels that the longer side of an image is resized to (as trained)",
    )
    p.add_argument(
        "--conf",
        type=unit_interval,
        default=CONF,
        metavar="SCORE",
        help="confidence threshold (%(default)s)",
    )
    p.add_argument(
        "--iou",
        type=unit_interval,
        metavar="IOU",
        help="IoU threshold for NMS (0.45; a model of transformers: no NMS)",
    )
    p.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="detect only these classes, by name or index (all)",
    )
    p.add_argument(
        "--save-txt",
        action="store_true",
        help="write labels/NAME.txt: a line `class cx cy w h score` per box, coordinates in 0..1",
    )
    p.add_argument(
        "--save-json",
        action="store_true",
        help="write predictions.json: file, frame, class, box in pixels, score",
    )
    p.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, ... (%(default)s: CUDA if available, else CPU)",
    )
    p.add_argument(
        "--project",
        default="runs/detect",
        metavar="DIR",
        help="parent directory of the results (%(default)s)",
    )
    p.add_argument(
        "--name",
        type=dir_name,
        default="exp",
        metavar="NAME",
        help="directory of the results; NAME2, NAME3, ... if it exists (%(default)s)",
    )
    p.add_argument("--exist-ok", action="store_true", help="reuse an existing directory")
    return p.parse_args(argv)


def detect_objects(args: argparse.Namespace) -> None:
    """Detect objects in every image of `args.source` and write the results."""
    set_threads()
    disable_malloc_trim()
    predictor = load(args.weights, args.device, args.conf, args.iou, args.imgsz, args.classes)
    frames = iter_images(args.source, predictor.model.channels)
    first_frame = next(frames)  # raises for an invalid source before a directory is created

    results_dir = new_dir(Path(args.project), args.name, args.exist_ok)
    results = ResultWriter(results_dir, predictor.names, args.save_txt)
    num_images = num_failed = 0
    start_time = time.perf_counter()
    # A signal, the way to end a camera or a stream, is answered after the frame under way.
    with StopSignals() as stop, contextlib.closing(results):
        stop.defer()
        for frame in stop.stop_on_signal(chain([first_frame], frames)):
            if frame.image is None:
                warning(f"detect.py: {frame.error}")
                num_failed += 1
                continue
            (detections,) = predictor(frame.image)
            results.add(frame, detections)
            num_images += 1
    if stop.pending:
        info(f"stopped by {signal.Signals(stop.pending).name}")
    if args.save_json:
        with atomic_write(results_dir / "predictions.json") as file:
            file.write(json.dumps(results.predictions).encode())
    failed = f" ({num_failed} failed)" if num_failed else ""
    seconds = time.perf_counter() - start_time
    images = plural(num_images, "image")
    info(f"processed {images} in {seconds:.1f} s{failed}; results written to {results_dir}")
    if stop.pending not in (0, signal.SIGINT):
        raise Interrupted(stop.pending, "")


class Frame(NamedTuple):
    """An image, or a frame of a video."""

    source: str  # the image or video file, the URL without a password, or the camera index
    index: int | None  # in a video, from 0; None for an image
    image: Tensor | None  # (channels, h, w) uint8; None if it cannot be decoded
    fps: float = 0.0  # of a video
    error: str = ""  # why `image` is None


def iter_images(source: str, channels: int = 3) -> Iterator[Frame]:
    """Yield every image of a `--source`, and every frame of its videos, with `channels`.

    What cannot be read is a frame with an error. Raises UserError if the source is not found,
    contains no images and videos, or is a single video that cannot be read.
    """
    if source.isdecimal() and not Path(source).exists():
        yield from _iter_video(source, channels, is_only=True)
        return
    if is_url(source):
        yield from _iter_url(source, channels, is_only=True)
        return
    listing = _list_source(source, channels)
    for error in listing.errors:
        yield Frame(source, None, None, error=error)
    for sentence, count in listing.notes.items():
        info(f"{sentence}: {count}")
    for file in listing.files:
        if is_url(file):
            yield from _iter_url(file, channels, is_only=False)
        elif has_suffix(file, VIDEO_SUFFIXES):
            yield from _iter_video(file, channels, is_only=file == str(Path(source)))
        else:
            yield _read_frame(file, channels)


def _list_source(source: str, channels: int) -> Listing:
    """Return the images and videos of `source`. Raises UserError if there are none."""
    image_types = image_suffixes(channels)
    suffixes = image_types | VIDEO_SUFFIXES
    listing = list_images(Path(source), suffixes=suffixes, is_url=is_url)
    if listing is None and Path(source).is_file():
        images, videos = (" ".join(sorted(s)) for s in (image_types, VIDEO_SUFFIXES))
        raise UserError(
            f"--source {source}: not a format that is read (images: {images}; videos: {videos}; "
            "lists: .txt)"
        )
    if listing is None:
        raise UserError(
            f"--source {source}: not found (need an image, directory, glob, .txt list, video file, "
            "camera index, or a URL that begins with http, https, rtsp or rtmp)"
        )
    if not listing.files:
        errors = listing.errors
        first = f" (first of {plural(len(errors), 'error')}: {errors[0]})" if errors else ""
        raise UserError(f"--source {source}: contains no images and no videos{first}")
    return listing


def _iter_video(file: str, channels: int, is_only: bool) -> Iterator[Frame]:
    """Yield the frames of a video, and an error if it stops before its end.

    Raises UserError if it `is_only` and none of its frames can be read.
    """
    index, name = None, without_password(file)
    try:
        if channels not in (1, 3):
            raise UserError(f"{name}: a video has 3 channels, the model needs {channels}")
        for index, (image, fps) in enumerate(read_video(file)):
            yield Frame(name, index, image if channels == 3 else rgb_to_grayscale(image), fps)
    except UserError as error:
        if is_only and index is None:
            raise UserError(f"--source {error}") from None
        yield Frame(name, None, None, error=str(error))


def _iter_url(url: str, channels: int, is_only: bool) -> Iterator[Frame]:
    """Yield the image or the frames at a URL, and an error for what cannot be read.

    Raises UserError if it `is_only` and nothing of it can be read.
    """
    name = without_password(url)
    try:
        content = fetch_image(url)
    except UserError as error:
        if is_only:
            raise UserError(f"--source {error}") from None
        yield Frame(name, None, None, error=str(error))
        return
    if content is None:
        yield from _iter_video(url, channels, is_only)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        frame = _read_frame(file.name, channels)
    yield frame._replace(source=name, error=frame.error.replace(file.name, name))


def _read_frame(file: str, channels: int) -> Frame:
    try:
        return Frame(file, None, checked_image(file, channels))
    except UserError as error:
        return Frame(file, None, None, error=f"{error}; skipped")


class ResultWriter:
    """Writes the results to `directory`: images and videos with the boxes, and label files.

    No file of this run replaces another one. `predictions` collects the rows of predictions.json.
    """

    def __init__(self, directory: Path, class_names: Sequence[str], save_txt: bool) -> None:
        self.directory, self.class_names, self.save_txt = directory, class_names, save_txt
        self.predictions: list[dict[str, Any]] = []
        self._video: VideoWriter | None = None
        self._video_source = ""
        self._used_stems: set[str] = set()  # images in two directories may have the same name
        if save_txt:
            (directory / "labels").mkdir(exist_ok=True)

    def add(self, frame: Frame, detections: dict[str, Tensor]) -> None:
        """Print and write the detections in `frame`, as `predict` returns them.

        Raises UserError if a result would overwrite the file that it is about.
        """
        names = [self.class_names[label] for label in detections["labels"].tolist()]
        counts = ", ".join(f"{n} {name}" for name, n in Counter(names).most_common())
        position = "" if frame.index is None else f", frame {frame.index}"
        info(f"{frame.source}{position}: {counts or 'no detections'}")

        output = draw_boxes(frame.image, detections, self.class_names)
        if frame.index is None:
            suffix = Path(_file_name(frame.source)).suffix
            suffix = suffix if suffix.lower() in WRITTEN_SUFFIXES else ".jpg"
            path = self._new_path(frame.source, suffix)
            to_pil_image(output).save(path)
            stem = path.stem
        else:
            if self._video is None or frame.source != self._video_source:
                self.close()
                self._video = VideoWriter(self._new_path(frame.source, ".mp4"))
                self._video_source = frame.source
            self._video.write(output, frame.fps)
            stem = unique_stem(f"{self._video.path.stem}_{frame.index}.txt", self._used_stems)
        if self.save_txt:
            label_file = self.directory / "labels" / f"{stem}.txt"
            write_labels(label_file, detections, frame.image.shape[-2:])
        boxes, scores = detections["boxes"].tolist(), detections["scores"].tolist()
        for name, box, score in zip(names, boxes, scores, strict=True):
            self.predictions.append(
                {
                    "file": frame.source,
                    "frame": frame.index,
                    "class": name,
                    "box": [round(value, 3) for value in box],
                    "score": score,
                }
            )

    def _new_path(self, source: str, suffix: str) -> Path:
        """Return the path of a result. Raises UserError if it is that of `source` itself."""
        path = self.directory / f"{unique_stem(_file_name(source), self._used_stems)}{suffix}"
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise UserError(
                f"{source}: the result would overwrite it (choose another --project or --name)"
            )
        return path

    def close(self) -> None:
        """Finish the video that is being written."""
        if self._video is not None:
            self._video.close()


def _file_name(source: str) -> str:
    """Return a file name, or path, from which that of a result is made."""
    return url_name(source) if is_url(source) else source


def write_labels(path: Path, detections: dict[str, Tensor], size: tuple[int, int]) -> None:
    """Write a YOLO label file with the score at the end of each line.

    `size`: height and width of the image.
    """
    height, width = size
    boxes = box_convert(detections["boxes"], "xyxy", "cxcywh")
    boxes = boxes / torch.tensor([width, height, width, height])
    labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
    lines = []
    for label, box, score in zip(labels, boxes.tolist(), scores, strict=True):
        numbers = " ".join(f"{value:.6f}" for value in (*box, score))
        lines.append(f"{label} {numbers}\n")
    path.write_text("".join(lines), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_cli("detect.py", lambda: detect_objects(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
