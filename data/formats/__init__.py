"""Reads the splits of a dataset: YOLO layout, COCO, Pascal VOC or labelme, into the same arrays.

A new format is a module next to these that fills a `Scan`, and a branch in `_scan_split`.
Invalid images and annotations are found here, before training; each is skipped with a message
that names the file and the line.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from data.cache import Arrays, cached
from data.config import SPLITS, AnnotatedSource, DataConfig, Source
from data.formats.coco import read_coco, read_coco_ids
from data.formats.labelme import is_labelme, read_labelme
from data.formats.scan import Annotations, Scan, invalid_count, label_table, unknown_class
from data.formats.voc import read_voc
from data.formats.yolo import read_yolo
from data.images import image_suffixes
from data.listing import Listing, list_images
from data.locate import similar
from data.random_split import draw_images
from utils.errors import UserError
from utils.log import plural

__all__ = [
    "Annotations",
    "images_in_both_splits",
    "invalid_count",
    "original_ids",
    "read_all_splits",
    "read_split",
    "read_train_val",
]


# Of a cache; to be raised when the fields of Annotations or what a reader takes from a file change.
CACHE_FORMAT = 6
REPEATED = "images that are named again, by a list or another source, and used each time"


def read_train_val(
    config: DataConfig, path: str, single_cls: bool = False
) -> tuple[Annotations, Annotations]:
    """Read `train` and `val` of the dataset whose `config` was read from the file `path`.

    single_cls: read all classes as one. Raises UserError as `read_split` does, and if their
    classes differ.
    """
    train, val = read_split(config, "train"), read_split(config, "val")
    if train.class_names != val.class_names:
        raise UserError(
            f"{path}: train has the classes {list(train.class_names)}, "
            f"val has {list(val.class_names)} (they must be the same, in one order: write "
            "`names`, and map what a source calls them with `remap`)"
        )
    if single_cls:
        train, val = train.as_single_class(), val.as_single_class()
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
        f"val: {count} of {plural(len(val), 'image')} {verb} in train, too; metrics on images "
        "that the model was trained on say little"
    ]


def read_all_splits(config: DataConfig) -> tuple[dict[str, Annotations], list[str]]:
    """Read `train`, `val` and, if the dataset has one, `test`.

    Returns them, and a message if there is a `test` that cannot be read: nothing is trained on it,
    some tools write the key without the images, and competitions keep its labels to themselves.
    Raises UserError as `read_split` for the others.
    """
    splits, messages = {}, []
    for split in SPLITS:
        if getattr(config, split) is None:
            continue
        try:
            splits[split] = read_split(config, split)
        except UserError as error:
            if split != "test":
                raise
            messages.append(f"{error}; test ignored")
    return splits, messages


def read_split(config: DataConfig, split: str) -> Annotations:
    """Read the split `train`, `val` or `test` of the dataset `config` from `read_data_config`.

    The result of a slow scan is cached in the dataset's directory (see `data.cache`). Raises
    UserError if a source is missing or invalid, no image or no box is left, or all boxes of `train`
    are crowds.
    """
    if getattr(config, split) is None:
        raise UserError(
            f"{config.file}: key {split!r} is missing or empty (need a directory of images, a .txt "
            "list, a glob, or annotations)"
        )
    if config.val_fraction and split != "test":
        return _drawn_split(config, split)
    return _read_sources(config, split)


def _drawn_split(config: DataConfig, split: str) -> Annotations:
    """Return `train` or `val` where `val` is drawn from the images of `train`, as `val: 20%` is.

    What was not as it should be in them is in the messages of `train`. Raises UserError as
    `read_split`, and if there are too few images.
    """
    whole = _read_sources(config, "train")
    in_val = draw_images(whole.files, config.path, config.val_fraction, config.split_seed)
    count, percent = int(in_val.sum()), f"{100 * config.val_fraction:g}%"
    if not 0 < count < len(whole):
        raise UserError(
            f"val: {percent} of the {len(whole)} images of train are {count} (need at least one "
            "image in each of train and val)"
        )
    part = whole.take(in_val if split == "val" else ~in_val)
    if not len(part.boxes):
        raise UserError(
            f"{split}: no boxes found for the {len(part)} images that are drawn (use another "
            "split_seed, or another percentage)"
        )
    if split == "train":
        return part
    note = f"{count} of the {len(whole)} images of train, drawn with split_seed {config.split_seed}"
    return dataclasses.replace(part, errors=(), notes=(note,))


def _read_sources(config: DataConfig, split: str) -> Annotations:
    """Read the sources of a split; as `read_split`."""
    root = Path(config.path)
    sources = getattr(config, split)
    listings = _list_yolo_images(split, root, sources, config.channels)
    source_hash = hashlib.blake2b(repr(sources).encode(), digest_size=4).hexdigest()
    arrays = cached(
        root / f"{split}-{source_hash}.cache.npz",
        _cache_key(config, sources, listings),
        lambda: _scan_split(config, split, listings),
    )
    annotations = Annotations.from_arrays(arrays)
    if not len(annotations):
        problem = "no valid images" if annotations.errors else "no images found"
        raise UserError(f"{split}: {problem} in {root}{_first_message(annotations)}")
    if not len(annotations.boxes):
        count = plural(len(annotations), "image")
        raise UserError(
            f"{split}: no boxes found for the {count} in {root}{_first_message(annotations)}"
        )
    if split == "train" and annotations.crowd.all():
        raise UserError(
            f"{split}: all boxes in {root} are crowds ({len(annotations.boxes)} of `iscrowd`, "
            "`ignore` or `difficult`), which are not trained on (some tools write `iscrowd: 1` for "
            "every mask: need 0 for single objects)"
        )
    notes = (*config.notes, *annotations.notes)
    return dataclasses.replace(annotations, notes=notes, channels=config.channels)


def _cache_key(config: DataConfig, sources: list[Source], listings: dict[str, Listing]) -> str:
    has_images = [isinstance(source, AnnotatedSource) and source.has_images for source in sources]
    content = CACHE_FORMAT, config.names, config.remap, config.kpt_shape, sources, has_images
    return repr((*content, config.channels, listings))


def _first_message(annotations: Annotations) -> str:
    """Return what says most about why there is nothing: the first error, or else the notes."""
    if annotations.errors:
        return _first_error(annotations.errors)
    return f" ({'; '.join(annotations.notes) or 'their annotations are empty'})"


def _first_error(errors: Sequence[str]) -> str:
    if not errors:
        return ""
    return f" (first of {plural(len(errors), 'error')}: {errors[0]})"


def _list_yolo_images(
    split: str, root: Path, sources: list[Source], channels: int
) -> dict[str, Listing]:
    """Return the images of each source in the YOLO layout. Raises UserError if one has none."""
    listings = {}
    for source in sources:
        if isinstance(source, AnnotatedSource) and source.annotations:
            continue
        where = source if isinstance(source, str) else source.images
        listing = list_images(root / where, root, image_suffixes(channels))
        if listing is None:
            exists = os.path.lexists(root / where)
            problem = "not a list of images" if exists else "not found"
            end = "" if exists else similar(root, where)
            hint = f"; {end} is in {root}" if end else ""
            raise UserError(
                f"{split}: {root / where}: {problem} (need a directory, a .txt list, a glob, or a "
                f"COCO .json{hint})"
            )
        if not listing.files:
            suffixes = f" (read are {' '.join(sorted(image_suffixes(channels)))})"
            reason = _first_error(listing.errors) or suffixes
            raise UserError(f"{split}: no images found in {root / where}{reason}")
        listings[where] = listing
    return listings


def _scan_split(
    config: DataConfig, split: str, listings: dict[str, Listing]
) -> tuple[Arrays, list[str]]:
    """Read all sources of a split; return its arrays and the files and directories read."""
    root, scan, names = Path(config.path), Scan(config.channels), config.names
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
            listing = listings[where]
            scan.errors += [(first, error) for error in listing.errors]
            scan.notes += listing.notes
            numbers = [labels[name] for name in source_names]
            is_dir = (root / where).is_dir()
            inputs += read_yolo(scan, where, listing.files, numbers, config.kpt_shape, is_dir)
        if len(scan.files) == first:
            where = source if isinstance(source, str) else source.annotations or source.images
            reason = _first_error([message for index, message in scan.errors if index == first])
            raise UserError(f"{split}: no images found in {root / where}{reason}")
    scan.notes[REPEATED] = len(scan.files) - len({*map(os.path.normpath, scan.files)})
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
