"""The YOLO layout as people have it: where label files are, and what their lines look like."""

import codecs
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.config import read_data_config
from data.formats import Annotations, read_split
from utils.errors import UserError

BOX = "0 0.5 0.5 0.25 0.25"


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 64)).save(path)


def write_text(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(root: Path, train: str = "images/train", more: str = "") -> Annotations:
    """Read the split `train` of the dataset in `root`, with two classes."""
    path = root / "data.yaml"
    path.write_text(f"train: {train}\nval: {train}\nnames: [a, b]\n{more}")
    return read_split(read_data_config(path), "train")


def read_line(root: Path, content: str | bytes, more: str = "") -> Annotations:
    """Read a dataset of two images; the label file of the first one has `content`."""
    for name in "xy":
        write_image(root / f"images/train/{name}.png")
        write_text(root / f"labels/train/{name}.txt", "1 0.5 0.5 1 1\n")
    write_text(root / "labels/train/x.txt", content)
    return read(root, more=more)


@pytest.mark.parametrize(
    ("image", "label", "train"),
    [
        ("images/train/a.png", "labels/train/a.txt", "images/train"),
        ("train/images/a.png", "train/labels/a.txt", "train"),
        ("train/images/a.png", "train/labels/a.txt", "train/images"),
        ("Images/train/a.png", "Labels/train/a.txt", "Images/train"),
        ("images/train/a.png", "label/train/a.txt", "images/train"),
        ("JPEGImages/a.png", "labels/a.txt", "JPEGImages"),
        ("images/train/a.png", "labels/train/a.TXT", "images/train"),
        ("images/train/a.png", "labels/train/a.png.txt", "images/train"),
        ("images/train/a.png", "images/train/a.txt", "images/train"),
        ("train/a.png", "train/a.txt", "train"),
        ("images/set/train/a.png", "images/set/train/a.txt", "images/set/train"),
        ("images/set/images/a.png", "images/set/labels/a.txt", "images/set/images"),
        ("images/a.b.png", "labels/a.b.txt", "images"),
        ("images/e\u0301.png", "labels/\u00e9.txt", "images"),  # macOS writes two characters
    ],
)
def test_label_file_is_found_where_tools_put_it(image, label, train, tmp_path):
    root = tmp_path / "images" / "mine"  # an `images` in the path of the whole dataset
    write_image(root / image)
    write_text(root / label, BOX)
    data = read(root, train)
    assert data.boxes.tolist() == [[0.375, 0.375, 0.625, 0.625]]
    assert data.errors == () and data.notes == ()


def test_labels_directory_goes_before_a_file_beside_the_image(tmp_path):
    write_image(tmp_path / "images/a.png")
    write_text(tmp_path / "images/a.txt", "1 0.5 0.5 1 1")
    write_text(tmp_path / "labels/a.txt", BOX)
    data = read(tmp_path, "images")
    assert data.labels.tolist() == [0]
    (note,) = data.notes
    assert "not read" in note and note.endswith(": 1")


def test_images_without_label_files_are_counted(tmp_path):
    for name in "abc":
        write_image(tmp_path / f"images/train/{name}.png")
    write_text(tmp_path / "labels/train/a.txt", BOX)
    data = read(tmp_path)
    assert len(data) == 3 and data.errors == ()
    assert data.notes == ("images without a label file, taken as images without objects: 2",)


def test_split_without_label_files_names_where_they_were_looked_for(tmp_path):
    write_image(tmp_path / "images/train/a.png")
    places = f"(looked in {tmp_path}/labels/train or {tmp_path}/images/train)"
    with pytest.raises(UserError, match="no boxes found for the 1 image") as error:
        read(tmp_path)
    assert f"no label file for any image of images/train {places}" in str(error.value)
    write_image(tmp_path / "images/more/b.png")
    write_text(tmp_path / "labels/more/b.txt", BOX)
    data = read(tmp_path, "[images/more, images/train]")
    assert data.notes == (
        f"no label file for any image of images/train {places}; images without objects: 1",
    )


def test_images_that_share_a_label_file_are_counted(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        write_image(tmp_path / "images" / name)
    for name in "ab":
        write_text(tmp_path / f"labels/{name}.txt", BOX)
    data = read(tmp_path, "images")
    assert len(data.boxes) == 3
    (note,) = data.notes
    assert "same label file" in note and note.endswith(": 1")


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + BOX.encode(),
        BOX.encode("utf-16"),
        BOX.encode("utf-16-be"),
        f"{BOX}\r\n",
        f"\n\n  {BOX}  \n\n",
        BOX.replace(" ", "\t"),
        BOX.replace(" ", ","),
        BOX.replace(" ", ", "),
        BOX.replace(" ", ";"),
        BOX.replace(".", ","),  # decimal commas
        BOX.replace("0 ", "0.0 ", 1),
        "0 5e-1 .5 0.250000 2.5E-1",
        f"# class cx cy w h\n{BOX}\n",
        f"{BOX} # a cat",
        f"{BOX} # größe".encode("latin-1"),
    ],
)
def test_label_line_is_read_however_it_was_written(content, tmp_path):
    data = read_line(tmp_path, content)
    assert data.boxes[0].tolist() == [0.375, 0.375, 0.625, 0.625] and data.labels[0] == 0
    assert len(data.boxes) == 2 and data.errors == () and data.notes == ()


