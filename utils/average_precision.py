"""COCO's matching of detections with objects, and the precision that follows, for one class."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

RECALLS = np.linspace(0, 1, 101)
IOUS = np.linspace(0.5, 0.95, 10)
# COCO's ranges of box areas in pixels of the original image, both ends included. The first one
# is for all boxes, then up to 32 x 32, 96 x 96, and above.
AREA_RANGES = {
    "all": (0, 1e5**2),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e5**2),
}
MAX_PAIRS = 1_000_000  # of a detection and an object whose IoU is computed at a time


class Pairs(NamedTuple):
    """The P pairs of a detection and an object of its image with an IoU of 0.5 or more."""

    detection: np.ndarray  # (P,) ascending
    object: np.ndarray  # (P,) ascending within a detection
    iou: np.ndarray  # (P,)


class Matches(NamedTuple):
    """What becomes of C detections [detection, area range, IoU threshold]."""

    matched: np.ndarray  # to an object
    correct: np.ndarray  # to an object that is not ignored


def average_precision(
    boxes: np.ndarray,
    image_ids: np.ndarray,
    crowd: np.ndarray,
    detections: np.ndarray,
    limit: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the precision (10, 101, 4) and the scores (101,) of one class.

    The axes of the precision are `IOUS`, `RECALLS` and `AREA_RANGES`: it is the best at this recall
    or a higher one, 0 if the recall is not reached, and -1 if there is no object of that area. The
    scores are those of the detections with which these recalls are reached at IoU 0.5 with boxes of
    all areas; 0 if they are not.

    `boxes` (M, 4) are x, y, width, height, ordered by their `image_ids` (M,); `crowd` (M,) bool is
    COCO's iscrowd. `detections` (N, 6 or more) have the columns image id, x, y, width, height,
    score; the `limit` best ones of each image count.
    """
    detections = _best_of_each_image(detections, limit)
    inside = _in_ranges(detections[:, 3] * detections[:, 4])
    ignored = ~_in_ranges(boxes[:, 2] * boxes[:, 3]) | crowd[:, None]
    pairs = _pairs(boxes, image_ids, crowd, detections)
    candidates, pair_candidate = np.unique(pairs.detection, return_inverse=True)
    pairs = pairs._replace(detection=pair_candidate)
    matches = _match(pairs, detections[candidates, 0], ignored, crowd)

    # From here on by score, the highest first. Precision is needed at correct detections only:
    # after each it falls until the next one.
    order = (-detections[:, 5]).argsort(kind="stable")
    scores = detections[order, 5]
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    by_score = position[candidates].argsort()
    position, is_inside = position[candidates][by_score], inside[candidates][by_score]
    matched, correct = (array[by_score] for array in matches)
    num_inside = inside[order].cumsum(0)[position]

    num_objects = (~ignored).sum(0)
    precision = np.full((len(IOUS), len(RECALLS), len(AREA_RANGES)), -1.0)
    scores_at = np.zeros(len(RECALLS))
    if len(scores):
        scores_at[0] = scores[0]  # also if none is correct
    for area in np.flatnonzero(num_objects):
        # How many correct detections each recall needs.
        needed = np.searchsorted(np.arange(num_objects[area] + 1) / num_objects[area], RECALLS)
        for i in range(len(IOUS)):
            indices = np.flatnonzero(correct[:, area, i])
            # Detections of another area are ignored, unless they match an object.
            matched_inside = (matched[:, area, i] & is_inside[:, area]).cumsum()
            wrong = num_inside[indices, area] - matched_inside[indices]
            count = np.arange(1, len(indices) + 1)
            best = np.maximum.accumulate((count / (count + wrong))[::-1])[::-1]
            reached = np.searchsorted(needed, len(indices), side="right") if len(indices) else 0
            index = np.maximum(needed[:reached] - 1, 0)
            precision[i, :reached, area] = best[index]
            precision[i, reached:, area] = 0
            if area == i == 0:
                scores_at[1:reached] = scores[position[indices]][index[1:]]
    return precision, scores_at


