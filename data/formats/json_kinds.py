"""Names the json files of annotation tools that are not COCO's, for messages."""

from pathlib import Path
from typing import Any

from data.formats.json_lists import JsonReader, open_json

COCO_JSON = "a COCO json"
# The keys of an object, and what it is.
OBJECTS = [
    ({"images", "annotations", "categories"}, COCO_JSON),
    ({"shapes", "imagePath"}, "labelme's json of one image"),
    ({"_via_img_metadata"}, "a project of the VGG Image Annotator"),
    ({"type", "features"}, "GeoJSON"),
    ({"asset", "regions"}, "VoTT's json of one image"),
    ({"assets", "tags"}, "a project of VoTT"),
    ({"items", "categories"}, "Datumaro's own json"),
    ({"size", "objects"}, "Supervisely's json of one image"),
    ({"imgHeight", "imgWidth", "objects"}, "Cityscapes' json of one image"),
]
# The keys of the first entry of a list, and what the list is.
LISTS = [
    ({"image_id", "category_id"}, "a list of detections (COCO results), not of annotations"),
    ({"image", "annotations"}, "CreateML's json"),
    ({"data", "annotations"}, "Label Studio's own json (export as COCO or YOLO)"),
    ({"data", "completions"}, "Label Studio's own json (export as COCO or YOLO)"),
    ({"name", "labels"}, "BDD100K's json"),
    ({"External ID"}, "Labelbox' json"),
    ({"data_row"}, "Labelbox' json"),
]
STARTS = [
    (b"version https://git-lfs", "a pointer of Git LFS (fetch the file with `git lfs pull`)"),
    (b"<", "HTML or XML"),
    (b"\x1f\x8b", "compressed with gzip (unpack it)"),
    (b"PK", "a zip archive (unpack it)"),
]


def json_kind(path: Path) -> str | None:
    """Return what the file `path`, which was to be a COCO json, is, None if that is not known."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip()
    except OSError:
        return None
    if not start:
        return "empty"
    for prefix, kind in STARTS:
        if start.startswith(prefix):
            return kind
    try:
        with open_json(path) as file:
            return _kind(JsonReader(file))
    except (OSError, ValueError, RecursionError):
        return None


def _kind(reader: JsonReader) -> str | None:
    if reader.peek() == "[":
        first: Any = next(reader.entries(), None)
        keys = set(first) if isinstance(first, dict) else set()
        return _find(keys, LISTS) or "a list, not an object"
    keys, values = set(), 0
    for key in reader.object_keys():
        keys.add(key)
        value = reader.value()
        values += isinstance(value, dict) and {"filename", "regions"} <= value.keys()
        if values:
            return "annotations of the VGG Image Annotator"
    return _find(keys, OBJECTS)


def _find(keys: set[str], kinds: list[tuple[set[str], str]]) -> str | None:
    return next((kind for required, kind in kinds if required <= keys), None)
