"""Time to evaluate a validation set of COCO's size, with our `evaluate` and with pycocotools.

    python benchmarks/evaluation.py

5,000 images, 80 classes and 100 predictions per image, made from a seed: jittered and mislabeled
ground truth, and random boxes. Both get what a training loop has, an array of detections, and take
turns; medians.
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

WIDTH, HEIGHT = 640, 480


def synthetic_data(
    num_images: int, num_predictions: int, num_classes: int
) -> tuple[dict, np.ndarray]:
    """Return a COCO ground truth with about 7 boxes per image, and detections for `evaluate`.

    The detections have the shape (num_images * num_predictions, 7).
    """
    rng = np.random.default_rng(0)
    counts = rng.poisson(7, num_images)
    size = np.exp(rng.uniform(np.log(0.02), np.log(0.6), (counts.sum(), 2)))
    corner = rng.uniform(0, 1 - size)
    boxes = np.concatenate((corner, corner + size), axis=1).astype(np.float32)
    labels = rng.integers(num_classes, size=len(boxes))
    offsets = np.concatenate(([0], counts.cumsum()))
    coco_gt = to_coco_gt(
        np.tile(np.int32([WIDTH, HEIGHT]), (num_images, 1)),
        offsets,
        boxes,
        labels,
        np.zeros(len(boxes), bool),
        [f"class {k}" for k in range(num_classes)],
    )
    rows = []
    for image_id in range(num_images):
        gt = slice(offsets[image_id], offsets[image_id + 1])
        jittered = np.repeat(boxes[gt] * [WIDTH, HEIGHT, WIDTH, HEIGHT], 3, axis=0)
        jittered = jittered[:num_predictions]
        box_sizes = np.tile(jittered[:, 2:] - jittered[:, :2], 2)
        jittered = jittered + rng.normal(0, 0.08, jittered.shape) * box_sizes
        random = rng.uniform(0, 400, (num_predictions - len(jittered), 4))
        random[:, 2:] = random[:, :2] + np.exp(rng.uniform(2, 5, random[:, 2:].shape))
        xywh = np.concatenate((jittered, random))
        xywh[:, 2:] = (xywh[:, 2:] - xywh[:, :2]).clip(1)
        label = rng.integers(num_classes, size=num_predictions)
        gt_label = np.repeat(labels[gt], 3)[:num_predictions]
        num_gt = len(gt_label)
        label[:num_gt] = np.where(rng.random(num_gt) < 0.8, gt_label, label[:num_gt])
        max_score = np.where(np.arange(num_predictions) < num_gt, 1.0, 0.5)
        score = rng.random(num_predictions) * max_score
        rows.append(np.c_[np.full(num_predictions, image_id), xywh, score, label])
    return coco_gt, np.concatenate(rows)


def pycocotools_map(coco_gt: dict, detections: np.ndarray) -> float:
    """Return the mAP50-95 that pycocotools computes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = coco_gt
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def main() -> None:
    """Print the time of every round, then the medians and their ratio."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--images", type=int, default=5000, help="(%(default)s)")
    p.add_argument("--predictions", type=int, default=100, help="per image (%(default)s)")
    p.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    args = p.parse_args()
    coco_gt, detections = synthetic_data(args.images, args.predictions, 80)
    candidates = {
        "evaluate": lambda: evaluate(coco_gt, detections).overall["mAP50-95"],
        "pycocotools": lambda: pycocotools_map(coco_gt, detections),
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(args.rounds):
        for name, compute_map in candidates.items():
            start_time = time.perf_counter()
            value = compute_map()
            seconds[name].append(time.perf_counter() - start_time)
            print(f"{name:<12} {seconds[name][-1]:6.2f} s   mAP50-95 {value:.6f}", flush=True)
    evaluate_time, pycocotools_time = (statistics.median(seconds[name]) for name in candidates)
    print(
        f"{args.images} images, {len(detections)} predictions: {evaluate_time:.2f} s, "
        f"pycocotools {pycocotools_time:.2f} s, {pycocotools_time / evaluate_time:.1f}x as fast; "
        f"faster-coco-eval {version('faster-coco-eval')}, pycocotools {version('pycocotools')}"
    )


if __name__ == "__main__":
    main()
