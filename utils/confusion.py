"""Matches of detections with ground-truth boxes, and what is counted from them."""

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou

from utils.ground_truth import GroundTruth

CONF, IOU = 0.25, 0.45  # a detection has a score above, a match an IoU above


def match_detections(
    ground_truth: GroundTruth, detections: np.ndarray, conf: float = CONF, iou: float = IOU
) -> np.ndarray:
    """Match detections with ground-truth boxes, of any two classes, at one IoU.

    Returns an integer array (n, 3) with a row for each match, each unmatched detection and each
    unmatched box: image id, predicted class, true class. The class that a row lacks is K, the
    background, where K is the number of classes. The arguments are those of
    `utils.metrics.evaluate`. Of all pairs of a ground-truth box and a detection with a score above
    `conf`, with an IoU above `iou`, those with the highest IoU are matched first; each box and each
    detection is matched at most once. Crowd boxes, and unmatched detections inside one, have no
    row.
    """
    background = len(ground_truth.class_names)
    detections = detections[detections[:, 5] > conf]
    detections = detections[detections[:, 0].argsort(kind="stable")]
    ids_with_boxes = np.flatnonzero(np.diff(ground_truth.offsets))
    rows = [np.zeros((0, 3), int)]
    for image_id in np.union1d(ids_with_boxes, detections[:, 0].astype(int)).tolist():
        first, end = np.searchsorted(detections[:, 0], [image_id, image_id + 1])
        pairs = _match_image(ground_truth, image_id, detections[first:end], background, iou)
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
    ground_truth: GroundTruth, image_id: int, detections: np.ndarray, background: int, iou: float
) -> list[tuple[int, int]]:
    """Return the predicted and the true class of each row of `match_detections` for one image."""
    rows = ground_truth.rows(image_id)
    crowd, xywh = ground_truth.crowd[rows], ground_truth.xywh[rows]
    labels = ground_truth.labels[rows][~crowd].tolist()
    predicted = detections[:, 6].astype(int).tolist()
    ious = _ious(detections, xywh[~crowd])
    unmatched_detections, unmatched_boxes = set(range(len(predicted))), set(range(len(labels)))
    pairs = []
    candidates = np.flatnonzero(ious > iou)
    for pair in candidates[ious.flat[candidates].argsort(kind="stable")[::-1]]:  # best first
        row, column = divmod(int(pair), len(labels))
        if row in unmatched_detections and column in unmatched_boxes:
            unmatched_detections.remove(row)
            unmatched_boxes.remove(column)
            pairs.append((predicted[row], labels[column]))
    in_crowd = (_fractions_inside(detections, xywh[crowd]) > iou).any(1)
    pairs += [(predicted[i], background) for i in unmatched_detections if not in_crowd[i]]
    return pairs + [(background, labels[i]) for i in unmatched_boxes]


def _xyxy(xywh: np.ndarray) -> torch.Tensor:
    return box_convert(torch.from_numpy(xywh.astype(float)), "xywh", "xyxy")


def _ious(detections: np.ndarray, xywh: np.ndarray) -> np.ndarray:
    """Return the IoU (d, n) of detections (d, 7) with boxes (n, 4)."""
    return box_iou(_xyxy(detections[:, 1:5]), _xyxy(xywh)).numpy()


def _fractions_inside(detections: np.ndarray, xywh: np.ndarray) -> np.ndarray:
    """Return the fraction (d, n) of each detection that is inside each crowd box (n, 4).

    COCO's evaluation takes it in place of the IoU.
    """
    det_boxes, boxes = _xyxy(detections[:, 1:5]), _xyxy(xywh)
    top_left = torch.maximum(det_boxes[:, None, :2], boxes[:, :2])
    bottom_right = torch.minimum(det_boxes[:, None, 2:], boxes[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1).numpy()
    areas = np.maximum(detections[:, 3] * detections[:, 4], 1e-9)
    return intersection / areas[:, None]
