"""Which classes a detector takes for which, at one score and one overlap, and how well it does in each picture."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou


def confusion_matrix(
    truth: Mapping[str, Any], detections: np.ndarray, score: float = 0.25, iou: float = 0.45
) -> np.ndarray:
    """Counts (K + 1, K + 1) of K classes: row what was detected, column what is there, the last of each for nothing.

    `truth` and `detections` are those of `utils.metrics.evaluate`. Of all pairs of a box and a detection above `score`, whatever
    their classes, that overlap by more than `iou`, the closest are matched first, each box and each detection once. Crowds, and
    detections that match nothing else in one, are not counted.
    """
    return sum(per_image_confusion(truth, detections, score, iou).values())


def per_image_f1(matrices: Mapping[int, np.ndarray]) -> dict[int, float]:
    """The F1 of each picture out of its matrix: twice what is matched to its own class, by what is there and what was detected
    together; nan where nothing is there and nothing was detected."""
    found = {}
    for image, counts in matrices.items():
        total = counts[:, :-1].sum() + counts[:-1].sum()
        found[image] = 2 * counts.trace() / total if total else float("nan")
    return found


def per_image_confusion(
    truth: Mapping[str, Any], detections: np.ndarray, score: float = 0.25, iou: float = 0.45
) -> dict[int, np.ndarray]:
    """The `confusion_matrix` of each picture alone, by its id."""
    classes = len(truth["categories"])
    boxes_of: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        boxes_of[annotation["image_id"]].append(annotation)
    kept = detections[detections[:, 5] > score]
    kept = kept[kept[:, 0].argsort(kind="stable")]
    matrices = {}
    for image, annotations in boxes_of.items():
        counts = matrices[image] = np.zeros((classes + 1, classes + 1), int)
        found = kept[slice(*np.searchsorted(kept[:, 0], [image, image + 1]))]
        boxes = [a for a in annotations if not a["iscrowd"]]
        overlaps = _overlaps(found, boxes)
        free_found, free_boxes = set(range(len(found))), set(range(len(boxes)))
        for flat in overlaps.argsort(axis=None, kind="stable")[::-1]:
            row, column = divmod(int(flat), len(boxes))
            if overlaps[row, column] <= iou:
                break
            if row in free_found and column in free_boxes:
                free_found.remove(row)
                free_boxes.remove(column)
                counts[int(found[row, 6]), boxes[column]["category_id"]] += 1
        crowd = _overlaps(found, [a for a in annotations if a["iscrowd"]])
        for row in free_found:
            if not (crowd[row] > iou).any():
                counts[int(found[row, 6]), classes] += 1
        for column in free_boxes:
            counts[classes, boxes[column]["category_id"]] += 1
    return matrices


def _overlaps(found: np.ndarray, boxes: list[dict[str, Any]]) -> np.ndarray:
    """IoU (d, n) of detections (d, 7) with annotations; with a crowd, the share of the detection that lies in it, as COCO's."""
    mine = box_convert(torch.from_numpy(found[:, 1:5].astype(float)), "xywh", "xyxy")
    theirs = box_convert(
        torch.tensor([a["bbox"] for a in boxes], dtype=torch.float64).reshape(-1, 4), "xywh", "xyxy"
    )
    overlaps = box_iou(mine, theirs).numpy()
    crowd = np.array([bool(a["iscrowd"]) for a in boxes], dtype=bool)
    if crowd.any():
        corners = (
            torch.maximum(mine[:, None, :2], theirs[:, :2]),
            torch.minimum(mine[:, None, 2:], theirs[:, 2:]),
        )
        shared = (corners[1] - corners[0]).clamp(min=0).prod(-1).numpy()
        areas = np.maximum(found[:, 3] * found[:, 4], 1e-9)
        overlaps[:, crowd] = (shared / areas[:, None])[:, crowd]
    return overlaps
