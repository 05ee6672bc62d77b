"""Evaluate a trained detector on a dataset.

python val.py --weights runs/train/exp/weights/best.pt
python val.py --weights runs/train/exp/weights/best.pt --data mine/data.yaml --split test
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.cpus import limit_spinning

if __name__ == "__main__":
    limit_spinning()  # before torch is loaded

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.config import DataConfig, read_data_config
from data.dataset import ValSet, collate
from data.formats import Annotations, original_ids, read_split
from data.locate import find_data_yaml
from data.shapes import make_builtin
from models import load
from models.detector import Detections, Detector, Sizes
from utils.amp import amp_name, inference_dtype
from utils.atomic import atomic_write
from utils.cli import Parser, dir_name, int_range, run_cli, unit_interval
from utils.confusion import confusion_matrix, match_detections
from utils.device import default_workers, select_device, set_deterministic, set_threads
from utils.errors import UserError
from utils.ground_truth import limit_message
from utils.inference import run_inference
from utils.keep_going import KeepGoing
from utils.letterbox import check_imgsz, imgsz_bounds, imgsz_warning
from utils.log import info, plural, warning
from utils.memory import disable_malloc_trim
from utils.metrics import combine, evaluate_classes, format_table
from utils.plots import draw_confusion, draw_curves
from utils.run_dir import new_dir
from utils.track import Track

ROOT = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, by default the process's. Raises UserError if it is invalid."""
    p = Parser(
        prog="val.py",
        description="Evaluate a trained detector with COCO's metrics. The 100 best detections of "
        "each image count, or as many as the image with the most objects has. Defaults in "
        "parentheses.",
    )
    p.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        help="best.pt or last.pt of a run; its EMA weights are evaluated",
    )
    p.add_argument(
        "--data",
        metavar="FILE",
        help="dataset: a data.yaml, a directory with one, or the name of one in data/ (what the "
        "run trained on)",
    )
    p.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="val",
        help="split to evaluate: train, val or test (%(default)s)",
    )
    p.add_argument(
        "--imgsz",
        type=int_range(32),
        metavar="PX",
        help="image size in pixels, rounded up to a multiple of the model's stride (as trained)",
    )
    p.add_argument(
        "--batch-size",
        type=int_range(1),
        default=16,
        metavar="N",
        help="images per batch (%(default)s)",
    )
    p.add_argument(
        "--conf",
        type=unit_interval,
        default=0.001,
        metavar="SCORE",
        help="confidence threshold (%(default)s)",
    )
    p.add_argument(
        "--iou",
        type=unit_interval,
        metavar="IOU",
        help="IoU threshold for NMS (the model's: 0.7 for the YOLO models, none for those of "
        "transformers)",
    )
    p.add_argument(
        "--save-json",
        action="store_true",
        help="write the detections as COCO results, predictions.json",
    )
    p.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, ... (%(default)s: CUDA if available, else CPU)",
    )
    p.add_argument(
        "--workers",
        type=int_range(0),
        metavar="N",
        help="DataLoader workers (CUDA: min(8, cores); CPU: 0)",
    )
    p.add_argument(
        "--project",
        default="runs/val",
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
    p.add_argument("--noplots", action="store_true", help="skip the plots")
    return p.parse_args(argv)


def evaluate_detector(args: argparse.Namespace) -> None:
    """Evaluate the detector in `args.weights`, print the metrics and write the results."""
    device = select_device(args.device)
    set_threads()
    set_deterministic(device.type == "cpu")
    disable_malloc_trim()

    # channels_last, because training validates in it and the metrics must be the same.
    model = load(args.weights).to(device, memory_format=torch.channels_last)
    dtype = inference_dtype(model.amp, device)
    model.set_thresholds(args.conf, args.iou)
    imgsz = imgsz_bounds(args.imgsz or model.imgsz, model.stride)[1]
    check_imgsz(imgsz, model.min_size)

    data_file = find_data_yaml(args.data or model.data, ROOT / "data")
    config = read_data_config(data_file)
    if make_builtin(config):
        info(f"drew the built-in dataset into {config.path}")
    data = read_split(config, args.split)
    if model.single_cls:
        data = data.as_single_class(model.class_names[0])
    if data.class_names != model.class_names:
        raise UserError(
            f"{data_file}: has the classes {list(data.class_names)}, but {args.weights} was "
            f"trained on {list(model.class_names)} (they must be the same, in the same order)"
        )
    if data.channels != model.channels:
        raise UserError(
            f"{data_file}: has channels: {data.channels}, but {args.weights} was trained on images "
            f"of {plural(model.channels, 'channel')} (they must be the same)"
        )
    warning(*imgsz_warning(args.imgsz or model.imgsz, model.stride), *data.messages(args.split))
    ground_truth = data.ground_truth()
    limit = ground_truth.detection_limit
    model.allow_detections(limit)
    info(*limit_message(limit, args.split))
    results_dir = new_dir(Path(args.project), args.name, args.exist_ok)  # before the long part
    loader = DataLoader(
        ValSet(data, imgsz, model.stride),
        args.batch_size,
        num_workers=default_workers(device, 1) if args.workers is None else args.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )

    timer = Timer(device)
    timed_model, timed_batches = TimedDetector(model, timer), time_batches(loader, timer)
    timed_batches = Track(timed_batches, "validation", len(loader), "batch")
    detections = run_inference(timed_model, timed_batches, device, dtype, limit)
    classes = range(len(data.class_names))
    result, curves = combine([evaluate_classes(ground_truth, detections, classes)])
    info(format_table(result))
    ms = "  ".join(f"{stage} {1000 * s / len(data):.1f}" for stage, s in timer.seconds.items())
    precision = "" if dtype == torch.float32 else f", {amp_name(dtype)}"
    info(f"ms/image at {imgsz} px, batch size {args.batch_size}, {device}{precision}: {ms}")

    metrics = {
        "all": _nan_as_null(result.overall),
        "classes": [_nan_as_null(row) for row in result.classes],
    }
    with atomic_write(results_dir / "metrics.json") as file:
        file.write(json.dumps(metrics, indent=2).encode())
    if args.save_json:
        with atomic_write(results_dir / "predictions.json") as file:
            file.write(json.dumps(coco_results(detections, data, config, args.split)).encode())
    if not args.noplots:
        keep_going = KeepGoing()
        with keep_going.without(f"{results_dir}: the PR and F1 curves"):
            draw_curves(curves, data.class_names, results_dir)
        with keep_going.without(results_dir / "confusion_matrix.png"):
            matches = match_detections(ground_truth, detections)
            counts = confusion_matrix(matches, len(data.class_names))
            draw_confusion(counts, data.class_names, results_dir / "confusion_matrix.png")
    info(f"results written to {results_dir}")


def _nan_as_null(row: dict[str, Any]) -> dict[str, Any]:
    """Return metrics as JSON has them: null where there is nothing to measure."""
    return {key: None if value != value else value for key, value in row.items()}


class Timer:
    """Adds up the time that each stage takes; kernels still running on the GPU are waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._stage_start = 0.0

    def start(self) -> None:
        """Start the first stage of a batch."""
        self._stage_start = time.perf_counter()

    def stop(self, stage: str) -> None:
        """End `stage` and start the next one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage] += now - self._stage_start
        self._stage_start = now


