"""Writes a data set in another format: `python -m data.convert voc|coco|yolo SRC.yaml DST`.

DST becomes a folder of its own, pictures included, with a data.yaml to train on. Boxes keep their place to a thousandth of a
pixel.
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
from data.formats import Annotations, read_all_splits, unique_stem
from utils.cli import Parser, run_cli
from utils.errors import UserError

Source = str | dict[str, str]


def convert(kind: str, source: Path, target: Path) -> list[str]:
    """Write the data set behind the data.yaml `source` into the folder `target` as `kind`; sentences on what was left out.

    Raises UserError where the source is wrong, or the target is there and not empty.
    """
    config = read_data_config(source)
    splits = read_all_splits(config)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is there already; need a new folder, or an empty one")
    said = [sentence for name, data in splits.items() for sentence in data.report(name)]
    taken: set[str] = set()
    described: dict[str, object] = {"path": "."}
    for name, data in splits.items():
        if kind != "coco" and data.crowd.any():
            said.append(
                f"{name}: {int(data.crowd.sum())} crowds left out, which {kind} does not know"
            )
        files = [unique_stem(file, taken) + Path(file).suffix for file in data.files.tolist()]
        described[name] = WRITERS[kind](name, data, files, target)
    described["names"] = list(splits["train"].names)
    (target / "data.yaml").write_text(
        yaml.safe_dump(described, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    return said


def _copy(data: Annotations, files: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in zip(data.files.tolist(), files, strict=True):
        shutil.copyfile(source, folder / name)


def _boxes(data: Annotations, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of picture i: boxes (n, 4) xyxy in its pixels, labels (n,), and which are crowds (n,)."""
    rows = slice(data.offsets[i], data.offsets[i + 1])
    return (
        data.boxes[rows].astype(float) * np.tile(data.sizes[i], 2),
        data.labels[rows],
        data.crowd[rows],
    )


def _write_yolo(split: str, data: Annotations, files: Sequence[str], target: Path) -> Source:
    _copy(data, files, target / "images" / split)
    (target / "labels" / split).mkdir(parents=True)
    for i, name in enumerate(files):
        boxes, labels, crowd = _boxes(data, i)
        centers = (
            np.concatenate((boxes[:, :2] + boxes[:, 2:], 2 * (boxes[:, 2:] - boxes[:, :2])), axis=1)
            / 2
        )
        shares = np.clip(centers / np.tile(data.sizes[i], 2), 0, 1)
        lines = [
            f"{k} {' '.join(f'{v:.9f}' for v in row)}\n"
            for k, row, c in zip(labels, shares, crowd, strict=True)
            if not c
        ]
        (target / "labels" / split / f"{Path(name).stem}.txt").write_text(
            "".join(lines), encoding="utf-8"
        )
    return f"images/{split}"


def _write_coco(split: str, data: Annotations, files: Sequence[str], target: Path) -> Source:
    _copy(data, files, target / "images" / split)
    content: dict[str, list[dict[str, object]]] = {
        "images": [
            {"id": i, "file_name": name, "width": int(w), "height": int(h)}
            for i, (name, (w, h)) in enumerate(zip(files, data.sizes, strict=True))
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(data.names)],
        "annotations": [],
    }
    for i in range(len(data)):
        for (x1, y1, x2, y2), label, crowd in zip(*_boxes(data, i), strict=True):
            box = [round(float(v), 4) for v in (x1, y1, x2 - x1, y2 - y1)]
            content["annotations"].append({
                "id": len(content["annotations"]) + 1, "image_id": i, "category_id": int(label), "bbox": box,
                "area": round(box[2] * box[3], 4), "iscrowd": int(crowd),
            })  # fmt: skip
    (target / "annotations").mkdir(exist_ok=True)
    (target / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return {"annotations": f"annotations/{split}.json", "images": f"images/{split}"}


def _write_voc(split: str, data: Annotations, files: Sequence[str], target: Path) -> Source:
    _copy(data, files, target / "JPEGImages")
    for folder in ("Annotations", "ImageSets/Main"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(files):
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = name
        size = ElementTree.SubElement(root, "size")
        for key, value in zip(("width", "height", "depth"), (*data.sizes[i], 3), strict=True):
            ElementTree.SubElement(size, key).text = str(value)
        for (x1, y1, x2, y2), label, crowd in zip(*_boxes(data, i), strict=True):
            if crowd:
                continue
            thing = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(thing, "name").text = data.names[label]
            box = ElementTree.SubElement(thing, "bndbox")
            # VOC counts pixels from 1, and the last one belongs to the box.
            for key, value in zip(
                ("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True
            ):
                ElementTree.SubElement(box, key).text = f"{value:.4f}".rstrip("0").rstrip(".")
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(
            target / "Annotations" / f"{Path(name).stem}.xml", encoding="utf-8"
        )
    stems = "".join(f"{Path(name).stem}\n" for name in files)
    (target / "ImageSets" / "Main" / f"{split}.txt").write_text(stems, encoding="utf-8")
    return {
        "annotations": "Annotations",
        "images": "JPEGImages",
        "list": f"ImageSets/Main/{split}.txt",
    }


WRITERS: dict[str, Callable[[str, Annotations, Sequence[str], Path], Source]] = {
    "voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status is that of `exit_status`."""

    def work() -> None:
        p = Parser(prog="python -m data.convert", description="Write a data set in another format.")
        p.add_argument("kind", choices=WRITERS, help="the format to write")
        p.add_argument("source", type=Path, help="the data.yaml of the data set")
        p.add_argument("target", type=Path, help="a folder that is not there, or empty")
        args = p.parse_args(argv)
        for sentence in convert(args.kind, args.source, args.target):
            print(sentence, file=sys.stderr)
        print(f"written to {args.target}; train on it with --data {args.target / 'data.yaml'}")

    return run_cli("data.convert", work)


if __name__ == "__main__":
    sys.exit(main())
