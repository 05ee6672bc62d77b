"""COCO json: images, categories, and annotations with a bbox in pixels (x, y, width, height)."""

import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.json_lists import read_json_lists
from data.formats.scan import Labels, Scan, label_table, unknown_class
from utils.errors import UserError

BLOCK = 1 << 20  # annotations that are converted at once
Id = int | str
INVALID_ENTRY = (ValueError, KeyError, TypeError, OverflowError)


def read_coco(
    scan: Scan, path: Path, image_dir: Path, names: list[str] | None, labels: Labels
) -> list[str]:
    """Add the images and boxes of the json `path`, whose file names are relative to `image_dir`.

    Categories are matched to `labels` by name; if that is empty, the categories, ordered by id,
    are the classes. Returns the class names. Raises UserError if the json is invalid, or has a
    category that is not in `labels`.
    """
    images, categories, annotations = _Images(scan, path, image_dir), [], _AnnotationArrays()
    add_entry = {
        "images": images.add,
        "annotations": annotations.add,
        "categories": categories.append,
    }
    for key, entry in _read_lists(path, [*add_entry]):
        try:
            add_entry[key](entry)
        except INVALID_ENTRY as error:
            raise _not_coco(path, error) from None
    category_names = _category_names(categories, path)
    if not labels:
        names = [*category_names.values()]
        labels = label_table(names, {})
    for name in category_names.values():
        if name not in labels:
            raise UserError(f"{path}: {unknown_class(name, labels)}")
    label_of = {category_id: labels[name] for category_id, name in category_names.items()}
    errors = annotations.add_to(scan, images, label_of)
    errors.sort()  # by the number of the annotation
    scan.errors += [
        (image_index, f"{path}: annotation {number}: {reason}; box skipped")
        for number, image_index, reason in errors
    ]
    return names


def read_coco_ids(path: Path) -> tuple[dict[str, Id], dict[str, Id]]:
    """Return the ids of the images in the json `path` by file name, and of its categories by name.

    Raises UserError if the json is invalid.
    """
    image_ids, category_ids = {}, {}
    for key, entry in _read_lists(path, ["images", "categories"]):
        if key == "images":
            image_ids[entry["file_name"]] = entry["id"]
        else:
            category_ids[entry["name"]] = entry["id"]
    return image_ids, category_ids


