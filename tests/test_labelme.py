"""labelme's json, one per image: the boxes of its shapes, and what is named instead."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import pixels
from PIL import Image

from data.config import read_data_config
from data.formats import original_ids, read_split
from utils.errors import UserError

RECTANGLE = {
    "label": "a",
    "points": [[8.0, 16.0], [28.0, 48.0]],
    "group_id": None,
    "shape_type": "rectangle",
    "flags": {},
}
CORNERS = [8, 16, 28, 48]


def labelme(*shapes: object, name: str = "x.png", **keys: object) -> dict:
    """What labelme 5 writes with `store_data: false`."""
    head = {"version": "5.5.0", "flags": {}, "shapes": [*shapes], "imagePath": name}
    return head | {"imageData": None, "imageHeight": 64, "imageWidth": 80} | keys


def write(folder: Path, files: dict[str, object], **source: object) -> Path:
    """Write json files into the directory `json`; return a data.yaml with it for both splits."""
    for name, content in files.items():
        path = folder / "json" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
    source = {"annotations": "json", **source}
    data = folder / "data.yaml"
    data.write_text(yaml.safe_dump({"train": source, "val": source, "names": ["a", "b"]}))
    return data


def draw(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 64)).save(folder / name)


def read(folder: Path, files: dict[str, object], images: str | None = "photos"):
    if not (folder / "photos").exists():
        draw(folder / "photos", "x.png", "y.png")
    source = {} if images is None else {"images": images}
    return read_split(read_data_config(write(folder, files, **source)), "train")


@pytest.mark.parametrize(
    ("kind", "points", "corners"),
    [
        ("rectangle", [[8, 16], [28, 48]], CORNERS),
        ("rectangle", [[28, 48], [8, 16]], CORNERS),  # drawn from the other end
        ("rectangle", [[28, 16], [8, 48]], CORNERS),
        ("rectangle", [[8, 16], [28, 16], [28, 48], [8, 48]], CORNERS),  # X-AnyLabeling
        ("rectangle", [[-0.5, -0.7], [80.2, 64.9]], [0, 0, 80, 64]),
        ("polygon", [[8, 20], [20, 16], [28, 48]], CORNERS),
        ("circle", [[20, 30], [23, 34]], [15, 25, 25, 35]),
        ("mask", [[8, 16], [27, 47]], CORNERS),
        ("rotation", [[18, 16], [28, 32], [18, 48], [8, 32]], CORNERS),
    ],
)
def test_the_box_of_a_shape(tmp_path, kind, points, corners):
    shape = RECTANGLE | {"shape_type": kind, "points": points, "label": "b"}
    data = read(tmp_path, {"x.json": labelme(RECTANGLE, shape)})
    assert pixels(data) == {"x.png": [CORNERS, corners]} and data.labels.tolist() == [0, 1]
    assert data.errors == () and data.class_names == ("a", "b")
    if kind == "rectangle":
        assert data.notes == ()
    else:
        (note,) = data.notes
        assert note.endswith("whose box is taken: 1")


def test_boxes_are_cut_at_the_border_and_said(tmp_path):
    circle = RECTANGLE | {"shape_type": "circle", "points": [[2, 30], [5, 34]]}
    shapes = [RECTANGLE | {"points": [[-3, -4], [90, 70]]}, circle, RECTANGLE]
    data = read(tmp_path, {"x.json": labelme(*shapes)})
    assert pixels(data) == {"x.png": [[0, 0, 80, 64], [0, 25, 7, 35], CORNERS]}
    assert any(note.endswith("cut at its border: 2") for note in data.notes) and not data.errors


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"shape_type": "point", "points": [[1, 2]]}, "found the shape_type 'point' (read are"),
        ({"shape_type": "line"}, "found the shape_type 'line'"),
        ({"shape_type": "linestrip"}, "found the shape_type 'linestrip'"),
        ({"shape_type": None}, "found the shape_type None"),
        ({"label": "c"}, "found the label 'c' (known: ['a', 'b'])"),
        ({"label": None}, "found the label None"),
        ({"points": [[1, 2]]}, "found the points [[1, 2]] (a rectangle needs 2 or more)"),
        ({"points": []}, "found the points []"),
        ({"points": None}, "found the points None"),
        ({"points": [[1, 2], [3]]}, "found the points [[1, 2], [3]]"),
        ({"points": [[1, 2], [3, "x"]]}, "found the points"),
        ({"points": [[1, 2], [3, float("nan")]]}, "found the points"),
        ({"points": [[90, 2], [95, 9]]}, "found a rectangle from 90 2 95 9, which covers nothing"),
        ({"points": [[9, 2], [9, 9]]}, "found a rectangle from 9 2 9 9, which covers nothing"),
        (
            {"shape_type": "polygon"},
            "found the points [[8.0, 16.0], [28.0, 48.0]] (a polygon needs",
        ),
    ],
)
def test_a_shape_that_is_no_box_is_named_and_the_others_are_read(tmp_path, shape, reason):
    data = read(tmp_path, {"x.json": labelme(RECTANGLE, RECTANGLE | shape)})
    assert pixels(data)["x.png"] == [CORNERS] and data.notes == ()
    (error,) = data.errors
    assert error.startswith(f"{tmp_path / 'json' / 'x.json'}: shape 1: {reason}"), error


@pytest.mark.parametrize(
    ("file", "name", "images"),
    [
        ("photos/x.png", "x.png", "photos"),
        ("photos/x.png", "..\\photos\\x.png", None),
        ("photos/x.png", "../photos/x.png", None),
        ("photos/x.png", "../photos/x.png", "photos"),
        ("photos/x.png", "C:\\Users\\me\\x.png", "photos"),
        ("photos/x.png", "/home/me/x.png", "photos"),
        ("photos/x.png", "X.JPG", "photos"),
        ("photos/x.png", "renamed-before.jpg", "photos"),  # then the name of the json
        ("json/x.png", "x.png", None),
        ("json/x.png", "/home/me/x.png", None),
    ],
)
def test_the_image_of_a_json_is_found(tmp_path, file, name, images):
    draw(tmp_path, file)
    data = read(tmp_path, {"x.json": labelme(RECTANGLE, name=name)}, images)
    assert data.files.tolist() == [str(tmp_path / file)]
    assert pixels(data) == {"x.png": [CORNERS]} and data.errors == ()
    config = read_data_config(tmp_path / "data.yaml")
    assert original_ids(config, "train", data) == (["x"], [0, 1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not labelme's json"),
        ("{", "cut off"),
        ("[1]", "not labelme's json, but a list"),
        ({"images": [], "annotations": [], "categories": []}, "but a COCO json"),
        ({"flags": {}}, "it has no shapes"),
        ({"shapes": {}, "imagePath": "x.png"}, "not labelme's json"),
        ({"shapes": []}, "found the imagePath None"),
        (labelme(RECTANGLE, name="x.png"), "its image"),  # as that of x.json
    ],
)
def test_a_json_that_is_not_labelmes_is_named_and_the_others_are_read(tmp_path, content, reason):
    data = read(tmp_path, {"x.json": labelme(RECTANGLE), "y.json": content})
    assert pixels(data) == {"x.png": [CORNERS]}
    (error,) = data.errors
    assert error.startswith(f"{tmp_path / 'json' / 'y.json'}: ") and reason in error, error
    assert error.endswith("; image skipped")


def test_an_image_that_is_missing_is_named(tmp_path):
    data = read(tmp_path, {"x.json": labelme(RECTANGLE), "z.json": labelme(name="z.png")})
    assert pixels(data) == {"x.png": [CORNERS]}
    assert data.errors == (
        f"{tmp_path / 'photos' / 'z.png'}: cannot be read: No such file or directory; skipped",
    )


@pytest.mark.parametrize("value", [None, 0, "?"])
def test_a_size_that_is_not_stated_is_that_of_the_file(tmp_path, value):
    data = read(tmp_path, {"x.json": labelme(RECTANGLE, imageWidth=value, imageHeight=value)})
    assert pixels(data) == {"x.png": [CORNERS]} and data.errors == ()
    (note,) = data.notes
    assert "without a size" in note and note.endswith(": 1")


def test_a_size_that_is_not_that_of_the_file_is_named(tmp_path):
    files = {"x.json": labelme(RECTANGLE), "y.json": labelme(name="y.png", imageWidth=64)}
    data = read(tmp_path, files)
    (error,) = data.errors
    assert len(data) == 1 and "found 80x64 pixels" in error and "expects 64x64" in error


def test_shapes_of_one_group_are_one_box(tmp_path):
    """labelme's own converters join them: an object that another one cuts in two."""
    first = RECTANGLE | {"group_id": 3}
    second = first | {"points": [[40, 10], [50, 20]]}
    other_label, other_group = second | {"label": "b"}, second | {"group_id": 4}
    data = read(tmp_path, {"x.json": labelme(first, other_label, second, other_group, RECTANGLE)})
    part = [40, 10, 50, 20]
    assert pixels(data) == {"x.png": [[8, 10, 50, 48], part, part, CORNERS]}
    assert data.labels.tolist() == [0, 1, 0, 0]
    (note,) = data.notes
    assert "group_id" in note and note.endswith(": 1")


