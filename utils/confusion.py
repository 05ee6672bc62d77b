"""Matches of detections with ground-truth boxes, and what is counted from them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou


def match_detections(
    coco_gt: Mapping[str, Any], detections: np.ndarray, conf: float = 0.25, iou: float = 0.45
) -> np.ndarray:
    """Match detections with ground-truth boxes, of any two classes, at one IoU.

    Returns an integer array (n, 3) with a row for each match, each unmatched detection and each
    unmatched box: image id, predicted class, true class. The class that a row lacks is K, the
    background, where K is the number of classes. `coco_gt` and `detections` (k, 7) are those of
    `utils.metrics.evaluate`. Of all pairs of a ground-truth box and a detection with a score above
    `conf`, with an IoU above `iou`, those with the highest IoU are matched first; each box and each
    detection is matched at most once. Crowd boxes, and unmatched detections inside one, have no
    row.
    """
    background = len(coco_gt["categories"])
    annotations: dict[int, list[dict[str, Any]]] = {}
    for annotation in coco_gt["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    detections = detections[detections[:, 5] > conf]
    detections = detections[detections[:, 0].argsort(kind="stable")]
    rows = [np.zeros((0, 3), int)]
    for image_id in sorted(annotations.keys() | set(detections[:, 0].astype(int).tolist())):
        first, end = np.searchsorted(detections[:, 0], [image_id, image_id + 1])
        pairs = _match_image(annotations.get(image_id, []), detections[first:end], background, iou)
        rows.append(np.array([(image_id, *pair) for pair in pairs], int).reshape(-1, 3))
    return np.concatenate(rows)


def confusion_matrix(matches: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the rows of `match_detections` (n, 3) in a matrix (K + 1, K + 1) for K classes.

    Rows are predicted classes, columns true ones; the last row and column are the background.
    """
    size = num_classes + 1
    cells = matches[:, 1] * size + matches[:, 2]
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def per_image_f1(matches: np.ndarray, num_classes: int) -> dict[int, float]:
    """Return the F1 of each image by image id, from the rows of `match_detections` (n, 3).

    F1 = 2 * correct / (ground-truth boxes + detections). An image with neither is not in it.
    """
    image_ids, index = np.unique(matches[:, 0], return_inverse=True)
    _, predicted, true = matches.T
    correct, num_detections, num_boxes = (
        np.bincount(index, weights=condition, minlength=len(image_ids))
        for condition in (predicted == true, predicted < num_classes, true < num_classes)
    )
    f1 = 2 * correct / (num_boxes + num_detections)
    return dict(zip(image_ids.tolist(), f1.tolist(), strict=True))


def _match_image(
    annotations: Sequence[dict[str, Any]], detections: np.ndarray, background: int, iou: float
) -> list[tuple[int, int]]:
    """Return the predicted and the true class of each row of `match_detections` for one image."""
    boxes = [a for a in annotations if not a["iscrowd"]]
    ious = _ious(detections, boxes)
    unmatched_detections, unmatched_boxes = set(range(len(detections))), set(range(len(boxes)))
    pairs = []
    candidates = np.flatnonzero(ious > iou)
    for pair in candidates[ious.flat[candidates].argsort(kind="stable")[::-1]]:  # best first
        row, column = divmod(int(pair), len(boxes))
        if row in unmatched_detections and column in unmatched_boxes:
            unmatched_detections.remove(row)
            unmatched_boxes.remove(column)
            pairs.append((int(detections[row, 6]), boxes[column]["category_id"]))
    crowds = [a for a in annotations if a["iscrowd"]]
    in_crowd = (_ious(detections, crowds) > iou).any(1)
    pairs += [(int(detections[i, 6]), background) for i in unmatched_detections if not in_crowd[i]]
    return pairs + [(background, boxes[i]["category_id"]) for i in unmatched_boxes]


def _ious(detections: np.ndarray, annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the IoU (d, n) of detections (d, 7) with annotations.

    For a crowd it is the fraction of the detection inside it, as in COCO's evaluation.
    """
    if not len(detections) or not annotations:
        return np.zeros((len(detections), len(annotations)))
    det_boxes = box_convert(torch.from_numpy(detections[:, 1:5].astype(float)), "xywh", "xyxy")
    gt_boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64).reshape(-1, 4)
    gt_boxes = box_convert(gt_boxes, "xywh", "xyxy")
    ious = box_iou(det_boxes, gt_boxes).numpy()
    crowd = np.array([bool(a["iscrowd"]) for a in annotations], dtype=bool)
    if crowd.any():
        top_left = torch.maximum(det_boxes[:, None, :2], gt_boxes[:, :2])
        bottom_right = torch.minimum(det_boxes[:, None, 2:], gt_boxes[:, 2:])
        intersection = (bottom_right - top_left).clamp(min=0).prod(-1).numpy()
        areas = np.maximum(detections[:, 3] * detections[:, 4], 1e-9)
        ious[:, crowd] = (intersection / areas[:, None])[:, crowd]
    return ious
