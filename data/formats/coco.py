"""COCO json: images, categories, and annotations with a bbox in pixels (x, y, width, height)."""

import json
import math
from pathlib import Path
from typing import Any

from data.formats.scan import Box, Labels, Scan, label_table, unknown_class
from utils.errors import UserError


def read_coco(
    scan: Scan, path: Path, image_dir: Path, names: list[str] | None, labels: Labels
) -> list[str]:
    """Add the images and boxes of the json `path`, whose file names are relative to `image_dir`.

    Categories are matched to `labels` by name; if that is empty, the categories, ordered by id,
    are the classes. Returns the class names. Raises UserError if the json is invalid, or has a
    category that is not in `labels`.
    """
    content = _load(path)
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        images = {image["id"]: image for image in content["images"]}
        files = [str(image_dir / image["file_name"]) for image in images.values()]
        if not labels:
            names = [category["name"] for category in categories]
            labels = label_table(names, {})
        label_of = {c["id"]: labels[c["name"]] for c in categories if c["name"] in labels}
    except (ValueError, KeyError, TypeError) as error:
        raise _not_coco(path, error) from None
    for category in categories:
        if category["id"] not in label_of:
            raise UserError(f"{path}: {unknown_class(category['name'], labels)}")
    indices = {
        image_id: scan.add_image(file, *_stated_size(image), str(path))
        for (image_id, image), file in zip(images.items(), files, strict=True)
    }
    for number, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotation {number}"
        image_id = annotation.get("image_id")
        if not isinstance(image_id, int | str) or image_id not in indices:
            message = f"{where}: image_id {image_id!r} is not among the images; box skipped"
            scan.errors.append((len(scan.files), message))
            continue
        try:
            label, box = _parse_annotation(annotation, images[image_id], label_of)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            scan.errors.append((indices[image_id], f"{where}: {_reason(error)}; box skipped"))
            continue
        scan.add_box(indices[image_id], label, box, bool(annotation.get("iscrowd", 0)))
    return names


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the content of `path`, checked for its lists of objects and the categories' names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for key in ("images", "annotations", "categories"):
            entries = content[key]
            if not (isinstance(entries, list) and all(isinstance(e, dict) for e in entries)):
                raise ValueError(f"{key} is not a list of objects")
        if not all(isinstance(category["name"], str) for category in content["categories"]):
            raise ValueError("a category's name is not a string")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_coco(path, error) from None
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split())


def _not_coco(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: not a COCO json with images, annotations and categories: {_reason(error)}"
    )


def _stated_size(image: dict[str, Any]) -> tuple[float, float]:
    """Return width and height, nan if they are missing or no numbers: then no box is valid."""
    try:
        width, height = float(image["width"]), float(image["height"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.nan, math.nan
    return width, height


def _parse_annotation(
    annotation: dict[str, Any], image: dict[str, Any], label_of: dict[int, int | None]
) -> tuple[int | None, Box]:
    """Return label and box, clipped to the image. Raises an exception if it is invalid."""
    category_id = annotation["category_id"]
    if category_id not in label_of:
        raise ValueError(f"found category_id {category_id!r} (known: {sorted(label_of)})")
    x, y, w, h = (float(value) for value in annotation["bbox"])
    width, height = image["width"], image["height"]
    x1, y1 = max(0.0, x), max(0.0, y)
    x2, y2 = min(float(width), x + w), min(float(height), y + h)
    if not all(map(math.isfinite, (x, y, w, h))) or x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"found the bbox {annotation['bbox']}, which covers nothing of the {width}x{height} "
            "image"
        )
    return label_of[category_id], (x1 / width, y1 / height, x2 / width, y2 / height)
