"""COCO metrics, overall and per class."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from utils.average_precision import AREA_RANGES, RECALLS, average_precision
from utils.ground_truth import GroundTruth
from utils.text import display_width, one_line, pad

METRICS = ("precision", "recall", "mAP50", "mAP75", "mAP50-95")  # in results.csv, too
AREAS = tuple(AREA_RANGES)[1:]  # small, medium, large
AREA_METRICS = tuple(f"mAP-{area}" for area in AREAS)
COLUMNS = (*METRICS[:2], "confidence", *METRICS[2:], *AREA_METRICS)  # of tables
THRESHOLDS = np.linspace(0, 1, 1001)


@dataclass(frozen=True)
class Result:
    """The metrics of one evaluation.

    `overall` has the keys of `COLUMNS`. `classes` has a dict for each class with `class` (its
    name), `images`, `boxes` and the keys of `COLUMNS`. A value that there is not is nan: all of
    them for a class without ground-truth boxes, one of `AREA_METRICS` without boxes of that size,
    `confidence` if nothing is found at any threshold.
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
    the classes. `confidence` is the lowest score of the detections that are counted there; over all
    classes it is the highest threshold at which the mean F1 is best. The mAP of an area is over the
    classes that have boxes of it. Areas are those of boxes, also where a COCO file has masks.
    """
    classes = range(len(ground_truth.class_names))
    return combine([evaluate_classes(ground_truth, detections, classes)])[0]


def evaluate_classes(
    ground_truth: GroundTruth, detections: np.ndarray, classes: Iterable[int]
) -> dict[int, ClassResult]:
    """Return the result of each of the `classes`, for `combine`. Classes do not interact.

    So several processes can share an evaluation. Arguments are those of `evaluate`.
    """
    class_ids = np.arange(len(ground_truth.class_names) + 1)
    image_ids = ground_truth.image_ids
    box_order = ground_truth.labels.argsort(kind="stable")
    box_bounds = np.searchsorted(ground_truth.labels[box_order], class_ids)
    order = detections[:, 6].argsort(kind="stable")
    bounds = np.searchsorted(detections[order, 6], class_ids)
    limit = ground_truth.detection_limit
    results = {}
    for k in classes:
        rows = box_order[box_bounds[k] : box_bounds[k + 1]]
        crowd = ground_truth.crowd[rows]
        objects = rows[~crowd]
        row = {
            "class": ground_truth.class_names[k],
            "images": len(np.unique(image_ids[objects])),
            "boxes": len(objects),
        }
        if not len(objects):
            no_curve = np.full(101, np.nan)
            results[k] = ClassResult(row | dict.fromkeys(COLUMNS, np.nan), no_curve, no_curve)
            continue
        of_class = detections[order[bounds[k] : bounds[k + 1]]]
        precision, scores = average_precision(
            ground_truth.xywh[rows], image_ids[rows], crowd, of_class, limit
        )
        metrics = _class_metrics(precision, scores)
        # A view would keep all of the array.
        results[k] = ClassResult(row | metrics, precision[0, :, 0].copy(), scores)
    return results


def combine(parts: Iterable[Mapping[int, ClassResult]]) -> tuple[Result, Curves]:
    """Return the result and the curves of all classes 0 to K - 1, each in one of the `parts`."""
    results = {k: result for part in parts for k, result in part.items()}
    rows, precision, scores = zip(*(results[k] for k in range(len(results))), strict=True)
    curves = Curves(np.stack(precision), np.stack(scores))
    means = {name: _mean([row[name] for row in rows]) for name in COLUMNS}
    means |= {name: 0.0 for name in METRICS if np.isnan(means[name])}
    has_gt = ~np.isnan(curves.precision).all(1)
    if has_gt.any():
        f1 = f1_at_thresholds(Curves(*(curve[has_gt] for curve in curves)), THRESHOLDS)
        means["confidence"] = best_threshold(f1.mean(0))
    return Result(means, list(rows)), curves


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the classes that have a value, nan if none has."""
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")


def _class_metrics(precision: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return the `COLUMNS` of a class.

    precision (10, 101, 4): at the IoUs 0.50 to 0.95, the recalls 0 to 1, and for all boxes and
    those of each of the `AREAS`; -1 where the class has no box of that area. scores (101,) as in
    `Curves`.
    """
    by_area = [p.mean() if p.min() >= 0 else np.nan for p in precision[:, :, 1:].transpose(2, 0, 1)]
    precision = precision[:, :, 0]
    f1 = _f1(precision[0])
    best = int(f1.argmax())
    values = (
        precision[0, best],
        RECALLS[best],
        scores[best] if f1[best] > 0 else np.nan,
        precision[0].mean(),
        precision[5].mean(),
        precision.mean(),
        *by_area,
    )
    return dict(zip(COLUMNS, map(float, values), strict=True))


def _f1(precision: np.ndarray) -> np.ndarray:
    """Return the F1 at the `RECALLS` from the precision (..., 101) there."""
    return 2 * precision * RECALLS / np.maximum(precision + RECALLS, 1e-12)


def f1_at_thresholds(curves: Curves, thresholds: np.ndarray) -> np.ndarray:
    """Return the F1 of each class at each confidence threshold; nan for a class without curves."""
    f1, f1_at_threshold = (
        _f1(curves.precision),
        np.full((len(curves.scores), len(thresholds)), np.nan),
    )
    for k in np.flatnonzero(~np.isnan(curves.precision).all(1)):
        # Recalls that are reached. Below the lowest score nothing changes, above the highest there
        # are no detections.
        reached = curves.precision[k] > 0
        if not reached.any():
            f1_at_threshold[k] = 0.0
            continue
        x, y = curves.scores[k, reached][::-1], f1[k, reached][::-1]
        f1_at_threshold[k] = np.interp(thresholds, x, y, right=0.0)
    return f1_at_threshold


def best_threshold(f1: np.ndarray) -> float:
    """Return the highest of the `THRESHOLDS` at which `f1` (1001,) is best; nan if it is 0."""
    best = f1.max(initial=0)
    return float(THRESHOLDS[np.flatnonzero(f1 == best)[-1]]) if best > 0 else float("nan")


def table_rows(result: Result) -> list[dict[str, Any]]:
    """Return a row for all classes together, with `class` "all", and the row of each class.

    A metric that the result does not have is nan: a fork may add one to a run and resume it.
    """
    total = {"class": "all", "images": "", "boxes": sum(row["boxes"] for row in result.classes)}
    no_metrics = dict.fromkeys(COLUMNS, float("nan"))
    return [no_metrics | row for row in (total | result.overall, *result.classes)]


def format_metric(value: float) -> str:
    """Return a metric as tables show it; "-" for nan, where there is nothing to measure."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def format_table(result: Result) -> str:
    """Format a result as text: a header, a line for all classes together, a line per class."""
    rows = table_rows(result)
    names = [one_line(row["class"]) for row in rows]
    width = max(5, *map(display_width, names))
    header = f"{pad('class', width)}  images   boxes"
    widths = {name: max(7, len(name)) for name in COLUMNS}
    lines = [header + "".join(f"  {name:>{width}}" for name, width in widths.items())]
    for name, row in zip(names, rows, strict=True):
        values = "".join(f"  {format_metric(row[key]):>{width}}" for key, width in widths.items())
        lines.append(f"{pad(name, width)}  {row['images']:>6}  {row['boxes']:>6}{values}")
    return "\n".join(lines)