def _read_lists(path: Path, keys: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of the lists `keys`. Raises UserError if the json is invalid."""
    try:
        yield from read_json_lists(path, keys)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, RecursionError) as error:
        raise _not_coco(path, error) from None


def _category_names(categories: list[dict[str, Any]], path: Path) -> dict[Id, str]:
    """Return the names of the categories by id, in the order of the ids."""
    try:
        names = {
            category["id"]: category["name"]
            for category in sorted(categories, key=lambda category: category["id"])
        }
    except (KeyError, TypeError) as error:
        raise _not_coco(path, error) from None
    if not all(isinstance(name, str) for name in names.values()):
        raise _not_coco(path, ValueError("a category's name is not a string"))
    return names


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split())


def _not_coco(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: not a COCO json with images, annotations and categories: {_reason(error)}"
    )


class _Images:
    """Adds the images of a json to a `Scan`; their index there and their stated sizes by id."""

    def __init__(self, scan: Scan, path: Path, image_dir: Path) -> None:
        self.indices: dict[Id, int] = {}
        self.first_index = len(scan.files)
        self.sizes = array("d")  # width and height of each, nan if missing or no numbers
        self._scan, self._path, self._image_dir = scan, str(path), image_dir

    def add(self, image: dict[str, Any]) -> None:
        """Add an image, or an error if there is one with its id. Raises an exception if invalid."""
        image_id, file = image["id"], str(self._image_dir / image["file_name"])
        if image_id in self.indices:
            message = f"{file}: another image in {self._path} has the id {image_id!r}"
            self._scan.errors.append((self.indices[image_id], f"{message}; image skipped"))
            return
        try:
            size = float(image["width"]), float(image["height"])
        except INVALID_ENTRY:
            size = math.nan, math.nan
        self.sizes.extend(size)
        self.indices[image_id] = self._scan.add_image(file, *size, self._path)


class _AnnotationArrays:
    """The annotations of a json, which may come before its images and categories.

    Ids are replaced by numbers in the order in which they are met: an object for each annotation
    would take twenty times the memory.
    """

    def __init__(self) -> None:
        self._count = 0  # of annotations, invalid ones included
        self._image_numbers: dict[Id, int] = {}
        self._category_numbers: dict[Id, int] = {}
        self._numbers = array("i")  # of each valid annotation: its position in the list
        self._images = array("i")  # its image's number
        self._categories = array("i")  # its category's number
        self._bboxes = array("d")  # four numbers each, as in the json
        self._crowd = array("b")
        self._invalid: list[tuple[int, Any, str]] = []  # number, image id and reason

    def add(self, annotation: dict[str, Any]) -> None:
        """Add an annotation; one that is invalid gets an error in `add_to`."""
        number, image_id = self._count, annotation.get("image_id")
        self._count += 1
        try:
            category_id = annotation["category_id"]
            category = self._category_numbers.setdefault(category_id, len(self._category_numbers))
            x, y, w, h = map(float, annotation["bbox"])
            image = self._image_numbers.setdefault(image_id, len(self._image_numbers))
        except INVALID_ENTRY as error:
            self._invalid.append((number, image_id, _reason(error)))
            return
        self._numbers.append(number)
        self._images.append(image)
        self._categories.append(category)
        self._bboxes.extend((x, y, w, h))
        self._crowd.append(bool(annotation.get("iscrowd", 0)))

    def add_to(
        self, scan: Scan, images: _Images, label_of: dict[Id, int | None]
    ) -> list[tuple[int, int, str]]:
        """Add the boxes to `scan`, clipped to their images.

        Returns an error for each box that is skipped: the number of the annotation, the index of
        its image or of the one after the last, and the reason.
        """
        no_image, errors = len(scan.files), []
        for number, image_id, reason in self._invalid:
            known = isinstance(image_id, Id) and image_id in images.indices
            index = images.indices[image_id] if known else no_image
            errors.append((number, index, reason if known else _unknown_image(image_id)))

        # Of every number of an image its index, -1 if unknown, and its size; of every number of a
        # category its label, -1 for a class to skip and -2 if unknown.
        image_ids, category_ids = [*self._image_numbers], [*self._category_numbers]
        index_of = np.array([images.indices.get(i, -1) for i in image_ids], np.int64)
        size_of = np.full((len(index_of), 2), np.nan)
        known = index_of >= 0
        all_sizes = np.frombuffer(images.sizes).reshape(-1, 2)
        size_of[known] = all_sizes[index_of[known] - images.first_index]
        labels = [label_of.get(i, -2) for i in category_ids]
        labels = np.array([-1 if label is None else label for label in labels], np.int64)

        for start in range(0, len(self._numbers), BLOCK):
            rows = slice(start, start + BLOCK)
            image_numbers = np.frombuffer(self._images, np.int32)[rows]
            indices, sizes = index_of[image_numbers], size_of[image_numbers]
            box_labels = labels[np.frombuffer(self._categories, np.int32)[rows]]
            bboxes = np.frombuffer(self._bboxes).reshape(-1, 4)[rows]
            boxes, is_valid = _clip(bboxes, sizes)
            for row in np.flatnonzero((indices < 0) | (box_labels == -2) | ~is_valid).tolist():
                if indices[row] < 0:
                    reason = _unknown_image(image_ids[image_numbers[row]])
                elif box_labels[row] == -2:
                    category_id = category_ids[self._categories[start + row]]
                    reason = f"found category_id {category_id!r} (known: {sorted(label_of)})"
                else:
                    reason = _covers_nothing(bboxes[row], sizes[row])
                index = no_image if indices[row] < 0 else int(indices[row])
                errors.append((self._numbers[start + row], index, reason))
            kept = np.flatnonzero((indices >= 0) & (box_labels >= 0) & is_valid)
            crowd = np.frombuffer(self._crowd, np.int8)[rows]
            scan.add_boxes(indices[kept], box_labels[kept], boxes[kept], crowd[kept])
        return errors


def _clip(bboxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert COCO's boxes (n, 4) to xyxy as fractions of the image sizes (n, 2), clipped.

    Returns them, and whether each of them is finite and covers a part of its image.
    """
    with np.errstate(all="ignore"):  # of values that are not valid
        low = np.maximum(bboxes[:, :2], 0)
        high = np.minimum(bboxes[:, :2] + bboxes[:, 2:], sizes)
        is_valid = np.isfinite(bboxes).all(1) & (low < high).all(1)  # not if a size is nan
        return np.concatenate((low / sizes, high / sizes), 1), is_valid


def _unknown_image(image_id: Any) -> str:
    return f"image_id {image_id!r} is not among the images"


def _covers_nothing(bbox: np.ndarray, size: np.ndarray) -> str:
    if np.isnan(size).any():
        return "its image has no width and height that are numbers"
    numbers = ", ".join(f"{value:.12g}" for value in bbox)
    image = f"{size[0]:g}x{size[1]:g} image"
    return f"found the bbox [{numbers}], which covers nothing of the {image}"
