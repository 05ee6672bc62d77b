"""Reads data sets: a data.yaml with the YOLO layout or COCO json behind it, into one set of arrays, whatever the format.

Everything about a split lies in a few arrays (`Annotations`), not in an object for each box, so that loader processes share it.
Faults in the data are found here, before training, and kept as sentences with their file and line.
"""

import glob
import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from utils.errors import UserError
from utils.yamlfile import read_yaml

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF: the tag, and its values that swap width and height


class CocoSource(BaseModel):
    """A COCO json and the folder its `file_name`s are in."""

    model_config = ConfigDict(extra="forbid", strict=True)
    annotations: str
    images: str = "."


Source = str | CocoSource


class DataConfig(BaseModel):
    """What a data.yaml says. Keys of other tools (`nc`, `download`, ...) are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)
    path: str = Field(".", description="folder that the other paths are relative to; itself relative to this file")
    train: Source | list[Source]
    val: Source | list[Source]
    names: dict[int, str] | list[str] | None = Field(None, description="class names; COCO json brings its own")
    make: Literal["shapes"] | None = Field(None, description="draw the built-in data set at `path` if it is not there")
    imgsz: int = Field(640, ge=32, description="--imgsz of this data set, if the command does not say; so for the next two")
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(16, ge=1)


@dataclass(frozen=True)
class Annotations:
    """One split: n pictures with N boxes in all; those of picture i are rows offsets[i] to offsets[i + 1]."""

    names: tuple[str, ...]
    files: np.ndarray  # (n,) str
    sizes: np.ndarray  # (n, 2) int32: width, height, as shown (EXIF rotation applied)
    offsets: np.ndarray  # (n + 1,) int64
    boxes: np.ndarray  # (N, 4) float32: xyxy, 0..1 of the picture's size
    labels: np.ndarray  # (N,) int64, 0-based
    crowd: np.ndarray  # (N,) bool: COCO's iscrowd, left out of training and forgiven in evaluation
    faults: tuple[str, ...]  # what was left out, one sentence each

    def __len__(self) -> int:
        return len(self.files)

    def summary(self) -> str:
        """How many pictures and boxes, and a fingerprint of the files' names and order, the sizes, boxes, labels and classes.

        Equal for the same data in another folder. The pictures' pixels are not looked at.
        """
        text = "\n".join([*self.names, *(Path(file).name for file in self.files)])
        found = hashlib.blake2b(text.encode(), digest_size=6)
        for array in (self.sizes, self.offsets, self.boxes, self.labels, self.crowd):
            found.update(np.ascontiguousarray(array))
        return f"{len(self)} pictures with {len(self.labels)} boxes ({found.hexdigest()})"

    def report(self, split: str, most: int = 20) -> list[str]:
        """The first faults and how many there are, as sentences that begin with `split`; nothing where there are none."""
        count = [f"{len(self.faults)} faults in all; what they name is left out"] if self.faults else []
        return [f"{split}: {sentence}" for sentence in [*self.faults[:most], *count]]


def read_data_config(path: Path) -> DataConfig:
    """The data.yaml at `path`, its `path` made absolute, its `names` a list, its `train` and `val` lists of sources.

    Raises UserError when it cannot be read or is wrong.
    """
    config = read_yaml(path, DataConfig)
    names = config.names
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{path}: names: found the ids {sorted(names)}, need 0 to {len(names) - 1} without a gap")
        names = [names[i] for i in range(len(names))]
    if names is not None and not names:
        raise UserError(f"{path}: names: found none, need at least one class")
    sources = {split: _sources(getattr(config, split)) for split in ("train", "val")}
    if names is None and any(isinstance(source, str) for source in (*sources["train"], *sources["val"])):
        raise UserError(f"{path}: key 'names' is missing; only COCO json brings its own class names")
    root = (path.parent / config.path).resolve()
    return config.model_copy(update={"path": str(root), "names": names, **sources})


def _sources(value: Source | list[Source]) -> list[Source]:
    """A list of sources, those that name a .json file as COCO's."""
    values = value if isinstance(value, list) else [value]
    return [CocoSource(annotations=v) if isinstance(v, str) and v.endswith(".json") else v for v in values]


