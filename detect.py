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
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import Any

from utils.cpus import cpu_count, limit_spinning

if __name__ == "__main__":
    limit_spinning()  # before torch is loaded

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import to_pil_image

from data.images import unique_stem
from data.sources import Frame, iter_images
from data.threads import Background
from data.urls import is_url, url_name
from data.video import VideoWriter
from predictor import CONF, load
from utils.atomic import atomic_write
from utils.cli import Parser, dir_name, int_range, run_cli, unit_interval
from utils.device import set_threads
from utils.errors import UserError
from utils.fonts import drawable_names
from utils.interrupt import Interrupted, StopSignals
from utils.log import info, plural, warning
from utils.memory import disable_malloc_trim
from utils.plots import draw_boxes
from utils.run_dir import new_dir

# Formats in which results are written; those of images in others are JPEGs.
WRITTEN_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
WRITERS = 4  # threads that draw and encode, at most; two results wait for each


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
    frames = iter_images(args.source, predictor.channels)
    first_frame = next(frames)  # raises for an invalid source before a directory is created

    results_dir = new_dir(Path(args.project), args.name, args.exist_ok)
    results = ResultWriter(results_dir, predictor.names, args.save_txt, args.save_json)
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


class ResultWriter:
    """Writes the results to `directory`: images and videos with the boxes, and label files.

    No file of this run replaces another one. With `save_json`, `predictions` collects the rows of
    predictions.json. Images are drawn and encoded by threads, and are all written after `close`.
    """

    def __init__(
        self,
        directory: Path,
        class_names: Sequence[str],
        save_txt: bool,
        save_json: bool = False,
    ) -> None:
        self.directory, self.class_names = directory, class_names
        self.save_txt, self.save_json = save_txt, save_json
        self.predictions: list[dict[str, Any]] = []
        self._video: VideoWriter | None = None
        self._last_frame: Future | None = None  # of the video: the last one given to a thread
        self._used_stems: set[str] = set()  # images in two directories may have the same name
        self._threads = Background(min(WRITERS, cpu_count()))
        if save_txt:
            (directory / "labels").mkdir(exist_ok=True)

    def add(self, frame: Frame, detections: dict[str, Tensor]) -> None:
        """Print and write the detections in `frame`, as `predict` returns them.

        Raises UserError if a result would overwrite the file that it is about, and what has been
        raised because an earlier one cannot be written.
        """
        names = [self.class_names[label] for label in detections["labels"].tolist()]
        counts = ", ".join(f"{n} {name}" for name, n in Counter(names).most_common())
        position = "" if frame.index is None else f", frame {frame.index}"
        info(f"{frame.source}{position}: {counts or 'no detections'}")

        if names:
            drawable_names(self.class_names)  # warns, if at all, here and not amid other lines
        if frame.index is None:
            suffix = Path(_file_name(frame.source)).suffix
            suffix = suffix if suffix.lower() in WRITTEN_SUFFIXES else ".jpg"
            path = self._new_path(frame.source, suffix)
            self._threads.call(self._write_image, path, frame.image, detections)
        else:
            if frame.index == 0:
                self._close_video()
                self._video = VideoWriter(self._new_path(frame.source, ".mp4"))
            path = self._video.path
            self._last_frame = self._threads.call(
                self._write_frame, self._video, self._last_frame, frame, detections
            )
        if self.save_txt:
            stem = path.stem
            if frame.index is not None:
                stem = unique_stem(f"{stem}_{frame.index}.txt", self._used_stems)
            label_file = self.directory / "labels" / f"{stem}.txt"
            write_labels(label_file, detections, frame.image.shape[-2:])
        if self.save_json:  # memory must not grow with the length of a stream
            self.predictions += rows_of_json(frame, detections, names)

    def _new_path(self, source: str, suffix: str) -> Path:
        """Return the path of a result. Raises UserError if it is that of `source` itself."""
        path = self.directory / f"{unique_stem(_file_name(source), self._used_stems)}{suffix}"
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise UserError(
                f"{source}: the result would overwrite it (choose another --project or --name)"
            )
        return path

    def _write_image(self, path: Path, image: Tensor, detections: dict[str, Tensor]) -> None:
        to_pil_image(draw_boxes(image, detections, self.class_names)).save(path)

    def _write_frame(
        self,
        video: VideoWriter,
        previous: Future | None,
        frame: Frame,
        detections: dict[str, Tensor],
    ) -> None:
        """Draw the boxes, and append the frame to the video when the `previous` one is in it."""
        output = draw_boxes(frame.image, detections, self.class_names)
        if previous is not None:
            previous.result()
        video.write(output, frame.fps)

    def close(self) -> None:
        """Wait until all results are written. Raises what has been raised because one cannot be."""
        try:
            self._close_video()
        finally:
            self._threads.close()

    def _close_video(self) -> None:
        """Finish the video that is being written."""
        try:
            self._threads.wait()
        finally:
            if self._video is not None:
                self._video.close()
            self._video = self._last_frame = None


def _file_name(source: str) -> str:
    """Return a file name, or path, from which that of a result is made."""
    return url_name(source) if is_url(source) else source


def rows_of_json(
    frame: Frame, detections: dict[str, Tensor], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row of predictions.json for each of the detections, whose classes are `names`."""
    boxes, scores = detections["boxes"].tolist(), detections["scores"].tolist()
    return [
        {
            "file": frame.source,
            "frame": frame.index,
            "class": name,
            "box": [round(value, 3) for value in box],
            "score": score,
        }
        for name, box, score in zip(names, boxes, scores, strict=True)
    ]


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
