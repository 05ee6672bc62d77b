"""Reads what a data.yaml names, in the YOLO layout, as COCO json or Pascal VOC xml, into one set of arrays.

Everything about a split lies in a few arrays (`Annotations`), not in an object for each box, so that loader processes share it.
Faults in the data are found here, before training, and kept as sentences with their file and line.
"""

import glob
import hashlib
import json
import math
import os
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from data.cache import Arrays, cached
from data.config import SPLITS, AnnotatedSource, DataConfig
from data.images import image_size
from utils.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
Classes = dict[
    str, int | None
]  # what a source may call a class: its label here, None for one that is left out


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
    errors: tuple[str, ...]  # what was left out, one sentence each

    def __len__(self) -> int:
        return len(self.files)

    def summary(self) -> str:
        """How many pictures and boxes, and a fingerprint of the files' names and order, the sizes, boxes, labels and classes.

        Equal for the same data in another folder. The pictures' pixels are not looked at.
        """
        text = "\n".join([*self.names, *map(os.path.basename, self.files)])
        found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6)
        for numbers in (self.sizes, self.offsets, self.boxes, self.labels, self.crowd):
            found.update(np.ascontiguousarray(numbers))
        return f"{len(self)} pictures with {len(self.labels)} boxes ({found.hexdigest()})"

    def image_names(self, pictures: Sequence[int]) -> str:
        """The names of some of the pictures, by their places, without folders."""
        return ", ".join(os.path.basename(self.files[i]) for i in pictures)  # noqa: PTH119

    def report(self, split: str, most: int = 20) -> list[str]:
        """The first faults and how many there are, as sentences that begin with `split`; nothing where there are none."""
        count = (
            [f"{len(self.errors)} faults in all; what they name is left out"] if self.errors else []
        )
        return [f"{split}: {sentence}" for sentence in [*self.errors[:most], *count]]


def read_train_val(config: DataConfig, path: str) -> tuple[Annotations, Annotations]:
    """`train` and `val` of the data set that `read_data_config` read from the file `path`.

    Raises UserError as `read_split` does, and when their classes are not the same.
    """
    train, val = read_split(config, "train"), read_split(config, "val")
    if train.names != val.names:
        raise UserError(
            f"{path}: train has the classes {list(train.names)}, val has {list(val.names)}"
        )
    return train, val


def images_in_both_splits(train: Annotations, val: Annotations) -> list[str]:
    """A sentence if pictures of `val` are in `train` too, by their files' names; links are not followed."""
    count = len({*map(os.path.normpath, train.files)} & {*map(os.path.normpath, val.files)})
    what = f"{count} of its {len(val)} pictures are in train, too; metrics say little of pictures that a model has learned"
    return [f"val: {what}"] if count else []


def read_all_splits(config: DataConfig) -> dict[str, Annotations]:
    """`train`, `val` and, where the data set has one, `test`. Raises UserError as `read_split` does."""
    return {
        split: read_split(config, split) for split in SPLITS if getattr(config, split) is not None
    }


def read_split(config: DataConfig, split: str) -> Annotations:
    """The split `train`, `val` or `test` of a data set that `read_data_config` read, as arrays.

    A scan that takes long is kept in the data set's folder (`data/cache.py`) and taken from there as long as every file it
    looked at is as it was. Raises UserError when a source is missing, or no picture or no box is left.
    """
    root = Path(config.path)
    sources = getattr(config, split)
    if sources is None:
        raise UserError(f"{split}: the data file has no key {split!r}")
    folders = [
        s if isinstance(s, str) else s.images
        for s in sources
        if isinstance(s, str) or not s.annotations
    ]
    listed = {folder: list_images(root / folder) for folder in folders}
    if missing := [s for s, files in listed.items() if files is None]:
        raise UserError(
            f"{split}: {root / missing[0]}: is not there; allowed are a folder, a .txt list, a glob, or a COCO .json"
        )

    def scan() -> tuple[Arrays, list[str]]:
        found, names, inputs = _Scan(), config.names, []
        classes = _classes(names or [], config.remap)
        for source in sources:
            count = len(found.files)
            if isinstance(source, AnnotatedSource) and source.coco:
                path = root / source.annotations
                names = _read_coco(found, path, root / source.images, names, classes)
                classes = classes or _classes(
                    names, {}
                )  # if none are given, the first json's are for all
                inputs += [str(path), *found.files[count:]]
            elif isinstance(source, AnnotatedSource) and source.annotations:
                inputs += [*_read_voc(found, root, source, classes), *found.files[count:]]
            else:
                folder, own = (
                    (source, names)
                    if isinstance(source, str)
                    else (source.images, source.names or names)
                )
                if unknown := [name for name in own if name not in classes]:
                    raise UserError(f"{split}: {root / folder}: {_unknown(unknown[0], classes)}")
                _read_yolo(found, listed[folder], [classes[name] for name in own])
                inputs += [*listed[folder], *map(label_file, listed[folder])]
                if (root / folder).is_dir():
                    inputs += _labels_alone(found, listed[folder])
        return found.finish(names or ()), inputs

    name = f"{split}-{hashlib.blake2b(repr(sources).encode(), digest_size=4).hexdigest()}.cache.npz"
    arrays = cached(root / name, repr((config.names, config.remap, sources, listed)), scan)
    annotations = Annotations(
        **arrays | {key: tuple(arrays[key].tolist()) for key in ("names", "errors")}
    )
    if not len(annotations):
        raise UserError(_none_left(f"{split}: no picture found in {root}", annotations.errors))
    if not len(annotations.boxes):
        raise UserError(
            _none_left(
                f"{split}: no box found for the {len(annotations)} pictures in {root}",
                annotations.errors,
            )
        )
    return annotations