def read_splits(config: DataConfig, path: str) -> tuple[Annotations, Annotations]:
    """`train` and `val` of the data set that `read_data_config` read from the file `path`.

    Raises UserError as `read_split` does, and when their classes are not the same.
    """
    train, val = read_split(config, "train"), read_split(config, "val")
    if train.names != val.names:
        raise UserError(f"{path}: train has the classes {list(train.names)}, val has {list(val.names)}")
    return train, val


def read_split(config: DataConfig, split: str) -> Annotations:
    """The split `train` or `val` of a data set that `read_data_config` read, as arrays.

    Raises UserError when a source is missing, or no picture or no box is left.
    """
    root = Path(config.path)
    found: list[_Picture] = []
    names = config.names
    for source in getattr(config, split):
        if isinstance(source, CocoSource):
            pictures, names = _read_coco(root / source.annotations, root / source.images, names)
        else:
            pictures = _read_yolo(_list_images(root, source, split), len(names))
        found += pictures
    annotations = _gather(found, tuple(names or ()))
    if not len(annotations):
        raise UserError(_none_left(f"{split}: no picture found in {root}", annotations.faults))
    if not len(annotations.boxes):
        raise UserError(_none_left(f"{split}: no box found for the {len(annotations)} pictures in {root}", annotations.faults))
    return annotations


def _none_left(message: str, faults: Sequence[str]) -> str:
    return f"{message}; the first of {len(faults)} faults: {faults[0]}" if faults else message


@dataclass
class _Picture:
    """What was read of one picture; `size` stays None when it cannot be used."""

    file: str
    boxes: list[tuple[float, float, float, float]]  # xyxy, 0..1
    labels: list[int]
    crowd: list[bool]
    faults: list[str]
    size: tuple[int, int] | None = None


def _gather(pictures: list[_Picture], names: tuple[str, ...]) -> Annotations:
    """Look at every picture's header, leave out what cannot be used, and lay the rest into arrays."""
    with ThreadPoolExecutor(8) as pool:
        for picture, size in zip(pictures, pool.map(_image_size, (p.file for p in pictures)), strict=True):
            if isinstance(size, str):
                picture.faults.append(size)
            else:
                picture.size = size
    used = [p for p in pictures if p.size is not None]
    counts = [len(p.labels) for p in used]
    return Annotations(
        names=names,
        files=np.array([p.file for p in used], dtype=str),
        sizes=np.array([p.size for p in used], dtype=np.int32).reshape(-1, 2),
        offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        boxes=np.array([box for p in used for box in p.boxes], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for p in used for label in p.labels], dtype=np.int64),
        crowd=np.array([crowd for p in used for crowd in p.crowd], dtype=bool),
        faults=tuple(fault for p in pictures for fault in p.faults),
    )


