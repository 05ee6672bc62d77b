"""What all formats share: duplicate boxes and images without a valid label are skipped."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.config import read_data_config
from data.formats import read_split
from utils.errors import UserError


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


# Of each image: its boxes as class and x1, y1, x2, y2 in pixels of 100 x 50.
GOOD, OUTSIDE, BIRD = ("cat", 10, 10, 30, 30), ("cat", 210, 110, 230, 130), ("bird", 10, 10, 30, 30)
IMAGES = {
    "all_invalid": [OUTSIDE, OUTSIDE],
    "background": [],
    "dropped": [OUTSIDE, BIRD],  # what is valid is of a class that remap drops
    "some_invalid": [OUTSIDE, GOOD],
    "valid": [GOOD],
}


def yolo_files(root: Path) -> str:
    for name, boxes in IMAGES.items():
        lines = [
            f"{int(label == 'bird')} {(a + c) / 200} {(b + d) / 100} {(c - a) / 100} {(d - b) / 50}"
            for label, a, b, c, d in boxes
        ]
        (root / f"{name}.txt").write_text("\n".join(lines))
    return "{images: ., names: [cat, bird]}"


def coco_file(root: Path) -> str:
    images = [
        {"id": i, "file_name": f"{name}.png", "width": 100, "height": 50}
        for i, name in enumerate(IMAGES)
    ]
    rows = [(i, *box) for i, boxes in enumerate(IMAGES.values()) for box in boxes]
    annotations = [
        {"id": k, "image_id": i, "category_id": label, "bbox": [a, b, c - a, d - b]}
        for k, (i, label, a, b, c, d) in enumerate(rows)
    ]
    categories = [{"id": name, "name": name} for name in ("cat", "bird")]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (root / "a.json").write_text(json.dumps(content))
    return "{annotations: a.json}"


def voc_files(root: Path) -> str:
    for name, boxes in IMAGES.items():
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{a + 1}</xmin><ymin>{b + 1}</ymin>"
            f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for label, a, b, c, d in boxes
        )
        size = "<size><width>100</width><height>50</height></size>"
        (root / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return "{annotations: .}"


def labelme_files(root: Path) -> str:
    for name, boxes in IMAGES.items():
        shapes = [
            {"label": label, "points": [[a, b], [c, d]], "shape_type": "rectangle"}
            for label, a, b, c, d in boxes
        ]
        content = {"shapes": shapes, "imagePath": f"{name}.png", "imageWidth": 100}
        (root / f"{name}.json").write_text(json.dumps(content | {"imageHeight": 50}))
    return "{annotations: .}"


@pytest.mark.parametrize("write", [yolo_files, coco_file, voc_files, labelme_files])
def test_an_image_without_a_valid_label_is_skipped_and_said(write, tmp_path):
    for name in IMAGES:
        Image.new("RGB", (100, 50)).save(tmp_path / f"{name}.png")
    source, path = write(tmp_path), tmp_path / "data.yaml"
    path.write_text(f"train: {source}\nval: {source}\nnames: [cat]\nremap: {{bird: null}}\n")
    data = read_split(read_data_config(path), "train")
    names = [Path(file).stem for file in data.files]
    assert names == ["background", "dropped", "some_invalid", "valid"]
    assert np.diff(data.offsets).tolist() == [0, 0, 1, 1]
    skipped = f"train: {tmp_path}/all_invalid.png: none of its labels is valid; image skipped"
    messages = data.messages("train")
    assert messages.count(skipped) == 1, messages
    assert sum("box skipped" in message for message in messages) == 4, messages
    assert messages[-1] == "train: skipped 5 invalid images or annotations"


def test_images_that_all_have_invalid_labels_are_refused_with_the_first(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 20 25 10 10\n")
    path = tmp_path / "data.yaml"
    path.write_text("train: .\nval: .\nnames: [cat]\n")
    with pytest.raises(UserError) as error:
        read_split(read_data_config(path), "train")
    assert str(error.value) == (
        f"train: no valid images in {tmp_path} (first of 2 errors: {tmp_path}/a.txt: line 1: found "
        "the box 20 25 10 10, in pixels or percent (allowed: 0 to 1, as fractions of the image's "
        "width and height); box skipped)"
    )
