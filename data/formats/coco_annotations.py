"""The annotations of a COCO json: boxes in pixels (x, y, width, height), made into arrays."""

import reprlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.coco_ids import Id, match_ids, to_id
from data.formats.coco_images import SKIPPED, CocoImages
from data.formats.scan import Scan
from data.formats.segmentation import bounding_box
from utils.errors import UserError

BLOCK = 1 << 20  # annotations that are converted at once
UNKNOWN = -2  # an image or a missing category
NOTHING = (None, "", [], {})
FLAGS = {None: 0, 0: 0, 1: 1, "": 0, "0": 0, "1": 1, "false": 0, "true": 1}
# What annotations of other tasks have, and what their file is.
OTHER_TASKS = {
    "segments_info": "a COCO json of panoptic segmentation, which has no boxes",
    "caption": "a COCO json of captions, which has no boxes",
}
TEXTS = "boxes whose numbers are texts, read as numbers"
SEGMENTATIONS = "annotations without a bbox, whose box is that of their segmentation"
CROWDS = "boxes with `iscrowd`: not trained on, no error in evaluation"
IGNORED = "annotations with `ignore`, taken as crowds: not trained on, no error in evaluation"
OTHER_KIND = "boxes whose {key} is a text and the id a number, or the reverse, read as the same"
CUT = "boxes that reach beyond their image, cut at its border"
ROUNDING = 1.0  # pixels that a box may be beyond its image without being counted as cut
Error = tuple[int, int, str]  # number of the annotation, index of its image, reason


