"""Writes a dataset in another format: `python -m data.convert voc|coco|yolo SRC.yaml DST`.

DST becomes a directory with copies of the images and a data.yaml to train on. Boxes are exact to
a thousandth of a pixel.
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml

from data.config import read_data_config
from data.formats import Annotations, read_all_splits
from data.images import unique_stem
from data.locate import find_data_yaml
from data.shapes import make_builtin
from utils.cli import Parser, run_cli
from utils.errors import UserError
from utils.log import info, warning

Source = str | dict[str, str]
ROOT = Path(__file__).resolve().parents[1]


def convert(format: str, source: Path, target: Path) -> list[str]:
    """Write the dataset of the data.yaml `source` into the directory `target` as `format`.

    Returns messages about what was skipped. Raises UserError if the source is invalid, or the
    target exists and is not empty.
    """
    config = read_data_config(source)
    if make_builtin(config):
        info(f"drew the built-in dataset into {config.path}")
    splits, messages = read_all_splits(config)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: already exists (need a new or an empty directory)")
    messages += [message for split, data in splits.items() for message in data.messages(split)]
    used_stems: set[str] = set()
    data_yaml: dict[str, object] = {"path": "."}
    for split, data in splits.items():
        if format != "coco" and data.crowd.any():
            count = int(data.crowd.sum())
            boxes = "crowd box" if count == 1 else "crowd boxes"
            messages.append(f"{split}: skipped {count} {boxes}, which {format} does not support")
        files = [unique_stem(file, used_stems) + Path(file).suffix for file in data.files.tolist()]
        data_yaml[split] = WRITERS[format](split, data, files, target)
    if config.channels != 3:
        data_yaml["channels"] = config.channels
    data_yaml["names"] = list(splits["train"].class_names)
    (target / "data.yaml").write_text(
        yaml.safe_dump(data_yaml, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    return messages


def _copy_images(data: Annotations, files: Sequence[str], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for source, name in zip(data.files.tolist(), files, strict=True):
        shutil.copyfile(source, directory / name)


def _boxes(data: Annotations, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image i's boxes (n, 4) xyxy in pixels, labels (n,) and which are crowds (n,)."""
    rows = slice(data.offsets[i], data.offsets[i + 1])
    boxes = data.boxes[rows].astype(float) * np.tile(data.sizes[i], 2)
    return boxes, data.labels[rows], data.crowd[rows]


def _write_yolo(split: str, data: Annotations, files: Sequence[str], target: Path) -> Source:
    _copy_images(data, files, target / "images" / split)
    label_dir = target / "labels" / split
    label_dir.mkdir(parents=True)
    for i, name in enumerate(files):
        boxes, labels, crowd = _boxes(data, i)
        x1y1, x2y2 = boxes[:, :2], boxes[:, 2:]
        cxcywh = np.concatenate((x1y1 + x2y2, 2 * (x2y2 - x1y1)), axis=1) / 2
        fractions = np.clip(cxcywh / np.tile(data.sizes[i], 2), 0, 1)
        lines = [
            f"{label} {' '.join(f'{value:.9f}' for value in row)}\n"
            for label, row in zip(labels[~crowd], fractions[~crowd], strict=True)
        ]
        path = label_dir / f"{Path(name).stem}.txt"
        path.write_text("".join(lines), encoding="utf-8")
    return f"images/{split}"


def _write_coco(split: str, data: Annotations, files: Sequence[str], target: Path) -> Source:
    _copy_images(data, files, target / "images" / split)
    annotations: list[dict[str, object]] = []
    for i in range(len(data)):
        for (x1, y1, x2, y2), label, crowd in zip(*_boxes(data, i), strict=True):
            box = [round(float(value), 4) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(label),
                    "bbox": box,
                    "area": round(box[2] * box[3], 4),
                    "iscrowd": int(crowd),
                }
            )
    content = {
        "images": [
            {"id": i, "file_name": name, "width": int(width), "height": int(height)}
            for i, (name, (width, height)) in enumerate(zip(files, data.sizes, strict=True))
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(data.class_names)],
        "annotations": annotations,
    }
    (target / "annotations").mkdir(exist_ok=True)
    (target / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return {"annotations": f"annotations/{split}.json", "images": f"images/{split}"}


def _write_voc(split: str, data: Annotations, files: Sequence[str], target: Path) -> Source:
    _copy_images(data, files, target / "JPEGImages")
    for directory in ("Annotations", "ImageSets/Main"):
        (target / directory).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(files):
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = name
        size = ElementTree.SubElement(root, "size")
        for key, value in zip(
            ("width", "height", "depth"), (*data.sizes[i], data.channels), strict=True
        ):
            ElementTree.SubElement(size, key).text = str(value)
        boxes, labels, crowd = _boxes(data, i)
        for (x1, y1, x2, y2), label in zip(boxes[~crowd], labels[~crowd], strict=True):
            obj = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(obj, "name").text = data.class_names[label]
            bndbox = ElementTree.SubElement(obj, "bndbox")
            # VOC counts pixels from 1, and the last one belongs to the box.
            corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
            for key, value in corners.items():
                ElementTree.SubElement(bndbox, key).text = f"{value:.4f}".rstrip("0").rstrip(".")
        ElementTree.indent(root)
        path = target / "Annotations" / f"{Path(name).stem}.xml"
        ElementTree.ElementTree(root).write(path, encoding="utf-8")
    image_set = f"ImageSets/Main/{split}.txt"
    stems = "".join(f"{Path(name).stem}\n" for name in files)
    (target / image_set).write_text(stems, encoding="utf-8")
    return {"annotations": "Annotations", "images": "JPEGImages", "image_set": image_set}


Writer = Callable[[str, Annotations, Sequence[str], Path], Source]
WRITERS: dict[str, Writer] = {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status of `run_cli`."""

    def main_fn() -> None:
        p = Parser(prog="python -m data.convert", description="Write a dataset in another format.")
        p.add_argument("format", choices=WRITERS, help="format to write")
        p.add_argument("source", help="data.yaml of the dataset, or a directory with one")
        p.add_argument("target", type=Path, help="new or empty directory")
        args = p.parse_args(argv)
        source = find_data_yaml(args.source, ROOT / "data")
        warning(*convert(args.format, source, args.target))
        info(f"written to {args.target}; train on it with --data {args.target / 'data.yaml'}")

    return run_cli("data.convert", main_fn)


if __name__ == "__main__":
    sys.exit(main())
