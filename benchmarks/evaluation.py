"""How long a validation set of COCO's size takes to evaluate, beside pycocotools on the same predictions.

`python benchmarks/evaluation.py`: 5,000 pictures, 80 classes, 100 predictions each, made from a seed: shaken and mislabelled
truth, and boxes out of nowhere. Both sides get what a training loop has, an array of detections, and take turns; medians.
"""

import argparse
import contextlib
import io
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.metrics import evaluate, to_coco_gt


def synthetic(pictures: int, predictions: int, classes: int) -> tuple[dict, np.ndarray]:
    """A COCO truth with about 7 boxes a picture, and detections (pictures * predictions, 7) as `evaluate` takes them."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(7, pictures)
    size = np.exp(rng.uniform(np.log(0.02), np.log(0.6), (counts.sum(), 2)))
    corner = rng.uniform(0, 1 - size)
    boxes = np.concatenate((corner, corner + size), axis=1).astype(np.float32)
    labels = rng.integers(classes, size=len(boxes))
    offsets = np.concatenate(([0], counts.cumsum()))
    sizes = np.tile(np.int32([640, 480]), (pictures, 1))
    truth = to_coco_gt(
        sizes,
        offsets,
        boxes,
        labels,
        np.zeros(len(boxes), bool),
        [f"class {k}" for k in range(classes)],
    )
    rows = []
    for image in range(pictures):
        own = boxes[offsets[image] : offsets[image + 1]] * [640, 480, 640, 480]
        shaken = np.repeat(own, 3, axis=0)[:predictions]
        shaken = shaken + rng.normal(0, 0.08, shaken.shape) * np.tile(
            shaken[:, 2:] - shaken[:, :2], 2
        )
        nowhere = rng.uniform(0, 400, (predictions - len(shaken), 4))
        nowhere[:, 2:] = nowhere[:, :2] + np.exp(rng.uniform(2, 5, nowhere[:, 2:].shape))
        found = np.concatenate((shaken, nowhere))
        found[:, 2:] = (found[:, 2:] - found[:, :2]).clip(1)
        label = rng.integers(classes, size=predictions)
        known = np.repeat(labels[offsets[image] : offsets[image + 1]], 3)[:predictions]
        label[: len(known)] = np.where(rng.random(len(known)) < 0.8, known, label[: len(known)])
        score = rng.random(predictions) * np.where(np.arange(predictions) < len(known), 1.0, 0.5)
        rows.append(np.c_[np.full(predictions, image), found, score, label])
    return truth, np.concatenate(rows)


def peer(truth: dict, detections: np.ndarray) -> float:
    """pycocotools' mAP50-95 of the same."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--pictures", type=int, default=5000)
    p.add_argument("--predictions", type=int, default=100)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    truth, detections = synthetic(args.images, args.predictions, 80)
    sides = {
        "evaluate": lambda: evaluate(truth, detections).overall["mAP50-95"],
        "pycocotools": lambda: peer(truth, detections),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            value = side()
            seconds[name].append(time.perf_counter() - began)
            print(f"{name:<12} {seconds[name][-1]:6.2f} s   mAP50-95 {value:.6f}", flush=True)
    ours, theirs = (statistics.median(seconds[name]) for name in sides)
    print(
        f"{args.pictures} pictures, {len(detections)} predictions: {ours:.2f} s beside {theirs:.2f} s, {theirs / ours:.1f} times"
        f" as fast; faster-coco-eval {version('faster-coco-eval')}, pycocotools {version('pycocotools')}"
    )


if __name__ == "__main__":
    main()