def _best_of_each_image(detections: np.ndarray, limit: int) -> np.ndarray:
    """Return the `limit` best detections of each image, ordered by image, then by score."""
    detections = detections[np.lexsort((-detections[:, 5], detections[:, 0]))]
    return detections[_rank_in_group(detections[:, 0]) < limit]


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """Return how many entries of its group come before each one; a group's are adjacent."""
    return np.arange(len(groups)) - np.repeat(*_starts_and_lengths(groups))


def _starts_and_lengths(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each group of adjacent equal entries starts, and how many it has."""
    starts = np.flatnonzero(np.concatenate(([True], groups[1:] != groups[:-1]))[: len(groups)])
    return starts, np.diff(starts, append=len(groups))


def _in_ranges(areas: np.ndarray) -> np.ndarray:
    """Return whether each area is in each of the `AREA_RANGES` (n, 4)."""
    low, high = np.array(list(AREA_RANGES.values())).T
    return ~((areas[:, None] < low) | (areas[:, None] > high))


def _pairs(
    boxes: np.ndarray, image_ids: np.ndarray, crowd: np.ndarray, detections: np.ndarray
) -> Pairs:
    parts = []
    first = np.searchsorted(image_ids, detections[:, 0])
    count = np.searchsorted(image_ids, detections[:, 0], side="right") - first
    for part in _parts(count):
        detection = np.repeat(part, count[part])
        object_ = np.repeat(first[part], count[part]) + _rank_in_group(detection)
        is_crowd = crowd[object_]
        iou = _iou(detections[detection, 1:5], boxes[object_], is_crowd)
        near = iou >= IOUS[0]
        parts.append(Pairs(detection[near], object_[near], iou[near]))
    return Pairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _parts(count: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the indices of the nonzero counts in parts with a sum of about `MAX_PAIRS`."""
    indices = np.flatnonzero(count)
    part = count[indices].cumsum() // MAX_PAIRS
    yield from np.split(indices, np.flatnonzero(np.diff(part)) + 1)


def _iou(detections: np.ndarray, boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return the IoU of each row of xywh boxes (P, 4), for a crowd the part that is inside it."""
    end = np.minimum(detections[:, :2] + detections[:, 2:], boxes[:, :2] + boxes[:, 2:])
    width, height = (end - np.maximum(detections[:, :2], boxes[:, :2])).T
    overlap = width * height
    area = detections[:, 2] * detections[:, 3]
    union = np.where(crowd, area, area + boxes[:, 2] * boxes[:, 3] - overlap)
    iou = np.zeros(len(overlap))
    return np.divide(overlap, union, out=iou, where=(width > 0) & (height > 0))


def _match(pairs: Pairs, image_ids: np.ndarray, ignored: np.ndarray, crowd: np.ndarray) -> Matches:
    """Match C detections, ordered by image, then by score, with the objects of `pairs`.

    Each takes, among the objects that are free, the one with the best IoU (the last of equal ones),
    an ignored one only if there is no other. A crowd is always free. So the detections of an image
    go one after the other; those of all images that are the first, second, ... of theirs go
    together, and so do all areas and thresholds.
    """
    shape = len(AREA_RANGES), len(IOUS)
    thresholds = np.minimum(IOUS, 1 - 1e-10)
    turn = _rank_in_group(image_ids)[pairs.detection]
    order = np.lexsort((pairs.object, pairs.iou, pairs.detection, turn))
    detection, object_, iou = (array[order] for array in pairs)
    used = np.zeros((len(crowd), *shape), bool)
    matched, correct = np.zeros((2, len(image_ids), *shape), bool)
    for start, length in zip(*_starts_and_lengths(turn[order]), strict=True):
        of_turn = slice(start, start + length)
        objects = object_[of_turn]
        free = (iou[of_turn, None] >= thresholds)[:, None] & ~used[objects]
        # A pair's number, higher for a better one; 0 if it cannot be matched.
        number = np.arange(1, length + 1)[:, None] + length * ~ignored[objects]
        number = np.where(free, number[:, :, None], 0)
        first, _ = _starts_and_lengths(detection[of_turn])
        best = np.maximum.reduceat(number, first)
        indices = best.nonzero()
        best_object = objects[(best[indices] - 1) % length]
        used[best_object, indices[1], indices[2]] = ~crowd[best_object]
        matched[detection[of_turn][first]] = best > 0
        correct[detection[of_turn][first]] = best > length
    return Matches(matched, correct)
