"""What all formats share: duplicate boxes are skipped and reported."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.config import read_data_config
from data.formats import read_split


def write_yolo(root: Path) -> str:
    line = "0 0.2 0.4 0.2 0.4\n"
    (root / "a.txt").write_text(f"{line}{line}1 0.2 0.4 0.2 0.4\n{line}")
    (root / "b.txt").write_text(line)
    return "."


def write_coco(root: Path) -> str:
    images = [
        {"id": i, "file_name": f"{name}.png", "width": 100, "height": 50}
        for i, name in enumerate("ab")
    ]
    rows = [(0, 0, 0), (0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 0), (0, 0, 1)]
    annotations = [
        {"id": k, "image_id": i, "category_id": label, "bbox": [10, 10, 20, 20], "iscrowd": crowd}
        for k, (i, label, crowd) in enumerate(rows)
    ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (root / "a.json").write_text(json.dumps(content))
    return "{annotations: a.json}"


def write_voc(root: Path) -> str:
    corners = "<xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>30</ymax>"
    for name, labels in (("a", ["cat", "cat", "dog", "cat"]), ("b", ["cat"])):
        objects = "".join(
            f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>" for label in labels
        )
        (root / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>100</width>"
            f"<height>50</height></size>{objects}</annotation>"
        )
    return "{annotations: .}"


@pytest.mark.parametrize("write", [write_yolo, write_coco, write_voc])
def test_boxes_that_are_there_twice_are_left_out_and_counted(write, tmp_path):
    for name in "ab":
        Image.new("RGB", (100, 50)).save(tmp_path / f"{name}.png")
    source = write(tmp_path)
    path = tmp_path / "data.yaml"
    path.write_text(f"train: {source}\nval: {source}\nnames: [cat, dog]\n")
    data = read_split(read_data_config(path), "train")
    crowds = write is write_coco  # a crowd with the same box is another annotation
    assert data.labels.tolist() == ([0, 1, 0, 0] if crowds else [0, 1, 0])
    assert np.diff(data.offsets).tolist() == ([3, 1] if crowds else [2, 1])
    assert data.errors == (f"{tmp_path / 'a.png'}: 2 duplicate boxes; skipped",)


def test_repeated_rows_are_those_that_equal_an_earlier_one():
    """Against a search with a set, on rows of few values."""
    from data.formats.scan import repeated_rows

    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 500):
        images, labels = np.sort(rng.integers(0, 4, count)), rng.integers(0, 3, count)
        crowd = rng.random(count) < 0.5
        boxes = rng.integers(0, 3, (count, 4)).astype(np.float32)
        seen, expected = set(), []
        for i, row in enumerate(
            zip(images, labels, crowd, map(tuple, boxes.tolist()), strict=True)
        ):
            if row in seen:
                expected.append(i)
            seen.add(row)
        assert repeated_rows(images, labels, crowd, boxes).tolist() == expected