@pytest.mark.parametrize(
    ("line", "corners", "note"),
    [
        ("0 0.1 0.1 0.5 0.1 0.5 0.5", (0.1, 0.1, 0.5, 0.5), "polygons"),
        ("0 0.1 0.3 0.3 0.1 0.5 0.3 0.3 0.5", (0.1, 0.1, 0.5, 0.5), "polygons"),  # rotated box
        ("0 0.5 0.5 1.0005 0.5", (0, 0.25, 1, 0.75), "cut"),
        ("0 -0.0004 0.5 0.5 0.5", (0, 0.25, 0.2496, 0.75), "cut"),
        ("0 0.9 0.5 0.5 0.5", (0.65, 0.25, 1, 0.75), "cut"),
        ("0 0.1 0.1 1.0002 0.1 0.5 0.5", (0.1, 0.1, 1, 0.5), "cut"),
        (f"{BOX} cat", (0.375, 0.375, 0.625, 0.625), "text behind"),
    ],
)
def test_what_is_not_read_as_it_stands_is_noted(line, corners, note, tmp_path):
    data = read_line(tmp_path, f"{line}\n")
    np.testing.assert_allclose(data.boxes[0], corners, atol=1e-6)
    assert data.errors == () and any(n.endswith(": 1") and note in n for n in data.notes)


def test_box_that_rounding_moves_over_the_border_is_no_note(tmp_path):
    assert read_line(tmp_path, "0 0.937501 0.5 0.125 0.5\n").notes == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 320 240 64 48", "found the box 320 240 64 48, in pixels or percent (allowed: 0 to 1"),
        ("0 10 10 50 10 50 50", "found the polygon 10 10 50 10 50 50, in pixels"),
        ("0 1.01 0.5 0.2 0.2", "found the box 1.01 0.5 0.2 0.2 (allowed: 0 to 1"),
        ("0 1.0005 0.5 0.0002 0.2", "found the box"),  # nothing of it is in the image
        ("0 0.5 0.5 -0.0005 0.2", "width and height above 0"),
        (f"{BOX} 0.87", "found 6 fields (need 5: class cx cy w h; a sixth is a prediction's"),
        ("cat 0.5 0.5 0.2 0.2", "found the class 'cat' (need its number)"),
        (f"{BOX} {'0.5 0.5 2 ' * 17}", "found 56 fields (need 5: class cx cy w h, or the x y of a"),
        (f"{BOX} {'0.5 0.5 2 ' * 4}", "kpt_shape"),  # 17 fields, as many as a polygon has
    ],
)
def test_label_line_that_means_something_else_is_one_sentence(line, message, tmp_path):
    data = read_line(tmp_path, f"{line}\n")
    error, _ = data.errors  # the other one is that the image is skipped
    assert error.startswith(f"{tmp_path}/labels/train/x.txt: line 1: {message}"[:150]) or (
        message in error
    )
    assert len(data.boxes) == 1


@pytest.mark.parametrize("shape", [(4, 3), (3, 2)])
def test_keypoints_are_left_out_by_kpt_shape(shape, tmp_path):
    keypoints = " 0.9 0.9 1"[: 8 if shape[1] == 2 else 10] * shape[0]
    data = read_line(tmp_path, BOX + keypoints, f"kpt_shape: {[*shape]}\n")
    assert data.boxes[0].tolist() == [0.375, 0.375, 0.625, 0.625]
    (note,) = data.notes
    assert "keypoints" in note and note.endswith(": 1")
    data = read_line(tmp_path, "0 0.1 0.1 0.5 0.1 0.5 0.5", f"kpt_shape: {[*shape]}\n")
    count = 5 + shape[0] * shape[1]
    assert f"found 7 fields (need {count}: class" in data.errors[0]


def test_images_named_again_are_used_again_and_noted(tmp_path):
    write_image(tmp_path / "images/a.png")
    write_text(tmp_path / "labels/a.txt", BOX)
    (tmp_path / "list.txt").write_text("images/a.png\n./images/a.png\n")
    data = read(tmp_path, "[list.txt, images]")
    assert len(data) == 3 and len(data.boxes) == 3
    (note,) = data.notes
    assert "named again" in note and note.endswith(": 2")


@pytest.mark.parametrize("empty", ["none", "'*.jpeg'", "list.txt"])
def test_source_that_yields_nothing_is_named(empty, tmp_path):
    write_image(tmp_path / "images/a.png")
    write_text(tmp_path / "labels/a.txt", BOX)
    (tmp_path / "none").mkdir()
    (tmp_path / "list.txt").write_text("gone.png\n")
    place = f"{tmp_path}/{empty.strip(chr(39))}"
    with pytest.raises(UserError) as error:
        read(tmp_path, f"[images, {empty}]")
    assert str(error.value).startswith(f"train: no images found in {place}")
    assert ("line 1: 'gone.png' not found" in str(error.value)) == (empty == "list.txt")


def test_cvat_yolo_export(tmp_path):
    """Of CVAT's YOLO 1.1: labels beside the images, and `data/` before every line of the list."""
    for name in ("a", "sub/b"):
        write_image(tmp_path / f"obj_train_data/{name}.png")
        write_text(tmp_path / f"obj_train_data/{name}.txt", BOX)
    (tmp_path / "train.txt").write_text(
        "data/obj_train_data/a.png\ndata/obj_train_data/sub/b.png\n"
    )
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: train.txt\nnames: obj.names\n")
    data = read_split(read_data_config(tmp_path / "data.yaml"), "train")
    assert data.class_names == ("cat", "dog") and len(data.boxes) == len(data) == 2
    assert data.errors == () and data.notes == ()


def test_cvat_ultralytics_export(tmp_path):
    write_image(tmp_path / "images/train/a.png")
    write_text(tmp_path / "labels/train/a.txt", BOX)
    (tmp_path / "train.txt").write_text("data/images/train/a.png\n")
    (tmp_path / "data.yaml").write_text(
        "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\nval: train.txt\n"
    )
    data = read_split(read_data_config(tmp_path / "data.yaml"), "train")
    assert data.class_names == ("cat", "dog") and len(data.boxes) == 1 and data.notes == ()
