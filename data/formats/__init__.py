"""Reads the splits of a dataset: YOLO layout, COCO, Pascal VOC or labelme, into the same arrays.

A new format is a module next to these that fills a `Scan`, and a branch in `_scan_split`.
Invalid images and annotations are found here, before training; each is skipped with a message
that names the file and the line.
"""

import hashlib
import os
from pathlib import Path

from data.cache import Arrays, cached
from data.config import SPLITS, AnnotatedSource, DataConfig, Source
from data.formats.coco import read_coco, read_coco_ids
from data.formats.labelme import is_labelme, read_labelme
from data.formats.scan import Annotations, Scan, label_table, unknown_class
from data.formats.voc import read_voc
from data.formats.yolo import find_orphan_labels, label_file, read_yolo
from data.images import list_images
from utils.errors import UserError

__all__ = [
    "Annotations",
    "images_in_both_splits",
    "original_ids",
    "read_all_splits",
    "read_split",
    "read_train_val",
]


# Of a cache; to be raised when the fields of Annotations or what a reader takes from a file change.
CACHE_FORMAT = 5


def read_train_val(config: DataConfig, path: str) -> tuple[Annotations, Annotations]:
    """Read `train` and `val` of the dataset whose `config` was read from the file `path`.

    Raises UserError as `read_split` does, and if their classes differ.
    """
    train, val = read_split(config, "train"), read_split(config, "val")
    if train.class_names != val.class_names:
        raise UserError(
            f"{path}: train has the classes {list(train.class_names)}, "
            f"val has {list(val.class_names)} (they must be the same)"
        )
    return train, val


def images_in_both_splits(train: Annotations, val: Annotations) -> list[str]:
    """Return a warning if images of `val` are in `train`, too, as a list of at most one message.

    Files are compared by their paths; links are not followed.
    """
    count = len({*map(os.path.normpath, train.files)} & {*map(os.path.normpath, val.files)})
    if not count:
        return []
    verb = "is" if count == 1 else "are"
    return [
        f"val: {count} of {len(val)} images {verb} in train, too; metrics on images that the model "
        "was trained on say little"
    ]


def read_all_splits(config: DataConfig) -> dict[str, Annotations]:
    """Read `train`, `val` and, if the dataset has one, `test`. Raises UserError as `read_split`."""
    return {
        split: read_split(config, split) for split in SPLITS if getattr(config, split) is not None
    }


def read_split(config: DataConfig, split: str) -> Annotations:
    """Read the split `train`, `val` or `test` of the dataset `config` from `read_data_config`.

    The result of a slow scan is cached in the dataset's directory (see `data.cache`). Raises
    UserError if a source is missing or invalid, no image or no box is left, or all boxes of `train`
    are crowds.
    """
    root = Path(config.path)
    sources = getattr(config, split)
    if sources is None:
        raise UserError(f"{split}: the data.yaml has no key {split!r}")
    images = _list_yolo_images(split, root, sources)
    source_hash = hashlib.blake2b(repr(sources).encode(), digest_size=4).hexdigest()
    arrays = cached(
        root / f"{split}-{source_hash}.cache.npz",
        repr((CACHE_FORMAT, config.names, config.remap, sources, _have_images(sources), images)),
        lambda: _scan_split(config, split, images),
    )
    annotations = Annotations.from_arrays(arrays)
    if not len(annotations):
        raise UserError(f"{split}: no images found in {root}{_first_error(annotations)}")
    if not len(annotations.boxes):
        count = f"{len(annotations)} image{'s' if len(annotations) > 1 else ''}"
        raise UserError(
            f"{split}: no boxes found for the {count} in {root}{_first_error(annotations)}"
        )
    if split == "train" and annotations.crowd.all():
        raise UserError(
            f"{split}: all boxes in {root} are crowds ({len(annotations.boxes)} of `iscrowd`, "
            "`ignore` or `difficult`), which are not trained on (some tools write `iscrowd: 1` for "
            "every mask: need 0 for single objects)"
        )
    return annotations


def _have_images(sources: list[Source]) -> list[bool]:
    return [isinstance(source, AnnotatedSource) and source.has_images for source in sources]