def test_difficult_shapes_are_crowds(tmp_path):
    hard = RECTANGLE | {"difficult": True, "points": [[40, 10], [50, 20]]}
    data = read(tmp_path, {"x.json": labelme(RECTANGLE | {"difficult": False}, hard)})
    assert data.crowd.tolist() == [False, True]
    (note,) = data.notes
    assert "`difficult`" in note and note.endswith(": 1")


def test_json_files_in_directories_below_and_hidden_ones(tmp_path):
    files = {
        "one/x.json": labelme(RECTANGLE),
        "two/y.JSON": labelme(RECTANGLE, RECTANGLE | {"label": "b"}, name="y.png"),
        ".ipynb_checkpoints/x-checkpoint.json": labelme(RECTANGLE),
        "one/._x.json": "of macOS",
    }
    data = read(tmp_path, files)
    assert {name: len(boxes) for name, boxes in pixels(data).items()} == {"x.png": 1, "y.png": 2}
    assert data.errors == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_json_may_have_a_byte_order_mark_or_another_encoding(tmp_path, encoding):
    content = labelme(RECTANGLE, name="\u732b.png")
    draw(tmp_path / "photos", "\u732b.png")
    data = write(tmp_path, {"x.json": ""}, images="photos")
    text = json.dumps(content, ensure_ascii=False, indent=2).replace("\n", "\r\n")
    (tmp_path / "json" / "x.json").write_bytes(text.encode(encoding))
    result = read_split(read_data_config(data), "train")
    assert pixels(result) == {"\u732b.png": [CORNERS]} and result.errors == ()


def test_remap_renames_and_skips_labels(tmp_path):
    shapes = [RECTANGLE | {"label": label} for label in ("a", "kitten", "tree")]
    data = write(tmp_path, {"x.json": labelme(*shapes)}, images="photos")
    data.write_text(data.read_text() + "remap: {kitten: b, tree: null}\n")
    draw(tmp_path / "photos", "x.png")
    result = read_split(read_data_config(data), "train")
    assert result.labels.tolist() == [0, 1] and result.errors == ()


def test_a_coco_json_given_by_its_directory_is_named(tmp_path):
    with pytest.raises(UserError, match=r"_annotations.coco.json: not labelme's .* a COCO json"):
        content = {"images": [], "annotations": [], "categories": []}
        read(tmp_path, {"_annotations.coco.json": content})


def test_an_image_set_is_refused(tmp_path):
    data = write(tmp_path, {"x.json": labelme(RECTANGLE)}, images=".", image_set="train.txt")
    with pytest.raises(UserError, match="`image_set` is for Pascal VOC"):
        read_split(read_data_config(data), "train")