def _classes(names: Sequence[str], remap: dict[str, str | None]) -> Classes:
    return {name: k for k, name in enumerate(names)} | {
        old: new and names.index(new) for old, new in remap.items()
    }


def _unknown(name: str, classes: Classes) -> str:
    return f"found the class {name!r}, known are {[*classes]}; `remap` gives another name to a class, or null to leave it out"


def original_ids(
    config: DataConfig, split: str, annotations: Annotations
) -> tuple[list[int | str], list[int]]:
    """The ids of a split's pictures and of its classes, for tools that compare by them.

    Where a picture comes from a COCO json, those that it has there; else a picture's is its file's name without the suffix, as a
    number if it is one, and a class's is its place among the names.
    """
    images: dict[str, int | str] = {}
    categories = {name: label for label, name in enumerate(annotations.names)}
    for source in getattr(config, split):
        if isinstance(source, AnnotatedSource) and source.coco:
            content = json.loads(
                (Path(config.path) / source.annotations).read_text(encoding="utf-8")
            )
            folder = Path(config.path) / source.images
            images |= {str(folder / image["file_name"]): image["id"] for image in content["images"]}
            own = {category["name"]: category["id"] for category in content["categories"]}
            categories |= {name: key for name, key in own.items() if name in categories}
    stems = [Path(file).stem for file in annotations.files]
    own = [int(stem) if stem.isdecimal() else stem for stem in stems]
    found = [
        images.get(file, name) for file, name in zip(annotations.files.tolist(), own, strict=True)
    ]
    return found, [categories[name] for name in annotations.names]


def _none_left(message: str, faults: Sequence[str]) -> str:
    return f"{message}; the first of {len(faults)} faults: {faults[0]}" if faults else message


class _Scan:
    """What is being read of a split: no object stays for a box, only numbers in arrays."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.owners = array("q")  # of each box, the place of its picture in `files`
        self.boxes = array("f")  # four numbers each: xyxy, 0..1
        self.labels = array("q")
        self.crowd = array("b")
        self.errors: list[tuple[int, str]] = []  # place of the picture, sentence

    def add(self, owner: int, label: int | None, box: Iterable[float], crowd: bool = False) -> None:
        """Take in a box of picture `owner`; nothing if its label is None."""
        if label is None:
            return
        self.owners.append(owner)
        self.labels.append(label)
        self.boxes.extend(box)
        self.crowd.append(crowd)

    def finish(self, names: Sequence[str]) -> Arrays:
        """The fields of `Annotations`: looks at every picture's header, leaves out what cannot be used, and brings the boxes
        into the pictures' order."""
        sizes = np.zeros((len(self.files), 2), np.int32)
        with ThreadPoolExecutor(
            8
        ) as pool:  # where files come over a network, most of this is waiting
            for i, size in enumerate(pool.map(image_size, self.files)):
                if isinstance(size, str):
                    self.errors.append((i, size))
                else:
                    sizes[i] = size
        used = sizes[:, 0] > 0
        owners = np.frombuffer(self.owners, np.int64)
        order = owners.argsort(kind="stable")
        order = order[used[owners[order]]]
        counts = np.bincount(owners[order], minlength=len(used))[used]
        return {
            "names": np.array(names, dtype=str),
            "files": np.array(self.files, dtype=str)[used],
            "sizes": sizes[used],
            "offsets": np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
            "boxes": np.frombuffer(self.boxes, np.float32).reshape(-1, 4)[order],
            "labels": np.frombuffer(self.labels, np.int64)[order],
            "crowd": np.frombuffer(self.crowd, np.int8)[order].astype(bool),
            "errors": np.array(
                [sentence for _, sentence in sorted(self.errors, key=lambda fault: fault[0])],
                dtype=str,
            ),
        }