def _first_error(annotations: Annotations) -> str:
    errors = annotations.errors
    if not errors:
        return ""
    return f" (first of {len(errors)} error{'s' if len(errors) > 1 else ''}: {errors[0]})"


def _list_yolo_images(split: str, root: Path, sources: list[Source]) -> dict[str, list[str]]:
    """Return the images of each source in the YOLO layout. Raises UserError if one is missing."""
    images = {}
    for source in sources:
        if isinstance(source, AnnotatedSource) and source.annotations:
            continue
        where = source if isinstance(source, str) else source.images
        files = list_images(root / where)
        if files is None:
            raise UserError(
                f"{split}: {root / where}: not found (need a directory, a .txt list, a glob, or a "
                "COCO .json)"
            )
        images[where] = files
    return images


def _scan_split(
    config: DataConfig, split: str, images: dict[str, list[str]]
) -> tuple[Arrays, list[str]]:
    """Read all sources of a split; return its arrays and the files and directories read."""
    root, scan, names = Path(config.path), Scan(), config.names
    inputs: list[str] = []
    labels = label_table(names or [], config.remap)
    for source in getattr(config, split):
        first = len(scan.files)
        if isinstance(source, AnnotatedSource) and source.is_coco:
            path = root / source.annotations
            names = read_coco(scan, path, _coco_directories(root, source), names, labels)
            # Without `names` in the data.yaml, the first json's categories are the classes.
            labels = labels or label_table(names, {})
            inputs += [str(path), *scan.files[first:]]
        elif isinstance(source, AnnotatedSource) and is_labelme(root, source):
            inputs += [*read_labelme(scan, root, source, labels), *scan.files[first:]]
        elif isinstance(source, AnnotatedSource) and source.is_voc:
            inputs += [*read_voc(scan, root, source, labels), *scan.files[first:]]
        else:
            where = source if isinstance(source, str) else source.images
            source_names = names if isinstance(source, str) else source.names or names
            for name in source_names:
                if name not in labels:
                    raise UserError(f"{split}: {root / where}: {unknown_class(name, labels)}")
            read_yolo(scan, images[where], [labels[name] for name in source_names])
            inputs += [*images[where], *map(label_file, images[where])]
            if (root / where).is_dir():
                inputs += find_orphan_labels(scan, images[where])
    return scan.finish(names or ()), inputs


def _coco_directories(root: Path, source: AnnotatedSource) -> list[Path]:
    """Return where the images of a COCO json may be: where its source says, if it does.

    Otherwise in the dataset's directory, beside the json or in the directory above it, there or in
    a directory `images` or, for a name like instances_val.json, `val` or `images/val`.
    """
    if source.has_images:
        return [root / source.images]
    path = root / source.annotations
    subset = path.stem.rpartition("_")[2]
    bases = [root, path.parent, *([path.parent.parent] if path.parent != root else [])]
    places = (".", "images", subset, f"images/{subset}")
    return [base / place for base in bases for place in places]


def original_ids(
    config: DataConfig, split: str, annotations: Annotations
) -> tuple[list[int | str], list[int]]:
    """Return the ids of a split's images and of its classes, for tools that compare by them.

    Ids come from the COCO json where there is one. Otherwise the id of an image is its file name
    without the suffix, as an int if it is one, and the id of a class is its index.
    """
    image_ids: dict[str, int | str] = {}
    category_ids = {name: label for label, name in enumerate(annotations.class_names)}
    for source in getattr(config, split):
        if isinstance(source, AnnotatedSource) and source.is_coco:
            root = Path(config.path)
            source_image_ids, source_category_ids = read_coco_ids(
                root / source.annotations, _coco_directories(root, source)
            )
            for file, image_id in source_image_ids.items():
                image_ids.setdefault(file, image_id)
            for name in category_ids.keys() & source_category_ids.keys():
                category_ids[name] = source_category_ids[name]
    for file in annotations.files.tolist():
        stem = Path(file).stem
        image_ids.setdefault(file, int(stem) if stem.isdecimal() else stem)
    return (
        [image_ids[file] for file in annotations.files.tolist()],
        [category_ids[name] for name in annotations.class_names],
    )