def _image_size(file: str) -> tuple[int, int] | str:
    """Width and height as shown, read from the header, or a sentence about what is wrong with the file."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            # A PNG's EXIF may lie behind its pixels; asking for it would decode them.
            turned = (image.format == "JPEG" or "exif" in image.info) and image.getexif().get(ORIENTATION) in QUARTER_TURNS
            if image.format == "JPEG":
                with Path(file).open("rb") as raw:
                    raw.seek(-2, 2)
                    if raw.read() != b"\xff\xd9" and b"\xff\xd9" not in Path(file).read_bytes()[-4096:]:
                        return f"{file}: the JPEG is cut off; left out"
    except UnidentifiedImageError:
        return f"{file}: is no picture that can be read; left out"
    except Image.DecompressionBombError:
        return f"{file}: is too large to decode; left out"
    except (OSError, SyntaxError, ValueError) as error:
        return f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}; left out"
    return (height, width) if turned else (width, height)


# --- YOLO layout ------------------------------------------------------------------------------------------------------------


def _list_images(root: Path, source: str, split: str) -> list[str]:
    """Picture files of a folder (searched deeply), a text file with a path a line, or a glob, sorted within each."""
    path = root / source
    if path.is_dir():
        return sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if path.is_file() and path.suffix == ".txt":
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        return [str(path.parent / line) for line in lines if line]
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return [str(path)]
    if any(mark in source for mark in "*?["):
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        return sorted(p for p in found if Path(p).suffix.lower() in IMAGE_SUFFIXES)
    raise UserError(f"{split}: {path}: is not there; allowed are a folder, a .txt list, a glob, or a COCO .json")


def label_file(image: str) -> Path:
    """Where the YOLO layout has a picture's labels: its last folder named `images` read as `labels`, the suffix .txt."""
    parts = list(Path(image).parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_yolo(images: list[str], num_classes: int) -> list[_Picture]:
    pictures = []
    for image in images:
        picture = _Picture(image, [], [], [], [])
        path = label_file(image)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""  # a picture without objects needs no file
        except (OSError, UnicodeDecodeError) as error:
            picture.faults.append(f"{path}: cannot be read: {error}; left out")
            text = ""
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                label, box = _parse_yolo_line(line, num_classes)
            except ValueError as error:
                picture.faults.append(f"{path}: line {number}: {error}; the box is left out")
            else:
                picture.labels.append(label)
                picture.boxes.append(box)
                picture.crowd.append(False)
        pictures.append(picture)
    return pictures


def _parse_yolo_line(line: str, num_classes: int) -> tuple[int, tuple[float, float, float, float]]:
    """Class and xyxy box, 0..1, of "class cx cy w h"; the part beyond the picture's edge is cut off."""
    fields = line.split()
    if len(fields) != 5:
        raise ValueError(f"found {len(fields)} fields, need 5: class cx cy w h")
    try:
        label, cx, cy, w, h = (float(field) for field in fields)
    except ValueError:
        raise ValueError(f"found {line.strip()!r}, need five numbers") from None
    if not (label.is_integer() and 0 <= label < num_classes):
        raise ValueError(f"found class {fields[0]}, allowed are 0 to {num_classes - 1}")
    if not all(0 <= value <= 1 for value in (cx, cy, w, h)) or w == 0 or h == 0:
        raise ValueError(f"found the box {' '.join(fields[1:])}, allowed is 0..1, width and height above 0")
    return int(label), (max(0.0, cx - w / 2), max(0.0, cy - h / 2), min(1.0, cx + w / 2), min(1.0, cy + h / 2))


# --- COCO json --------------------------------------------------------------------------------------------------------------


def _read_coco(path: Path, folder: Path, names: list[str] | None) -> tuple[list[_Picture], list[str]]:
    """Pictures and class names of a COCO json; with `names` given, its categories are matched to them by name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda c: c["id"])
        images = {image["id"]: image for image in content["images"]}
        annotations = content["annotations"]
        names = names or [category["name"] for category in categories]
        label_of = {c["id"]: names.index(c["name"]) for c in categories if c["name"] in names}
        pictures = {key: _Picture(str(folder / image["file_name"]), [], [], [], []) for key, image in images.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no COCO json with images, annotations and categories: {error!r}") from None
    unknown = [c["name"] for c in categories if c["id"] not in label_of]
    if unknown:
        raise UserError(f"{path}: found the category {unknown[0]!r}, which is not among the names {names}")
    orphans = []
    for number, annotation in enumerate(annotations):
        picture = pictures.get(annotation.get("image_id"))
        if picture is None:
            orphans.append(f"{path}: annotation {number}: its image_id {annotation.get('image_id')!r} is not among the images")
            continue
        try:
            label, box = _coco_box(annotation, images[annotation["image_id"]], label_of)
        except (ValueError, KeyError, TypeError) as error:
            picture.faults.append(f"{path}: annotation {number}: {error}; the box is left out")
            continue
        picture.labels.append(label)
        picture.boxes.append(box)
        picture.crowd.append(bool(annotation.get("iscrowd", 0)))
    if orphans and pictures:
        next(iter(pictures.values())).faults += orphans
    return list(pictures.values()), names


def _coco_box(
    annotation: dict[str, Any], image: dict[str, Any], label_of: dict[int, int]
) -> tuple[int, tuple[float, float, float, float]]:
    if annotation["category_id"] not in label_of:
        raise ValueError(f"found category_id {annotation['category_id']!r}, known are {sorted(label_of)}")
    x, y, w, h = (float(value) for value in annotation["bbox"])
    width, height = image["width"], image["height"]
    x1, y1, x2, y2 = max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)
    if not all(map(math.isfinite, (x, y, w, h))) or x2 <= x1 or y2 <= y1:
        raise ValueError(f"found the bbox {annotation['bbox']}, which covers nothing of the {width}x{height} picture")
    return label_of[annotation["category_id"]], (x1 / width, y1 / height, x2 / width, y2 / height)