# --- YOLO layout ------------------------------------------------------------------------------------------------------------


def list_images(path: Path) -> list[str] | None:
    """Picture files of a folder (searched deeply), a text file with a path a line, or a glob, sorted within each, or the one that
    `path` is; None when it is none of these."""
    if path.is_dir():
        return sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if _is_image(name)
        )
    if path.is_file() and path.suffix == ".txt":
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        return [str(path.parent / line) for line in lines if line]
    if path.is_file() and _is_image(path.name):
        return [str(path)]
    if any(mark in str(path) for mark in "*?["):
        return sorted(filter(_is_image, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return None


def unique_stem(file: str, taken: set[str]) -> str:
    """The name of `file` without folder and suffix, with a number at its end if it is in `taken`, which it joins."""
    stem = own = Path(file).stem
    number = 1
    while own in taken:
        number += 1
        own = f"{stem}_{number}"
    taken.add(own)
    return own


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a Path for each of 100,000 names takes a second


def label_file(image: str) -> str:
    """Where the YOLO layout has a picture's labels: its last folder named `images` read as `labels`, the suffix .txt."""
    folder, _, name = image.rpartition(os.sep)
    before, images, after = f"{os.sep}{folder}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    if images:
        folder = f"{before}{os.sep}labels{os.sep}{after}"[1:].rstrip(os.sep)
    return f"{folder}{os.sep}{os.path.splitext(name)[0]}.txt"  # noqa: PTH122


def _read_yolo(scan: _Scan, images: list[str], labels: list[int | None]) -> None:
    """Add pictures and what their label files say of them; class k of theirs is labels[k], None for one that is left out."""
    for owner, image in enumerate(images, len(scan.files)):
        scan.files.append(image)
        path = label_file(image)
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123 - quicker than by a Path, 100,000 times
                lines = file.read().splitlines()
        except FileNotFoundError:
            continue  # a picture without objects needs no file
        except (OSError, UnicodeDecodeError) as error:
            scan.errors.append((owner, f"{path}: cannot be read: {error}; left out"))
            continue
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                number_of_class, box = _parse_yolo_line(line, len(labels))
            except ValueError as error:
                scan.errors.append((owner, f"{path}: line {number}: {error}; the box is left out"))
            else:
                scan.add(owner, labels[number_of_class], box)


def _labels_alone(scan: _Scan, images: list[str]) -> list[str]:
    """Say which label files have no picture among `images`, all of their folders; the folders of labels that were looked at.

    Where labels lie beside their pictures, a text may be anything.
    """
    expected = set(map(label_file, images))
    folders = sorted(
        {path.rpartition(os.sep)[0] for path in expected}
        - {image.rpartition(os.sep)[0] for image in images}
    )
    for folder in folders:
        for name in sorted(os.listdir(folder) if os.path.isdir(folder) else ()):  # noqa: PTH112, PTH208
            path = f"{folder}{os.sep}{name}"
            if name.endswith(".txt") and name != "classes.txt" and path not in expected:
                scan.errors.append(
                    (len(scan.files), f"{path}: there is no picture for these labels; left out")
                )
    return folders


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
        raise ValueError(
            f"found the box {' '.join(fields[1:])}, allowed is 0..1, width and height above 0"
        )
    return int(label), (
        max(0.0, cx - w / 2),
        max(0.0, cy - h / 2),
        min(1.0, cx + w / 2),
        min(1.0, cy + h / 2),
    )


# --- COCO json --------------------------------------------------------------------------------------------------------------


def _read_coco(
    scan: _Scan, path: Path, folder: Path, names: list[str] | None, classes: Classes
) -> list[str]:
    """Add pictures and boxes of a COCO json; the class names. With `names` given, categories are matched to `classes` by name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for key in ("images", "annotations", "categories"):
            if not (
                isinstance(content[key], list)
                and all(isinstance(entry, dict) for entry in content[key])
            ):
                raise ValueError(f"{key} is no list of objects")
        if not all(isinstance(category["name"], str) for category in content["categories"]):
            raise ValueError("a category's name is no text")
        categories = sorted(content["categories"], key=lambda c: c["id"])
        images = {image["id"]: image for image in content["images"]}
        annotations = content["annotations"]
        if not classes:
            names = [category["name"] for category in categories]
            classes = _classes(names, {})
        label_of = {c["id"]: classes[c["name"]] for c in categories if c["name"] in classes}
        owners = {key: owner for owner, key in enumerate(images, len(scan.files))}
        files = [str(folder / image["file_name"]) for image in images.values()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = (
            f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        )
        raise UserError(
            f"{path}: is no COCO json with images, annotations and categories: {what}"
        ) from None
    unknown = [c["name"] for c in categories if c["id"] not in label_of]
    if unknown:
        raise UserError(f"{path}: {_unknown(unknown[0], classes)}")
    scan.files += files
    for number, annotation in enumerate(annotations):
        key = annotation.get("image_id")
        if not isinstance(key, int | str) or key not in owners:
            sentence = f"{path}: annotation {number}: its image_id {key!r} is not among the images"
            scan.errors.append((len(scan.files), sentence))
            continue
        try:
            label, box = _coco_box(annotation, images[key], label_of)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            scan.errors.append(
                (owners[key], f"{path}: annotation {number}: {what}; the box is left out")
            )
            continue
        scan.add(owners[key], label, box, bool(annotation.get("iscrowd", 0)))
    return names


def _coco_box(
    annotation: dict[str, Any], image: dict[str, Any], label_of: dict[int, int | None]
) -> tuple[int | None, tuple[float, float, float, float]]:
    if annotation["category_id"] not in label_of:
        raise ValueError(
            f"found category_id {annotation['category_id']!r}, known are {sorted(label_of)}"
        )
    x, y, w, h = (float(value) for value in annotation["bbox"])
    width, height = image["width"], image["height"]
    x1, y1, x2, y2 = max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)
    if not all(map(math.isfinite, (x, y, w, h))) or x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"found the bbox {annotation['bbox']}, which covers nothing of the {width}x{height} picture"
        )
    return label_of[annotation["category_id"]], (x1 / width, y1 / height, x2 / width, y2 / height)


# --- Pascal VOC xml ---------------------------------------------------------------------------------------------------------


def _read_voc(scan: _Scan, root: Path, source: AnnotatedSource, classes: Classes) -> list[str]:
    """Add pictures and boxes of a folder of xml files, or of those that a list names; the files that were looked at."""
    folder, inputs = root / source.annotations, []
    try:
        if source.list is None:
            stems = sorted(path.stem for path in folder.iterdir() if path.suffix == ".xml")
        else:
            inputs.append(str(root / source.list))
            lines = (root / source.list).read_text(encoding="utf-8").splitlines()
            stems = [
                line.split()[0] for line in lines if line.strip()
            ]  # VOC's lists of a class have a second column
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{getattr(error, 'filename', None) or root / source.list}: cannot be read: {error}"
        ) from None
    inputs.append(str(folder))  # whose time changes with what is in it
    for stem in stems:
        path, owner = folder / f"{stem}.xml", len(scan.files)
        inputs.append(str(path))
        try:
            tree = ElementTree.parse(path).getroot()
            width, height = (
                float(tree.findtext(f"size/{side}", "")) for side in ("width", "height")
            )
            if not (0 < width < math.inf and 0 < height < math.inf):
                raise ValueError(f"found the size {width:g} x {height:g}")
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
            scan.errors.append(
                (owner, f"{path}: is no VOC xml with the picture's size: {error}; left out")
            )
            continue
        scan.files.append(str(root / source.images / (tree.findtext("filename") or f"{stem}.jpg")))
        for number, thing in enumerate(tree.iter("object")):
            try:
                label, box = _voc_box(thing, width, height, classes)
            except ValueError as error:
                scan.errors.append(
                    (owner, f"{path}: object {number}: {error}; the box is left out")
                )
            else:
                scan.add(owner, label, box)
    return inputs


def _voc_box(
    thing: ElementTree.Element, width: float, height: float, classes: Classes
) -> tuple[int | None, tuple[float, float, float, float]]:
    """Class and xyxy box, 0..1. VOC counts pixels from 1 and the last one belongs to the box."""
    name = (thing.findtext("name") or "").strip()
    if name not in classes:
        raise ValueError(f"found the name {name!r}, known are {[*classes]}")
    texts = [
        (thing.findtext(f"bndbox/{key}") or "").strip() for key in ("xmin", "ymin", "xmax", "ymax")
    ]
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError:
        raise ValueError(f"found the bndbox {' '.join(texts)!r}, need four numbers") from None
    finite = all(map(math.isfinite, (x1, y1, x2, y2)))
    x1, y1, x2, y2 = max(0.0, x1 - 1), max(0.0, y1 - 1), min(width, x2), min(height, y2)
    if not finite or x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"found the bndbox {' '.join(texts)!r}, which covers nothing of the {width:g}x{height:g} picture"
        )
    return classes[name], (x1 / width, y1 / height, x2 / width, y2 / height)