class CocoAnnotations:
    """Collects the annotations of a json, which may come before its images and categories.

    Ids are replaced by numbers in the order in which they are met: an object for each annotation
    would take twenty times the memory.
    """

    def __init__(self, path: Path) -> None:
        self.notes: Counter[str] = Counter()
        self._path = path
        self._count = 0  # of annotations, invalid ones included
        self._image_numbers: dict[Id, int] = {}
        self._category_numbers: dict[Id, int] = {}
        self._numbers = array("i")  # of each valid annotation: its position in the list
        self._images = array("i")  # its image's number
        self._categories = array("i")  # its category's number
        self._bboxes = array("d")  # four numbers each, as in the json
        self._crowd = array("b")
        self._without_bbox = array("i")  # rows of these arrays whose box `fill_boxes` is to fill in
        self._mask_rows = array("i")  # of these, the rows whose segmentation is a mask
        self._mask_sizes = array("d")  # its width and height
        self._row_reasons: dict[int, str] = {}  # why there is no box, by row
        self._invalid: list[tuple[int, Any, str]] = []  # number, image id and reason

    def add(self, annotation: dict[str, Any]) -> None:
        """Add an annotation; one that is invalid gets an error in `add_to`.

        Raises UserError if it belongs to another task.
        """
        number, end = self._count, len(self._bboxes)
        self._count += 1
        try:
            image_id, category_id = annotation["image_id"], annotation["category_id"]
            if type(image_id) is not int:
                image_id = to_id("image_id", image_id)
            if type(category_id) is not int:
                category_id = to_id("category_id", category_id)
            crowd = annotation.get("iscrowd", 0)
            if crowd not in (0, 1) or annotation.get("ignore"):
                crowd = self._crowd_flag(annotation)
            self._add_bbox(annotation)
        except (KeyError, ValueError) as error:
            del self._bboxes[end:]
            self._add_invalid(number, annotation, error)
            return
        image = self._image_numbers.setdefault(image_id, len(self._image_numbers))
        category = self._category_numbers.setdefault(category_id, len(self._category_numbers))
        self._numbers.append(number)
        self._images.append(image)
        self._categories.append(category)
        self._crowd.append(1 if crowd else 0)

    def _add_bbox(self, annotation: dict[str, Any]) -> None:
        end = len(self._bboxes)
        try:
            self._bboxes.extend(annotation["bbox"])  # which an array does with numbers only
            if len(self._bboxes) == end + 4:
                return
        except (KeyError, TypeError, OverflowError):
            pass
        del self._bboxes[end:]
        bbox = annotation.get("bbox")
        if bbox not in NOTHING:
            try:
                x, y, w, h = map(float, bbox if isinstance(bbox, list) else ())
            except (TypeError, ValueError, OverflowError):
                problem = f"found the bbox {reprlib.repr(bbox)}"
                raise ValueError(f"{problem} (need four numbers: x, y, width, height)") from None
            self.notes[TEXTS] += 1
            self._bboxes.extend((x, y, w, h))
        elif annotation.get("segmentation") in NOTHING:  # 0 if it has polygons
            raise KeyError("bbox")
        else:
            self._without_bbox.append(end // 4)
            self._bboxes.extend((np.nan,) * 4)

    def _crowd_flag(self, annotation: dict[str, Any]) -> int:
        """Return 1 for a crowd, or an annotation to be ignored. Raises ValueError if invalid."""
        flags = {}
        for key in ("iscrowd", "ignore"):
            value = annotation.get(key)
            try:
                flags[key] = FLAGS[value.lower() if isinstance(value, str) else value]
            except (KeyError, TypeError):
                problem = f"found {key} {reprlib.repr(value)}"
                raise ValueError(f"{problem} (need 0 or 1)") from None
        if flags["ignore"] and not flags["iscrowd"]:
            self.notes[IGNORED] += 1
        return int(flags["iscrowd"] or flags["ignore"])

    def _add_invalid(self, number: int, annotation: dict[str, Any], error: Exception) -> None:
        for key, task in OTHER_TASKS.items():
            if key in annotation and "bbox" not in annotation:
                raise UserError(f"{self._path}: {task} (found {key!r} in annotation {number})")
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        self._invalid.append((number, annotation.get("image_id"), reason))

    @property
    def needs_segmentations(self) -> bool:
        """Whether boxes are to be taken from segmentations, see `fill_boxes`."""
        return bool(self._without_bbox)

    def fill_boxes(self, annotations: Iterator[dict[str, Any]]) -> None:
        """Take the boxes that are missing from the segmentations of the same annotations."""
        rows = iter(self._without_bbox)
        row = next(rows)
        for number, annotation in enumerate(annotations):
            if number != self._numbers[row]:
                continue
            try:
                box, mask_size = bounding_box(annotation.get("segmentation"))
            except ValueError as error:
                self._row_reasons[row] = str(error)
            else:
                self._bboxes[4 * row : 4 * row + 4] = array("d", box)
                self.notes[SEGMENTATIONS] += 1
                if mask_size:
                    self._mask_rows.append(row)
                    self._mask_sizes.extend(mask_size)
            row = next(rows, None)
            if row is None:
                return

    def used_categories(self, known: Collection[Id]) -> set[Id]:
        """Return those of the category ids `known` that annotations have."""
        matches, _ = match_ids([*self._category_numbers], known)
        return {match for match in matches if match is not None}

    def add_to(self, scan: Scan, images: CocoImages, label_of: dict[Id, int | None]) -> None:
        """Add the boxes to `scan`, clipped to their images, and an error for each one skipped.

        Raises UserError if the boxes are fractions of the images.
        """
        self._check_pixels()
        errors = self._invalid_errors(scan, images)
        indices = self._image_indices(images)
        sizes = np.full((len(indices), 2), np.nan)
        sizes[indices >= 0] = np.frombuffer(images.sizes).reshape(-1, 2)[
            indices[indices >= 0] - images.first_index
        ]
        self._check_masks(indices, sizes)
        labels = self._labels(label_of)
        image_ids, category_ids = [*self._image_numbers], [*self._category_numbers]

        for start in range(0, len(self._numbers), BLOCK):
            rows = slice(start, start + BLOCK)
            image_numbers = np.frombuffer(self._images, np.int32)[rows]
            box_indices, box_sizes = indices[image_numbers], sizes[image_numbers]
            box_labels = labels[np.frombuffer(self._categories, np.int32)[rows]]
            bboxes = np.frombuffer(self._bboxes).reshape(-1, 4)[rows]
            boxes, is_valid = _clip(bboxes, box_sizes)
            is_wrong = (box_indices == UNKNOWN) | (box_labels == UNKNOWN) | ~is_valid
            for row in np.flatnonzero(is_wrong & (box_indices != SKIPPED)).tolist():
                if box_indices[row] == UNKNOWN:
                    reason = _unknown_image(image_ids[image_numbers[row]])
                elif box_labels[row] == UNKNOWN:
                    category_id = category_ids[self._categories[start + row]]
                    reason = f"found category_id {category_id!r} (known: {[*label_of]})"
                else:
                    reason = self._row_reasons.get(start + row)
                    reason = reason or _covers_nothing(bboxes[row], box_sizes[row])
                index = len(scan.files) if box_indices[row] < 0 else int(box_indices[row])
                errors.append((self._numbers[start + row], index, reason))
            valid = np.flatnonzero((box_indices >= 0) & (box_labels >= 0) & is_valid)
            self.notes[CUT] += _count_cut(bboxes[valid], box_sizes[valid])
            crowd = np.frombuffer(self._crowd, np.int8)[rows]
            scan.drop_boxes(box_indices[(box_indices >= 0) & (box_labels == -1) & is_valid])
            scan.add_boxes(box_indices[valid], box_labels[valid], boxes[valid], crowd[valid])
        num_crowds = sum(self._crowd) - self.notes[IGNORED]
        if num_crowds:
            self.notes[CROWDS] = num_crowds
        errors.sort()  # by the number of the annotation
        for number, index, reason in errors:
            message = f"{self._path}: annotation {number}: {reason}; box skipped"
            if index < len(scan.files):
                scan.skip_labels(index, message)
            else:
                scan.errors.append((index, message))

    def _check_pixels(self) -> None:
        numbers = np.frombuffer(self._bboxes)
        # fmax leaves out nan. A box of whole numbers may be the first pixel of an image.
        if np.fmax.reduce(numbers, initial=-np.inf) <= 1 and (numbers % 1 > 0).any():
            raise UserError(
                f"{self._path}: no number in any bbox is above 1: they are fractions of the images "
                "(need pixels: x, y, width, height)"
            )

    def _invalid_errors(self, scan: Scan, images: CocoImages) -> list[Error]:
        errors = []
        for number, image_id, reason in self._invalid:
            try:
                index = images.index_of.get(to_id("image_id", image_id), UNKNOWN)
            except ValueError:
                index = len(scan.files)  # which is the reason
            if index == UNKNOWN:
                index, reason = len(scan.files), _unknown_image(image_id)
            if index != SKIPPED:
                errors.append((number, index, reason))
        return errors

    def _check_masks(self, indices: np.ndarray, sizes: np.ndarray) -> None:
        """Remove the box of each mask whose size is not that of its image."""
        if not self._mask_rows:
            return
        rows = np.frombuffer(self._mask_rows, np.int32)
        image_numbers = np.frombuffer(self._images, np.int32)[rows]
        mask_sizes = np.frombuffer(self._mask_sizes).reshape(-1, 2)
        is_known = (indices[image_numbers] >= 0) & np.isfinite(sizes[image_numbers]).all(1)
        differs = (mask_sizes != sizes[image_numbers]).any(1) & is_known
        for k in np.flatnonzero(differs).tolist():
            (width, height), (w, h) = sizes[image_numbers[k]], mask_sizes[k]
            self._row_reasons[int(rows[k])] = (
                f"found a mask of {w:g}x{h:g} for an image of {width:g}x{height:g}, and no bbox"
            )
            np.frombuffer(self._bboxes).reshape(-1, 4)[rows[k]] = np.nan

    def _image_indices(self, images: CocoImages) -> np.ndarray:
        """Return for every number of an image its index in the `Scan`, SKIPPED or UNKNOWN."""
        matches, is_other_kind = match_ids([*self._image_numbers], images.index_of)
        self._note_kinds("image_id", self._images, is_other_kind)
        indices = [UNKNOWN if match is None else images.index_of[match] for match in matches]
        return np.array(indices, np.int64)

    def _labels(self, label_of: dict[Id, int | None]) -> np.ndarray:
        """Return for every number of a category its label, UNKNOWN, or -1 for a class to skip."""
        matches, is_other_kind = match_ids([*self._category_numbers], label_of)
        self._note_kinds("category_id", self._categories, is_other_kind)
        labels = [UNKNOWN if match is None else label_of[match] for match in matches]
        return np.array([-1 if label is None else label for label in labels], np.int64)

    def _note_kinds(self, key: str, numbers: array, is_other_kind: list[bool]) -> None:
        if any(is_other_kind):
            count = np.array(is_other_kind)[np.frombuffer(numbers, np.int32)].sum()
            self.notes[OTHER_KIND.format(key=key)] += int(count)


def _clip(bboxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert COCO's boxes (n, 4) to xyxy as fractions of the image sizes (n, 2), clipped.

    Returns them, and whether each of them is finite and covers a part of its image.
    """
    with np.errstate(all="ignore"):  # of values that are not valid
        low = np.maximum(bboxes[:, :2], 0)
        high = np.minimum(bboxes[:, :2] + bboxes[:, 2:], sizes)
        is_valid = np.isfinite(bboxes).all(1) & (low < high).all(1)  # not if a size is nan
        return np.concatenate((low / sizes, high / sizes), 1), is_valid


def _count_cut(bboxes: np.ndarray, sizes: np.ndarray) -> int:
    """Return how many of COCO's boxes (n, 4) are beyond their images by more than a rounding."""
    is_cut = (bboxes[:, :2] < -ROUNDING) | (bboxes[:, :2] + bboxes[:, 2:] > sizes + ROUNDING)
    return int(is_cut.any(1).sum())


def _unknown_image(image_id: Any) -> str:
    return f"image_id {image_id!r} is not among the images"


def _covers_nothing(bbox: np.ndarray, size: np.ndarray) -> str:
    numbers = ", ".join(f"{value:.12g}" for value in bbox)
    image = f"{size[0]:g}x{size[1]:g} image"
    return f"found the bbox [{numbers}], which covers nothing of the {image}"
