"""What detections are compared with: the boxes of a split as arrays, without an object for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_DETECTIONS = 100  # of an image that count in COCO's evaluation, the ones scored highest


@dataclass(frozen=True)
class GroundTruth:
    """The N boxes of n images, ordered by image. Image i has the id i, class k the id k."""

    class_names: tuple[str, ...]
    offsets: np.ndarray  # (n + 1,): image i has the boxes offsets[i] to offsets[i + 1]
    xywh: np.ndarray  # (N, 4) float64: left, top, width, height in pixels
    labels: np.ndarray  # (N,)
    crowd: np.ndarray  # (N,) bool: COCO's iscrowd

    @classmethod
    def from_fractions(
        cls,
        sizes: np.ndarray,
        offsets: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        crowd: np.ndarray,
        class_names: Sequence[str],
    ) -> "GroundTruth":
        """Make it from `boxes` (N, 4), xyxy in 0..1, and `sizes` (n, 2), width and height."""
        image_ids = np.repeat(np.arange(len(sizes)), np.diff(offsets))
        corners = boxes.astype(np.float64) * np.tile(sizes[image_ids], 2)
        xywh = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
        return cls(tuple(class_names), offsets, xywh, labels, crowd.astype(bool))

    @property
    def image_ids(self) -> np.ndarray:
        """The image of each box (N,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def detection_limit(self) -> int:
        """How many detections of an image count: `MAX_DETECTIONS`, or the most objects of one.

        With COCO's 100, a detector that finds all of 150 objects would have a recall of 0.67.
        """
        objects = np.bincount(self.image_ids[~self.crowd])
        return max(MAX_DETECTIONS, int(objects.max(initial=0)))

    def rows(self, image_id: int) -> slice:
        """Return the rows of the boxes of an image, none for an image that is not in the split."""
        if not 0 <= image_id < len(self.offsets) - 1:
            return slice(0, 0)
        return slice(int(self.offsets[image_id]), int(self.offsets[image_id + 1]))

    def to_coco(self) -> dict[str, Any]:
        """Return a COCO dataset for other tools. It has a dict for each box."""
        return {
            "images": [{"id": i} for i in range(len(self.offsets) - 1)],
            "categories": [{"id": k, "name": name} for k, name in enumerate(self.class_names)],
            "annotations": self.coco_annotations(np.arange(len(self.labels))),
        }

    def coco_annotations(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Return the boxes `rows` as a COCO dataset has them."""
        areas = self.xywh[rows, 2] * self.xywh[rows, 3]
        image_ids = np.searchsorted(self.offsets, rows, side="right") - 1
        columns = (rows, image_ids, self.labels[rows], self.crowd[rows].astype(int))
        numbers = zip(*(column.tolist() for column in columns), strict=True)
        return [
            {
                "id": row + 1,
                "image_id": image_id,
                "category_id": label,
                "bbox": bbox,
                "area": area,
                "iscrowd": crowd,
            }
            for (row, image_id, label, crowd), bbox, area in zip(
                numbers, self.xywh[rows].tolist(), areas.tolist(), strict=True
            )
        ]


def limit_message(limit: int, split: str) -> list[str]:
    """Return a list with a message if the `detection_limit` of `split` is not COCO's, else []."""
    if limit == MAX_DETECTIONS:
        return []
    return [
        f"{split}: up to {limit} objects in an image; so the {limit} best detections of each image "
        f"are evaluated, instead of COCO's {MAX_DETECTIONS}"
    ]
