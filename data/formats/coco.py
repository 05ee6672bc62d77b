"""COCO json: images, categories, and annotations with a bbox in pixels (x, y, width, height)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.formats.coco_annotations import CocoAnnotations
from data.formats.coco_categories import CocoCategories
from data.formats.coco_ids import Id
from data.formats.coco_images import CocoImages
from data.formats.json_kinds import COCO_JSON, json_kind
from data.formats.json_lists import read_json_lists
from data.formats.scan import Labels, Scan, label_table, unknown_class
from utils.errors import UserError


def read_coco(
    scan: Scan, path: Path, directories: Sequence[Path], names: list[str] | None, labels: Labels
) -> list[str]:
    """Add the images and boxes of the json `path`.

    Its file names are relative to the one of `directories` that has most of them. Categories are
    matched to `labels` by name; if that is empty, the categories, ordered by id, are the classes.
    Returns the class names. Raises UserError if the json is invalid, if no image is found, or if
    boxes have a category that is not in `labels`.
    """
    images, categories = CocoImages(path), CocoCategories()
    annotations = CocoAnnotations(path)
    add_entry = {
        "images": images.add,
        "annotations": annotations.add,
        "categories": categories.add,
    }
    for key, entry in _read_lists(path, [*add_entry]):
        try:
            add_entry[key](entry)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
    if annotations.needs_segmentations:
        entries = _read_lists(path, ["annotations"], polygons=True)
        annotations.fill_boxes(entry for _, entry in entries)
    used = annotations.used_categories(categories.names)
    try:
        class_names = categories.class_names(used)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not labels:
        names = class_names
        labels = label_table(names, {})
    label_of = {}
    for category_id, name in categories.names.items():
        if name in labels:
            label_of[category_id] = labels[name]
        elif category_id in used:
            raise UserError(f"{path}: {unknown_class(name, labels)}")
    images.add_to(scan, directories)
    annotations.add_to(scan, images, label_of)
    for notes in (categories.notes, images.notes, annotations.notes):
        scan.notes.update(
            {f"{path}: {sentence}": count for sentence, count in notes.items() if count}
        )
    return names


def read_coco_ids(path: Path, directories: Sequence[Path]) -> tuple[dict[str, Id], dict[str, Id]]:
    """Return the ids of the images in the json `path` by file, and of its categories by name.

    Of several categories with one name it is the id of one with boxes, if there is one. Raises
    UserError as `read_coco` does.
    """
    images, categories, used = CocoImages(path), CocoCategories(), set()
    add_entry = {"images": images.add, "categories": categories.add}
    for key, entry in _read_lists(path, [*add_entry]):
        add_entry[key](entry)
    if categories.have_same_names:
        annotations = CocoAnnotations(path)
        for _, entry in _read_lists(path, ["annotations"]):
            annotations.add(entry)
        used = annotations.used_categories(categories.names)
    return images.ids_by_file(directories), categories.ids_by_name(used)


def _read_lists(
    path: Path, keys: list[str], polygons: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of the lists `keys`. Raises UserError if the json is invalid."""
    try:
        yield from read_json_lists(path, keys, polygons)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, RecursionError) as error:
        raise _not_coco(path, error) from None


def _not_coco(path: Path, error: Exception) -> UserError:
    reason = f": {' '.join(str(error).split())}"
    if isinstance(error, KeyError):
        reason += " is missing"
        if error.args == ("annotations",):
            reason += " (a test set's list of images has nothing to train on or to compare with)"
    kind = json_kind(path)
    if kind not in (None, COCO_JSON):
        reason = f", but {kind}"
    return UserError(f"{path}: not a COCO json with images, annotations and categories{reason}")
