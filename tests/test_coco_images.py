"""The images of a COCO json: one reading is right and taken, or the fault is named."""

from pathlib import Path

import pytest
import yaml
from coco_files import BOX, CATEGORY, CORNERS, IMAGE, SIZE, coco, draw, only_note, read, write
from conftest import pixels
from PIL import Image

from data.config import read_data_config
from data.formats import original_ids, read_split
from utils.errors import UserError

# ------------------------------------------------------------------------------- the images


def test_two_images_with_one_id_are_skipped_and_their_boxes_with_them(tmp_path):
    """Two files put behind one another: whose the boxes are cannot be known."""
    draw(tmp_path, "2.png")
    images = [IMAGE, IMAGE | {"file_name": "1.png"}, IMAGE, IMAGE | {"id": 2, "file_name": "2.png"}]
    boxes = [BOX, BOX | {"id": 2, "bbox": [0, 0, 5, 5]}, BOX | {"id": 3, "image_id": 2}]
    data = read(tmp_path, coco(images, boxes))
    assert pixels(data) == {"2.png": [CORNERS]}
    assert len(data.errors) == 3
    for number, error in enumerate(data.errors):
        assert error.startswith(f"{tmp_path / 'a.json'}: image {number}: ")
        assert "have the same id 1" in error and "0.png" in error and "1.png" in error


@pytest.mark.parametrize("other_id", [1, 2])
def test_an_image_that_is_listed_twice_is_one_with_the_boxes_of_both(tmp_path, other_id):
    """Files of one class each, merged: apart, each would show the other's objects as background."""
    other = BOX | {"id": 2, "image_id": other_id, "category_id": 2, "bbox": [0, 0, 5, 6]}
    categories = [CATEGORY, {"id": 2, "name": "b"}]
    images = [IMAGE, IMAGE | {"id": other_id}]
    data = read(tmp_path, coco(images, [BOX, other], categories))
    assert pixels(data) == {"0.png": [CORNERS, [0, 0, 5, 6]]}
    only_note(data, 1, "listed twice", "a.json")


def test_an_image_that_is_listed_with_two_sizes_is_named(tmp_path):
    images = [IMAGE, IMAGE | {"id": 2, "width": 40}]
    data = read(tmp_path, coco(images, [BOX, BOX | {"image_id": 2, "bbox": [0, 0, 5, 6]}]))
    assert pixels(data) == {"0.png": [CORNERS]}
    (error,) = data.errors
    assert "a.json: image 1: " in error and "as 80x64 and as 40x64" in error


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"file_name": "1.png", **SIZE}, "'id' is missing"),
        ({"id": 2, **SIZE}, "'file_name' is missing"),
        ({"id": None, "file_name": "1.png"}, "found the id None"),
        ({"id": True, "file_name": "1.png"}, "found the id True"),
        ({"id": [2], "file_name": "1.png"}, "found the id [2]"),
        ({"id": 1.5, "file_name": "1.png"}, "found the id 1.5"),
        ({"id": 2, "file_name": None}, "found the file_name None"),
        ({"id": 2, "file_name": 12}, "found the file_name 12"),
        ({"id": 2, "file_name": " "}, "found the file_name ' '"),
        ({"id": 2, "file_name": "a\0b"}, "found the file_name"),
    ],
)
def test_an_invalid_image_is_named_and_the_others_are_read(tmp_path, image, reason):
    data = read(tmp_path, coco([IMAGE, image]))
    assert pixels(data) == {"0.png": [CORNERS]}
    (error,) = data.errors
    assert error.startswith(f"{tmp_path / 'a.json'}: image 1: {reason}")


@pytest.mark.parametrize(
    "missing", [{}, {"width": None, "height": None}, {"width": 80}, {"width": "?"}]
)
@pytest.mark.parametrize("stated", [{"width": 0, "height": 0}, None])
def test_a_size_that_is_not_stated_is_that_of_the_file(tmp_path, missing, stated):
    size = stated or missing
    data = read(tmp_path, coco([{"id": 1, "file_name": "0.png", **size}]))
    assert pixels(data) == {"0.png": [CORNERS]}
    only_note(data, 1, "without a width and height")


def test_an_image_without_size_that_cannot_be_read_is_one_error(tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    images = [IMAGE, {"id": 2, "file_name": "bad.png"}]
    data = read(tmp_path, coco(images, [BOX, BOX | {"image_id": 2}, BOX | {"image_id": 2}]))
    assert pixels(data) == {"0.png": [CORNERS]}
    (error,) = data.errors
    assert error.startswith(f"{tmp_path / 'bad.png'}: ")


def test_a_size_is_read_from_the_header_as_exif_shows_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 80)).save(tmp_path / "turned.jpg", exif=exif)
    data = read(tmp_path, coco([{"id": 1, "file_name": "turned.jpg"}]))
    assert data.sizes.tolist() == [[80, 64]] and pixels(data) == {"turned.jpg": [CORNERS]}


# ------------------------------------------------------------------------------ file names


