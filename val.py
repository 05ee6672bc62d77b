"""Evaluates a trained detector: `python val.py --weights runs/train/exp/weights/best.pt --data mine/data.yaml`."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.config import read_data_config
from data.dataset import ValSet, collate
from data.formats import Annotations, original_ids, read_split
from models import load
from utils.atomic import atomic_write
from utils.cli import Parser, dir_name, imgsz_bounds, imgsz_warning, int_range, unit_interval
from utils.confusion import confusion_matrix
from utils.device import (
    default_workers,
    disable_malloc_trim,
    prefers_bf16,
    select_device,
    set_deterministic,
)
from utils.errors import UserError, run_cli
from utils.metrics import evaluate_with_curves, format_table, run_inference, to_coco_gt
from utils.plots import draw_confusion, draw_curves
from utils.run_dir import new_dir
from utils.stopwatch import Timer
from utils.yamlfile import find_file

ROOT = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(description="Evaluate a trained detector. Defaults stand in parentheses.")
    p.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        help="best.pt or last.pt of a run; the averaged weights are taken",
    )
    p.add_argument(
        "--data",
        metavar="FILE",
        help="data set: a data.yaml, or the name of one in data/ (what the run trained on)",
    )
    p.add_argument(
        "--split", choices=("train", "val", "test"), default="val", help="train, val or test (val)"
    )
    p.add_argument(
        "--imgsz",
        type=int_range(32),
        metavar="PX",
        help="side of a sample, in steps of 32 (what it was trained at)",
    )
    p.add_argument(
        "--batch-size", type=int_range(1), default=16, metavar="N", help="pictures in a batch (16)"
    )
    p.add_argument(
        "--conf",
        type=unit_interval,
        default=0.001,
        metavar="SCORE",
        help="lowest score of a detection (0.001)",
    )
    p.add_argument(
        "--iou",
        type=unit_interval,
        metavar="IOU",
        help="overlap above which the lower score is dropped (the model's: 0.7)",
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
        help="cpu, cuda, cuda:1, ... (auto: cuda if there is one, else cpu)",
    )
    p.add_argument(
        "--workers",
        type=int_range(0),
        metavar="N",
        help="loaders (cuda: a core each, <= 8; cpu: 0)",
    )
    p.add_argument(
        "--project",
        default="runs/val",
        metavar="DIR",
        help="folder of the evaluations' folders (runs/val)",
    )
    p.add_argument(
        "--name",
        type=dir_name,
        default="exp",
        metavar="NAME",
        help="the folder: exp, or exp2, exp3, ... (exp)",
    )
    p.add_argument("--exist-ok", action="store_true", help="use the folder even if it is taken")
    p.add_argument("--noplots", action="store_true", help="draw no pictures")
    return p.parse_args(argv)


def evaluate_detector(args: argparse.Namespace) -> None:
    device = select_device(args.device)
    bf16 = prefers_bf16(device)
    set_deterministic(device.type == "cpu")
    disable_malloc_trim()
    workers = default_workers(device, 1) if args.workers is None else args.workers

    # Model: the averaged weights of a checkpoint.
    model = load(args.weights).to(
        device, memory_format=torch.channels_last
    )  # as training validates it
    model.set_thresholds(args.conf, args.iou)
    imgsz = imgsz_bounds(args.imgsz or model.imgsz)[1]

    # Data.
    file = Path(find_file(args.data or model.data, ROOT / "data"))
    config = read_data_config(file)
    data = read_split(config, args.split)
    if data.names != model.class_names:
        raise UserError(
            f"{file}: has the classes {list(data.names)}, but {args.weights} detects {list(model.class_names)}"
        )
    for sentence in [*imgsz_warning(args.imgsz or model.imgsz), *data.report(args.split)]:
        print(sentence, file=sys.stderr)
    loader = DataLoader(ValSet(data, imgsz, stride=32), args.batch_size, num_workers=workers, collate_fn=collate,
                        pin_memory=device.type == "cuda")  # fmt: skip
    truth = to_coco_gt(data.sizes, data.offsets, data.boxes, data.labels, data.crowd, data.names)

    # Detect, and see where the time goes.
    watch = Timer(device)
    model.register_forward_pre_hook(lambda *_: watch.lap("preprocess"))
    if own := model.exportable:
        model.head.register_forward_hook(lambda *_: watch.lap("inference"))
    last = "NMS" if own else "inference with NMS"
    model.register_forward_hook(lambda *_: watch.lap(last))
    detections = run_inference(model, _timed(loader, watch), device, bf16)
    result, curves = evaluate_with_curves(truth, detections)
    print(format_table(result))
    each = "  ".join(
        f"{stage} {1000 * watch.seconds[stage] / len(data):.1f}"
        for stage in watch.seconds
        if stage != "the rest"
    )
    print(
        f"ms a picture at {imgsz} px, batches of {args.batch_size}, on {device}{' in bf16' if bf16 else ''}: {each}"
    )

    # Write it down.
    folder = new_dir(Path(args.project), args.name, args.exist_ok)
    with atomic_write(folder / "metrics.json") as output:
        output.write(
            json.dumps({"all": result.overall, "classes": result.classes}, indent=2).encode()
        )
    if args.save_json:
        with atomic_write(folder / "predictions.json") as output:
            output.write(
                json.dumps(
                    coco_results(detections, data, *original_ids(config, args.split, data))
                ).encode()
            )
    if not args.noplots:
        draw_curves(*curves, data.names, folder)
        draw_confusion(
            confusion_matrix(truth, detections), data.names, folder / "confusion_matrix.png"
        )
    print(f"written to {folder}")


def _timed(batches: Iterable[Any], watch: Timer) -> Iterator[Any]:
    """The batches; the time they take counts as preprocessing, what the caller does after detecting as nothing of the three."""
    for batch in batches:
        watch.lap("preprocess")
        yield batch
        watch.lap("the rest")


def coco_results(
    detections: np.ndarray, data: Annotations, images: list[int | str], categories: list[int]
) -> list[dict[str, Any]]:
    """Detections (k, 7) as a COCO results file has them, with the ids of the pictures and of the classes."""
    return [
        {"image_id": images[int(image)], "file_name": Path(data.files[int(image)]).name, "category_id": categories[int(label)],
         "bbox": [round(value, 3) for value in box], "score": round(score, 9)}
        for image, *box, score, label in detections.tolist()
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status is that of `exit_status`."""
    return run_cli("val.py", lambda: evaluate_detector(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
