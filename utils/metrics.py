"""COCO metrics, overall and per class, computed by faster-coco-eval."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from utils.text import display_width, one_line, pad

METRICS = ("precision", "recall", "mAP50", "mAP75", "mAP50-95")
MAX_DETECTIONS = 100  # of an image that count in COCO's evaluation, the ones scored highest
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


def to_coco_gt(
    sizes: np.ndarray,
    offsets: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    crowd: np.ndarray,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Convert the annotations of a split to a COCO dataset in image pixels.

    Image i has id i, class k category id k.
    sizes (n, 2): width and height; offsets (n + 1,): image i has the boxes from offsets[i] to
    offsets[i + 1]; boxes (N, 4): xyxy in 0..1; labels and crowd (N,).
    """
    image_ids = np.repeat(np.arange(len(sizes)), np.diff(offsets))
    corners = boxes.astype(np.float64) * np.tile(sizes[image_ids], 2)
    widths, heights = (corners[:, 2:] - corners[:, :2]).T
    areas = widths * heights
    xywh = np.column_stack((corners[:, :2], widths, heights))
    annotations = [
        {
            "id": i + 1,
            "image_id": int(image_ids[i]),
            "category_id": int(labels[i]),
            "bbox": xywh[i].tolist(),
            "area": float(areas[i]),
            "iscrowd": int(crowd[i]),
        }
        for i in range(len(labels))
    ]
    return {
        "images": [{"id": i, "width": int(w), "height": int(h)} for i, (w, h) in enumerate(sizes)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(class_names)],
        "annotations": annotations,
    }


def detection_limit(image_ids: np.ndarray) -> int:
    """Return how many detections of an image count: `MAX_DETECTIONS`, or the most objects of one.

    `image_ids` (N,) are those of the objects that are not crowds. With COCO's 100, a detector that
    finds all of 150 objects would have a recall of 0.67.
    """
    return max(MAX_DETECTIONS, int(np.bincount(image_ids).max(initial=0)))


def limit_message(limit: int, split: str) -> list[str]:
    """Return a list with a message if the `detection_limit` of `split` is not COCO's, else []."""
    if limit == MAX_DETECTIONS:
        return []
    return [
        f"{split}: up to {limit} objects in an image; so the {limit} best detections of each image "
        f"are evaluated, instead of COCO's {MAX_DETECTIONS}"
    ]


def evaluate(coco_gt: dict[str, Any], detections: np.ndarray) -> Result:
    """Compare detections with a COCO ground truth.

    `detections` (k, 7) has the columns image id, x, y, width, height (pixels of the image), score,
    category id. Average precision is COCO's: over IoU 0.50 to 0.95, 101 recall
    points, the `detection_limit` best detections per image: at most 100, unless an image has more
    objects. Precision and recall are taken where the F1 of a class at IoU 0.5 is best, then
    averaged over the classes.
    """
    return evaluate_with_curves(coco_gt, detections)[0]


def evaluate_with_curves(coco_gt: dict[str, Any], detections: np.ndarray) -> tuple[Result, Curves]:
    """Return the result of `evaluate`, and the curves behind its precision, recall and F1."""
    num_classes = len(coco_gt["categories"])
    annotations: list[list[dict[str, Any]]] = [[] for _ in range(num_classes)]
    for annotation in coco_gt["annotations"]:
        annotations[annotation["category_id"]].append(annotation)
    num_boxes, num_images, limit = _count_boxes(coco_gt["annotations"], num_classes)
    detections = detections[detections[:, 6].argsort(kind="stable")]
    bounds = np.searchsorted(detections[:, 6], np.arange(num_classes + 1))
    curves = Curves(*np.full((2, num_classes, 101), np.nan))
    classes = []
    with _no_garbage_collection():
        for k, category in enumerate(coco_gt["categories"]):
            metrics = dict.fromkeys(METRICS, float("nan"))
            if num_boxes[k]:
                of_class = detections[bounds[k] : bounds[k + 1]]
                evaluation = _evaluate_class(annotations[k], of_class, limit)
                # [IoU, recall, class, area, detections per image] of one class
                precision, scores = evaluation["precision"], evaluation["scores"]
                metrics = _class_metrics(precision[:, :, 0, :, 0])
                curves.precision[k], curves.scores[k] = (
                    precision[0, :, 0, 0, 0],
                    scores[0, :, 0, 0, 0],
                )
            counts = {"images": int(num_images[k]), "boxes": int(num_boxes[k])}
            classes.append({"class": category["name"]} | counts | metrics)
    overall = {name: _mean([row[name] for row in classes]) for name in METRICS}
    return Result(overall, classes), curves


def _count_boxes(
    annotations: Sequence[dict[str, Any]], num_classes: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the number of boxes of each class that are not crowds, and of images with such.

    And the `detection_limit` that results from them.
    """
    pairs = [(a["category_id"], a["image_id"]) for a in annotations if not a["iscrowd"]]
    labels, image_ids = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    num_boxes = np.bincount(labels, minlength=num_classes)
    last_id = image_ids.max(initial=0)
    classes_in_images = np.unique(labels * (last_id + 1) + image_ids) // (last_id + 1)
    num_images = np.bincount(classes_in_images, minlength=num_classes)
    return num_boxes, num_images, detection_limit(image_ids)


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
