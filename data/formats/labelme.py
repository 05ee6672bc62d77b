"""labelme: one json per image, with shapes of points in pixels. The box of a shape is read."""

import math
import os
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data.config import AnnotatedSource
from data.formats.image_names import AS_NAMED, NOT_FOUND, ImageFinder
from data.formats.json_kinds import json_kind
from data.formats.json_lists import read_json
from data.formats.scan import Labels, Scan
from data.images import ImageSize
from utils.errors import UserError

# Shapes that cover what is between their points, and the smallest number of these. "rotation" is
# X-AnyLabeling's rectangle that is turned; a mask has the first and the last pixel of its box.
NUM_POINTS = {
    "polygon": 3,
    "rectangle": 2,
    "circle": 2,
    "mask": 2,
    "rotation": 3,
    "oriented_rectangle": 3,
}
NOTE = "labelme shapes other than rectangles, whose box is taken"
CUT = "boxes that reach beyond their image, cut at its border"
ROUNDING = 1.0  # pixels that a box may be beyond its image without being counted as cut
GROUPS = "labelme shapes that share a group_id and a label with another one, one box with it"
NO_SIZE = "labelme images without a size in the json, taken from the image files"
IGNORED = "labelme shapes with `difficult`, taken as crowds: not trained on, no error in evaluation"
Corners = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels


def is_labelme(root: Path, source: AnnotatedSource) -> bool:
    """Whether the annotations of `source` are a directory with json and without xml files."""
    if not source.is_voc:
        return False
    suffixes = set()
    for _, _, names in os.walk(root / source.annotations):
        suffixes |= {os.path.splitext(name)[1].lower() for name in names}  # noqa: PTH122
    return ".json" in suffixes and ".xml" not in suffixes


def read_labelme(scan: Scan, root: Path, source: AnnotatedSource, labels: Labels) -> list[str]:
    """Add the images and boxes of the json files in the directory of `source`, and below it.

    Returns the files and directories that were read. Raises UserError if the source has an image
    set.
    """
    json_dir = root / source.annotations
    if source.image_set is not None:
        raise UserError(
            f"{json_dir}: `image_set` is for Pascal VOC xml (labelme's json files need a directory "
            "for each split)"
        )
    inputs, files, notes = [], [], Counter()
    for directory, directories, names in os.walk(json_dir):
        inputs.append(directory)
        directories[:] = [name for name in directories if not name.startswith(".")]
        names = [name for name in names if not name.startswith(".")]  # copies, of macOS for example
        files += [Path(directory) / name for name in names if name.lower().endswith(".json")]
    finders: dict[Path, ImageFinder] = {}
    json_of: dict[str, Path] = {}
    for path in sorted(files):
        inputs.append(str(path))
        try:
            content = _read(path)
            directory = root / source.images if source.has_images else path.parent
            finder = finders.setdefault(directory, ImageFinder(directory, scan.suffixes))
            file, how = _find_image(finder, content["imagePath"], path)
            if file in json_of:
                raise ValueError(f"its image {file} is that of {json_of[file]}, too")
        except ValueError as error:
            scan.errors.append((len(scan.files), f"{path}: {error}; image skipped"))
            continue
        json_of[file] = path
        if how not in (AS_NAMED, NOT_FOUND):
            notes[how] += 1
        _add_image(scan, notes, path, file, content, labels)
    scan.notes.update(
        {f"{json_dir}: {sentence}": count for sentence, count in notes.items() if count}
    )
    return inputs


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a json. Raises ValueError with a message if it is not labelme's."""
    try:
        content = read_json(path)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"not labelme's json: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        kind = json_kind(path)
        raise ValueError(f"not labelme's json{f', but {kind}' if kind else ': it has no shapes'}")
    name = content.get("imagePath")
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"found the imagePath {reprlib.repr(name)} (need a string)")
    return content


def _find_image(finder: ImageFinder, name: str, path: Path) -> tuple[str, str]:
    """Return the file of `imagePath`, or else the one with the name of the json, and how."""
    file, how = finder.find(name)
    if how == NOT_FOUND:
        other, other_how = finder.find(path.stem)
        if other_how != NOT_FOUND:
            return other, other_how
    return os.path.normpath(file), how


