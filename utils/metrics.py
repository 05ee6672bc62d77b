"""COCO metrics, overall and per class, computed by faster-coco-eval."""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from utils.ground_truth import GroundTruth
from utils.text import display_width, one_line, pad

METRICS = ("precision", "recall", "mAP50", "mAP75", "mAP50-95")
AREAS = ("all",)  # what COCO calls ranges of box areas: all, small, medium, large


@dataclass(frozen=True)
class Result:
    """The metrics of one evaluation.

    `overall` has the keys of `METRICS`. `classes` has a dict for each class with `class` (its
    name), `images`, `boxes` and the keys of `METRICS`, which are nan for a class without
    ground-truth boxes.
    """

    overall: dict[str, float]
    classes: list[dict[str, Any]]


class Curves(NamedTuple):
    """Curves (K, 101) of K classes at IoU 0.5 over recalls 0, 0.01, ..., 1.

    They are nan for a class without ground-truth boxes.
    """

    precision: np.ndarray  # the best at this recall or a higher one
    scores: np.ndarray  # lowest score of the detections needed for this recall; 0 if not reached


class ClassResult(NamedTuple):
    """The evaluation of one class."""

    row: dict[str, Any]  # as in `Result.classes`
    precision: np.ndarray  # (101,), as in `Curves`
    scores: np.ndarray  # (101,), as in `Curves`


def evaluate(ground_truth: GroundTruth, detections: np.ndarray) -> Result:
    """Compare detections with the ground truth.

    `detections` (k, 7) has the columns image id, x, y, width, height (pixels of the image), score,
    category id. Average precision is COCO's: over IoU 0.50 to 0.95, 101 recall points, the
    `detection_limit` best detections per image: at most 100, unless an image has more objects.
    Precision and recall are taken where the F1 of a class at IoU 0.5 is best, then averaged over
    the classes.
    """
    classes = range(len(ground_truth.class_names))
    return combine([evaluate_classes(ground_truth, detections, classes)])[0]


def evaluate_classes(
    ground_truth: GroundTruth, detections: np.ndarray, classes: Iterable[int]
) -> dict[int, ClassResult]:
    """Return the result of each of the `classes`, for `combine`. Classes do not interact.

    So several processes can share an evaluation. Arguments are those of `evaluate`.
    """
    num_classes = len(ground_truth.class_names)
    box_order = ground_truth.labels.argsort(kind="stable")
    box_bounds = np.searchsorted(ground_truth.labels[box_order], np.arange(num_classes + 1))
    detections = detections[detections[:, 6].argsort(kind="stable")]
    bounds = np.searchsorted(detections[:, 6], np.arange(num_classes + 1))
    limit = ground_truth.detection_limit
    results = {}
    with _no_garbage_collection():
        for k in classes:
            annotations = ground_truth.coco_annotations(
                box_order[box_bounds[k] : box_bounds[k + 1]]
            )
            objects = [a["image_id"] for a in annotations if not a["iscrowd"]]
            row = {
                "class": ground_truth.class_names[k],
                "images": len(set(objects)),
                "boxes": len(objects),
            }
            if not objects:
                no_curve = np.full(101, np.nan)
                no_metrics = dict.fromkeys(METRICS, float("nan"))
                results[k] = ClassResult(row | no_metrics, no_curve, no_curve)
                continue
            of_class = detections[bounds[k] : bounds[k + 1]]
            evaluation = _evaluate_class(annotations, of_class, limit)
            # [IoU, recall, class, area, detections per image] of one class
            precision, scores = evaluation["precision"], evaluation["scores"]
            results[k] = ClassResult(
                row | _class_metrics(precision[:, :, 0, :, 0]),
                precision[0, :, 0, 0, 0],
                scores[0, :, 0, 0, 0],
            )
    return results


