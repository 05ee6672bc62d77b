"""Time and memory to evaluate a validation set, with our `evaluate` and with pycocotools.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --dataset objects365

Sets of the size of COCO (5,000 images, 80 classes, 7 boxes per image) or Objects365 (80,000, 365,
15.5) with 100 predictions per image, made from a seed: jittered and mislabeled ground truth, and
random boxes. Both evaluations get what a training loop has, an array of detections, and take turns;
medians. With Objects365 there is one round without pycocotools, which would take half an hour.
"""

import argparse
import contextlib
import io
import resource
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.ground_truth import GroundTruth
from utils.metrics import evaluate

WIDTH, HEIGHT = 640, 480
DATASETS = {"coco": (5000, 80, 7.0), "objects365": (80000, 365, 15.5)}  # images, classes, boxes


def synthetic_data(
    num_images: int, num_predictions: int, num_classes: int, boxes_per_image: float = 7
) -> tuple[GroundTruth, np.ndarray]:
    """Return a ground truth, and detections for `evaluate`.

    The detections have the shape (num_images * num_predictions, 7).
    """
    rng = np.random.default_rng(0)
    counts = rng.poisson(boxes_per_image, num_images)
    size = np.exp(rng.uniform(np.log(0.02), np.log(0.6), (counts.sum(), 2)))
    corner = rng.uniform(0, 1 - size)
    boxes = np.concatenate((corner, corner + size), axis=1).astype(np.float32)
    labels = rng.integers(num_classes, size=len(boxes))
    offsets = np.concatenate(([0], counts.cumsum()))
    ground_truth = GroundTruth.from_fractions(
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
    return ground_truth, np.concatenate(rows)


def pycocotools_map(ground_truth: GroundTruth, detections: np.ndarray) -> float:
    """Return the mAP50-95 that pycocotools computes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = ground_truth.to_coco()
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def peak_gb() -> float:
    """Return the most memory this process has had resident, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Print the time of every round and the memory of the first, then medians and their ratio."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--dataset", choices=DATASETS, default="coco", help="(%(default)s)")
    p.add_argument("--images", type=int, help="(as many as the dataset has)")
    p.add_argument("--predictions", type=int, default=100, help="per image (%(default)s)")
    p.add_argument("--rounds", type=int, help="(3 for coco, 1 for objects365)")
    args = p.parse_args()
    is_coco = args.dataset == "coco"
    num_images, num_classes, boxes_per_image = DATASETS[args.dataset]
    num_images = args.images or num_images
    memory_at_start = peak_gb()
    ground_truth, detections = synthetic_data(
        num_images, args.predictions, num_classes, boxes_per_image
    )
    print(f"{num_images} images, {len(ground_truth.labels)} boxes, {len(detections)} predictions")
    candidates = {"evaluate": lambda: evaluate(ground_truth, detections).overall["mAP50-95"]}
    if is_coco:
        candidates["pycocotools"] = lambda: pycocotools_map(ground_truth, detections)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(args.rounds or (3 if is_coco else 1)):
        for name, compute_map in candidates.items():
            memory_before = peak_gb()
            start_time = time.perf_counter()
            value = compute_map()
            seconds[name].append(time.perf_counter() - start_time)
            print(f"{name:<12} {seconds[name][-1]:6.2f} s   mAP50-95 {value:.6f}", flush=True)
            if i == 0:
                print(
                    f"peak memory {peak_gb():.2f} GB: {memory_at_start:.2f} for the imports, "
                    f"{memory_before - memory_at_start:.2f} for the data so far"
                )
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"evaluate: {medians['evaluate']:.2f} s")
    if is_coco:
        ratio = medians["pycocotools"] / medians["evaluate"]
        print(
            f"pycocotools {version('pycocotools')}: {medians['pycocotools']:.2f} s, {ratio:.1f} "
            "times as long"
        )


if __name__ == "__main__":
    main()