def _add_image(
    scan: Scan, notes: Counter[str], path: Path, file: str, content: dict[str, Any], labels: Labels
) -> None:
    """Add the image `file` and the boxes of its shapes."""
    width, height = (_length(content.get(key)) for key in ("imageWidth", "imageHeight"))
    if math.isnan(width) or math.isnan(height):
        size = scan.image_size(file)
        image_index = scan.add_image(file)
        if not isinstance(size, ImageSize):
            return  # its boxes go with it
        width, height = size[:2]
        notes[NO_SIZE] += 1
    else:
        image_index = scan.add_image(file, width, height, str(path))
    objects: dict[tuple[str, Any], tuple[Corners, bool]] = {}
    for number, shape in enumerate(content["shapes"]):
        try:
            label, corners = _parse_shape(shape, (width, height), labels)
        except ValueError as error:
            scan.errors.append((image_index, f"{path}: shape {number}: {error}; box skipped"))
            continue
        if shape.get("shape_type", "polygon") != "rectangle":
            notes[NOTE] += 1
        is_crowd = shape.get("difficult") is True
        notes[IGNORED] += is_crowd
        group = shape.get("group_id")
        key = label, number if group is None else f"group {group}"
        if key in objects:
            notes[GROUPS] += 1
            (x1, y1, x2, y2), was_crowd = objects[key]
            left, top, right, bottom = corners
            corners = min(x1, left), min(y1, top), max(x2, right), max(y2, bottom)
            is_crowd = is_crowd or was_crowd
        objects[key] = corners, is_crowd
    sides = np.array([width, height] * 2)
    for (label, _), (corners, is_crowd) in objects.items():
        box = np.clip(corners, 0, sides)
        notes[CUT] += bool((abs(box - corners) > ROUNDING).any())
        scan.add_box(image_index, labels[label], box / sides, is_crowd)


def _length(value: Any) -> float:
    """Return a side of an image, nan if it is missing or no positive number."""
    try:
        length = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return length if 0 < length < math.inf else math.nan


def _parse_shape(shape: Any, size: tuple[float, float], labels: Labels) -> tuple[str, Corners]:
    """Return the label of a shape and the corners of its box, which may be beyond the image.

    Raises ValueError with a message for the user, also if the box covers nothing of the image.
    """
    if not isinstance(shape, dict):
        raise ValueError(f"found {reprlib.repr(shape)} (need an object with label and points)")
    name, kind = shape.get("label"), shape.get("shape_type", "polygon")
    name = name.strip() if isinstance(name, str) else name
    if not isinstance(name, str) or name not in labels:
        raise ValueError(f"found the label {reprlib.repr(name)} (known: {[*labels]})")
    if not isinstance(kind, str) or kind not in NUM_POINTS:
        known = ", ".join(NUM_POINTS)
        raise ValueError(f"found the shape_type {reprlib.repr(kind)} (read are {known})")
    try:
        points = np.array(shape.get("points"), float)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    valid = points.ndim == 2 and points.shape[1:] == (2,) and len(points) >= NUM_POINTS[kind]
    if not valid or not np.isfinite(points).all():
        corners = reprlib.repr(shape.get("points"))
        raise ValueError(f"found the points {corners} (a {kind} needs {NUM_POINTS[kind]} or more)")
    low, high = points.min(0), points.max(0)
    if kind == "circle":  # its center and a point of it
        radius = np.hypot(*(points[1] - points[0]))
        low, high = points[0] - radius, points[0] + radius
    elif kind == "mask":
        high = high + 1
    if (np.maximum(low, 0) >= np.minimum(high, size)).any():
        corners = " ".join(f"{value:.6g}" for value in (*low, *high))
        image = f"{size[0]:g}x{size[1]:g} image"
        raise ValueError(f"found a {kind} from {corners}, which covers nothing of the {image}")
    return name, (*low.tolist(), *high.tolist())