def combine(parts: Iterable[Mapping[int, ClassResult]]) -> tuple[Result, Curves]:
    """Return the result and the curves of all classes 0 to K - 1, each in one of the `parts`."""
    results = {k: result for part in parts for k, result in part.items()}
    rows, precision, scores = zip(*(results[k] for k in range(len(results))), strict=True)
    overall = {name: _mean([row[name] for row in rows]) for name in METRICS}
    return Result(overall, list(rows)), Curves(np.stack(precision), np.stack(scores))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Suspend the search for reference cycles, in which a third of the time would go.

    It visits the dicts of all boxes again and again, and there are no cycles among them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _evaluate_class(
    annotations: list[dict[str, Any]], detections: np.ndarray, max_detections: int
) -> dict[str, np.ndarray]:
    """Return the precision and the scores that faster-coco-eval computes for one class.

    One class at a time, because the library holds an entry for every image and class, and a dict
    for every detection: of Objects365 that would be 30 million and 8 million.
    """
    # Imported here because it takes time that the start of a run need not wait for.
    from faster_coco_eval import COCO, COCOeval_faster

    k = annotations[0]["category_id"]
    results = [
        {
            "id": i,
            "image_id": int(image_id),
            "category_id": k,
            "bbox": box,
            "area": box[2] * box[3],
            "score": score,
            "iscrowd": 0,
        }
        for i, (image_id, *box, score, _) in enumerate(detections.tolist(), 1)
    ]
    image_ids = {row["image_id"] for row in chain(annotations, results)}
    dataset = {"images": [{"id": i} for i in sorted(image_ids)], "categories": [{"id": k}]}
    evaluation = COCOeval_faster(
        COCO(dataset | {"annotations": annotations}),
        COCO(dataset | {"annotations": results}),
        "bbox",
        print_function=lambda *_: None,
    )
    # Only what is reported: the `AREAS`, with one number of detections per image.
    params = evaluation.params
    ranges = dict(zip(params.areaRngLbl, params.areaRng, strict=True))
    params.areaRng, params.areaRngLbl = [ranges[area] for area in AREAS], [*AREAS]
    params.maxDets = [max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the classes that have a value, 0 if none has."""
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else 0.0


def _class_metrics(precision: np.ndarray) -> dict[str, float]:
    """Return the metrics of a class from its precision (10, 101, a).

    At the IoUs 0.50 to 0.95, the recalls 0 to 1, and for boxes of each of the `AREAS`, the first of
    which is all; -1 where the class has no box of that area.
    """
    precision = precision[:, :, 0]
    recall = np.linspace(0, 1, 101)
    f1 = 2 * precision[0] * recall / np.maximum(precision[0] + recall, 1e-12)
    best = int(f1.argmax())
    values = (
        precision[0, best],
        recall[best],
        precision[0].mean(),
        precision[5].mean(),
        precision.mean(),
    )
    return dict(zip(METRICS, map(float, values), strict=True))


def table_rows(result: Result) -> list[dict[str, Any]]:
    """Return a row for all classes together, with `class` "all", and the row of each class.

    A metric that the result does not have is nan: a fork may add one to a run and resume it.
    """
    total = {"class": "all", "images": "", "boxes": sum(row["boxes"] for row in result.classes)}
    no_metrics = dict.fromkeys(METRICS, float("nan"))
    return [no_metrics | row for row in (total | result.overall, *result.classes)]


def format_table(result: Result) -> str:
    """Format a result as text: a header, a line for all classes together, a line per class."""
    rows = table_rows(result)
    names = [one_line(row["class"]) for row in rows]
    width = max(5, *map(display_width, names))
    header = f"{pad('class', width)}  images   boxes"
    lines = [header + "".join(f"{name:>11}" for name in METRICS)]
    for name, row in zip(names, rows, strict=True):
        values = "".join(f"{row[metric]:11.3f}" for metric in METRICS)
        lines.append(f"{pad(name, width)}  {row['images']:>6}  {row['boxes']:>6}{values}")
    return "\n".join(lines)