@pytest.mark.parametrize(
    ("file", "name", "note"),
    [
        ("a.png", "a.png", None),
        ("train/a.png", "train/a.png", None),
        ("a.png", "./a.png", None),
        ("train/a.png", "train\\a.png", None),
        ("a.png", "images/train/a.png", "another directory"),
        ("train/a.png", "images/train/a.png", "another directory"),
        ("a.png", "/home/me/images/a.png", "another directory"),
        ("a.png", "../data/a.png", "another directory"),
        ("a.png", "C:\\Users\\me\\a.png", "another directory"),
        ("a.png", "images\\a.png", "another directory"),
        ("train/a.png", "images\\train\\a.png", "another directory"),
        ("a b.png", "a%20b.png", "another directory"),
        ("a.png", "/data/upload/1/a.png", "another directory"),
        ("3f2a1b4c-a.png", "/data/upload/1/3f2a1b4c-a.png", "another directory"),
        ("a.png", "images/3f2a1b4c-a.png", "another directory"),  # Label Studio's upload
        ("train/a.png", "/data/local-files/?d=train/a.png", "another directory"),
        ("train/a.png", "/data/local-files/?d=train%5Ca.png", "another directory"),
        ("a.png", "https://bucket/some/a.png?sign=x%2Fy", "another directory"),
        ("a.png", "s3://bucket/some/a.png", "another directory"),
        ("A.PNG", "a.png", "another spelling"),
        ("a.png", "A.Png", "another spelling"),
        ("a.png", "a.jpg", "another spelling"),
        ("a.png", "a", "another spelling"),
        ("a.v2.png", "images/a.v2.JPEG", "another spelling"),
        ("caf\u00e9.png", "cafe\u0301.png", "another spelling"),  # as macOS packs names
        ("a?b.png", "a?b.png", None),
        ("a%20b.png", "a%20b.png", None),
        ("a[1].png", "a[1].png", None),
    ],
)
def test_an_image_is_found_however_its_name_is_written(tmp_path, file, name, note):
    draw(tmp_path / "photos", file, "other.png")
    data = read(tmp_path, coco([IMAGE | {"file_name": name}]), images="photos")
    assert data.files.tolist() == [str(tmp_path / "photos" / file)]
    assert pixels(data) == {Path(file).name: [CORNERS]} and data.errors == ()
    if note:
        only_note(data, 1, note, "a.json")
    else:
        assert data.notes == ()
    # The ids of the results that others compare with.
    config = read_data_config(tmp_path / "data.yaml")
    assert original_ids(config, "train", data) == ([1], [1])


def test_a_name_that_is_several_files_in_another_spelling_is_not_found(tmp_path):
    draw(tmp_path / "photos", "a.png", "a.bmp", "b.png")
    images = [IMAGE | {"file_name": "b.png"}, IMAGE | {"id": 2, "file_name": "a.jpg"}]
    data = read(tmp_path, coco(images), images="photos")
    assert pixels(data) == {"b.png": [CORNERS]}
    (error,) = data.errors
    assert f"{tmp_path / 'photos' / 'a.jpg'}: cannot be read: No such file" in error


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["cam1/0.png", "cam2/0.png"], []),  # whose is 0.png?
        (["0.png", "cam2/0.png"], ["0.png"]),  # the one that is named so
        (["cam1/0.png", "0.png"], ["0.png"]),
        (["0.jpg", "0.png"], ["0.png"]),
    ],
)
def test_a_file_is_not_taken_for_two_names(tmp_path, names, left):
    images = [IMAGE | {"id": n, "file_name": name} for n, name in enumerate(names)]
    images.append(IMAGE | {"id": 9, "file_name": "1.png"})
    boxes = [BOX | {"image_id": n, "bbox": [n, 16, 20, 32]} for n in (0, 1, 9)]
    data = read(tmp_path, coco(images, boxes), images=".")
    assert sorted(pixels(data)) == [*left, "1.png"]
    for name in left:
        assert pixels(data)[name] == [[float(names.index(name)), 16, names.index(name) + 20, 48]]
    assert len(data.errors) == 2 - len(left)
    assert all("is not only its closest match" in error for error in data.errors)


def test_a_directory_without_any_of_the_images_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as raised:
        read(tmp_path, coco([IMAGE, IMAGE | {"id": 2, "file_name": "7.png"}]), images="empty")
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'a.json'}: none of its 2 images is in ")
    assert str(tmp_path / "empty" / "0.png") in message and "`images`" in message


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("train/_annotations.coco.json", "train"),  # Roboflow
        ("train/labels.json", "train"),
        ("annotations/instances_default.json", "images/default"),  # CVAT, Datumaro
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_train2017.json", "train2017"),  # COCO
        ("result.json", "images"),  # Label Studio
        ("export/result.json", "export/images"),
        ("annotations/train.json", "images/train"),
        ("A.JSON", "."),
    ],
)
def test_without_the_key_images_they_are_looked_for_where_tools_put_them(tmp_path, file, images):
    draw(tmp_path / images, "x.png")
    data = write(tmp_path, coco([IMAGE | {"file_name": "x.png"}]), file)
    content = yaml.safe_load(data.read_text())
    for source in (content["train"], file):
        data.write_text(yaml.safe_dump({"train": source, "val": source}))
        result = read_split(read_data_config(data), "train")
        assert result.files.tolist() == [str(tmp_path / images / "x.png")] and not result.errors


def test_lvis_names_images_by_url(tmp_path):
    url = "http://images.cocodataset.org/train2017/000000391895.jpg"
    draw(tmp_path / "train2017", "000000391895.jpg")
    content = coco([{"id": 1, "coco_url": url, **SIZE}])
    for directory in (".", "train2017"):
        data = read(tmp_path, content, images=directory)
        assert pixels(data) == {"000000391895.jpg": [CORNERS]} and data.errors == ()
        assert any("coco_url" in note for note in data.notes)
