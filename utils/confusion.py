"""Confusion matrix at one confidence and one IoU, and the F1 of each image."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou


def confusion_matrix(
    coco_gt: Mapping[str, Any], detections: np.ndarray, conf: float = 0.25, iou: float = 0.45
) -> np.ndarray:
    """Return counts (K + 1, K + 1) for K classes: rows are predicted classes, columns true ones.

    The last row and column are the background. `coco_gt` and `detections` (k, 7) are those of
    `utils.metrics.evaluate`. Of all pairs of a ground-truth box and a detection with a score above
    `conf`, of any two classes, with an IoU above `iou`, those with the highest IoU are matched
    first; each box and each detection is matched at most once. Crowd boxes, and unmatched
    detections inside one, are not counted.
    """
    return sum(per_image_confusion(coco_gt, detections, conf, iou).values())


def per_image_f1(matrices: Mapping[int, np.ndarray]) -> dict[int, float]:
    """Return the F1 of each image from its confusion matrix, by image id.

    F1 = 2 * correct / (ground-truth boxes + detections), nan for an image with neither.
    """
    scores = {}
    for image_id, counts in matrices.items():
        num_boxes, num_detections = counts[:, :-1].sum(), counts[:-1].sum()
        total = num_boxes + num_detections
        scores[image_id] = 2 * counts.trace() / total if total else float("nan")
    return scores


def per_image_confusion(
    coco_gt: Mapping[str, Any], detections: np.ndarray, conf: float = 0.25, iou: float = 0.45
) -> dict[int, np.ndarray]:
    """Return the `confusion_matrix` of each image, by image id."""
    num_classes = len(coco_gt["categories"])
    annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in coco_gt["images"]}
    for annotation in coco_gt["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    detections = detections[detections[:, 5] > conf]
    detections = detections[detections[:, 0].argsort(kind="stable")]
    matrices = {}
    for image_id, image_annotations in annotations.items():
        first, end = np.searchsorted(detections[:, 0], [image_id, image_id + 1])
        matrices[image_id] = _image_confusion(
            image_annotations, detections[first:end], num_classes, iou
        )
    return matrices


def _image_confusion(
    annotations: list[dict[str, Any]], detections: np.ndarray, num_classes: int, iou: float
) -> np.ndarray:
    counts = np.zeros((num_classes + 1, num_classes + 1), int)
    boxes = [a for a in annotations if not a["iscrowd"]]
    ious = _ious(detections, boxes)
    unmatched_detections, unmatched_boxes = set(range(len(detections))), set(range(len(boxes)))
    for pair in ious.argsort(axis=None, kind="stable")[::-1]:  # highest IoU first
        row, column = divmod(int(pair), len(boxes))
        if ious[row, column] <= iou:
            break
        if row in unmatched_detections and column in unmatched_boxes:
            unmatched_detections.remove(row)
            unmatched_boxes.remove(column)
            counts[int(detections[row, 6]), boxes[column]["category_id"]] += 1
    crowd_ious = _ious(detections, [a for a in annotations if a["iscrowd"]])
    for row in unmatched_detections:
        if not (crowd_ious[row] > iou).any():
            counts[int(detections[row, 6]), num_classes] += 1
    for column in unmatched_boxes:
        counts[num_classes, boxes[column]["category_id"]] += 1
    return counts


def _ious(detections: np.ndarray, annotations: list[dict[str, Any]]) -> np.ndarray:
    """Return the IoU (d, n) of detections (d, 7) with annotations.

    For a crowd it is the fraction of the detection inside it, as in COCO's evaluation.
    """
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