def time_batches(batches: Iterable[Any], timer: Timer) -> Iterator[Any]:
    """Yield the batches; start `timer` whenever the next one is requested."""
    timer.start()
    for batch in batches:
        yield batch
        timer.start()


class TimedDetector(nn.Module):
    """A detector in evaluation mode that stops `timer` after each stage.

    The time until it is called, in which the batch is loaded and copied to the device, is
    "preprocess".
    """

    def __init__(self, model: Detector, timer: Timer) -> None:
        super().__init__()
        self.model, self.timer = model, timer

    def forward(self, images: Tensor, sizes: Sizes) -> Detections:
        self.timer.stop("preprocess")
        if not self.model.exportable:  # its post-processing cannot be called separately
            detections = self.model(images, sizes=sizes)
            self.timer.stop("inference with NMS")
            return detections
        batch, sizes = self.model.prepare(images, sizes)
        boxes, scores = self.model.predict(batch)
        self.timer.stop("inference")
        detections = self.model.postprocess(boxes, scores, sizes)
        self.timer.stop("NMS")
        return detections


def coco_results(
    detections: np.ndarray, data: Annotations, config: DataConfig, split: str
) -> list[dict[str, Any]]:
    """Convert detections (k, 7), as `run_inference` returns them, to the COCO results format.

    Images and classes have the ids that `original_ids` returns for the split.
    """
    image_ids, category_ids = original_ids(config, split, data)
    return [
        {
            "image_id": image_ids[int(image)],
            "file_name": Path(data.files[int(image)]).name,
            "category_id": category_ids[int(label)],
            "bbox": [round(value, 3) for value in box],
            "score": round(score, 9),
        }
        for image, *box, score, label in detections.tolist()
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_cli("val.py", lambda: evaluate_detector(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
