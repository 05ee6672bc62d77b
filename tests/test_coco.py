"""COCO json as tools and people write it: one reading is right and taken, or the fault is named."""

import json

import numpy as np
import pytest
from coco_files import BOX, CATEGORY, CORNERS, IMAGE, OTHER, coco, draw, only_note, read, write
from conftest import pixels
from pycocotools import mask as coco_mask

from data.config import read_data_config
from data.formats import original_ids, read_split
from utils.errors import UserError

# -------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize(
    ("image_id", "reference", "note"),
    [
        (1, 1.0, None),  # pandas
        (1.0, 1, None),
        ("a", "a", None),
        (1, "1", "image_id is a text"),
        ("1", 1, "image_id is a text"),
        ("000001", 1, "image_id is a text"),
        ("1", 1.0, "image_id is a text"),
        (-1, "-1", "image_id is a text"),
    ],
)
@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_ids_of_two_kinds_that_are_the_same(tmp_path, image_id, reference, note, key):
    images = [IMAGE, IMAGE | {"id": 7, "file_name": "1.png"}]
    categories = [CATEGORY, {"id": 7, "name": "b"}]
    ids = images if key == "image_id" else categories
    ids[0] = ids[0] | {"id": image_id}
    if isinstance(image_id, str):
        ids[1] = ids[1] | {"id": "z"}
    data = read(tmp_path, coco(images, [BOX | {key: reference}], categories))
    assert pixels(data)["0.png"] == [CORNERS] and data.labels.tolist() == [0]
    if note:
        only_note(data, 1, note.replace("image_id", key))
    else:
        assert data.notes == data.errors == ()


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"image_id": 9}, "image_id 9 is not among the images"),
        ({"image_id": "9"}, "image_id '9' is not among the images"),
        ({"image_id": True}, "found the image_id True"),
        ({"image_id": None}, "found the image_id None"),
        ({"image_id": float("nan")}, "found the image_id nan"),
        ({"image_id": [1]}, "found the image_id [1]"),
        ({"category_id": True}, "found the category_id True"),
        ({"category_id": None}, "found the category_id None"),
        ({"category_id": 1.5}, "found the category_id 1.5"),
        ({"category_id": "a"}, "found category_id 'a' (known: [1])"),
        ({"bbox": None}, "'bbox' is missing"),
        ({"bbox": []}, "'bbox' is missing"),
        ({"bbox": [1, 2, 3]}, "found the bbox [1, 2, 3] (need four numbers"),
        ({"bbox": [1, 2, 3, 4, 5]}, "found the bbox [1, 2, 3, 4, 5] (need"),
        ({"bbox": [1, 2, None, 4]}, "found the bbox [1, 2, None, 4]"),
        ({"bbox": ["a", 2, 3, 4]}, "found the bbox ['a', 2, 3, 4]"),
        ({"bbox": "1234"}, "found the bbox '1234'"),
        ({"bbox": {"x": 1}}, "found the bbox {'x': 1}"),
        ({"bbox": [1, 2, float("nan"), 4]}, "found the bbox [1, 2, nan, 4], which covers"),
        ({"bbox": [1, 2, float("inf"), 4]}, "found the bbox [1, 2, inf, 4], which covers"),
        ({"bbox": ["nan", 2, 3, 4]}, "found the bbox [nan, 2, 3, 4], which covers"),
        ({"bbox": [10, 10, -5, 5]}, "found the bbox [10, 10, -5, 5], which covers nothing"),
        ({"bbox": [10**400, 1, 2, 3]}, "found the bbox"),
        ({"iscrowd": 2}, "found iscrowd 2 (need 0 or 1)"),
        ({"iscrowd": "x"}, "found iscrowd 'x'"),
        ({"ignore": 3}, "found ignore 3"),
    ],
)
def test_an_invalid_annotation_is_named_and_the_others_are_read(tmp_path, annotation, reason):
    annotations = [BOX, BOX | {"bbox": [0, 0, 9, 9]} | annotation, OTHER]
    data = read(tmp_path, coco(annotations=annotations))
    assert pixels(data) == {"0.png": [CORNERS, [1, 2, 4, 6]]}
    (error,) = data.errors
    assert error.startswith(f"{tmp_path / 'a.json'}: annotation 1: {reason}"), error
    assert error.endswith("; box skipped")


def test_numbers_that_are_texts_are_read_and_said(tmp_path):
    boxes = [BOX | {"bbox": ["8", " 16.0", "20", 32]}, BOX | {"image_id": 1, "bbox": [0, 0, 5, 6]}]
    data = read(tmp_path, coco([IMAGE | {"width": "80"}], boxes))
    assert pixels(data) == {"0.png": [CORNERS, [0, 0, 5, 6]]}
    only_note(data, 1, "texts")


def test_boxes_are_cut_at_the_border_and_said(tmp_path):
    boxes = [[-5, 16, 20, 20], [8, 16, 90, 32], [-0.5, 0, 80.9, 64.4]]
    data = read(tmp_path, coco(annotations=[BOX | {"bbox": bbox} for bbox in boxes]))
    assert pixels(data) == {"0.png": [[0, 16, 15, 36], [8, 16, 80, 48], [0, 0, 80, 64]]}
    only_note(data, 2, "cut at its border")  # the last one is a rounding


def test_boxes_that_are_fractions_are_refused(tmp_path):
    """They would be read as boxes within the first pixel."""
    fractions = [BOX | {"bbox": [0.1, 0.25, 0.25, 0.5]}, OTHER | {"bbox": [0, 0, 1, 1]}]
    with pytest.raises(UserError, match=r"a.json: no number in any bbox is above 1: .*pixels"):
        read(tmp_path, coco(annotations=fractions))
    data = read(tmp_path, coco(annotations=[OTHER | {"bbox": [0, 0, 1, 1]}]))
    assert pixels(data) == {"0.png": [[0, 0, 1, 1]]}


# ------------------------------------------------------------------------------- categories


def test_categories_of_one_name_are_one_class(tmp_path):
    """Roboflow adds one with the name of the project; the class may have the same name."""
    project = {"id": 0, "name": "fish", "supercategory": "none"}
    classes = [project, {"id": 1, "name": "fish", "supercategory": "fish"}, {"id": 2, "name": "b"}]
    data = read(tmp_path, coco(categories=classes, annotations=[BOX, BOX | {"category_id": 2}]))
    assert data.class_names == ("fish", "b") and data.labels.tolist() == [0, 1]
    only_note(data, 1, "one class", "name of another one")
    config = read_data_config(tmp_path / "data.yaml")
    assert original_ids(config, "train", data) == ([1], [1, 2])  # not 0, which has no boxes


def test_two_categories_of_one_name_with_boxes_are_one_class(tmp_path):
    categories = [CATEGORY, {"id": 5, "name": "a "}]
    data = read(
        tmp_path, coco(categories=categories, annotations=[BOX, OTHER | {"category_id": 5}])
    )
    assert data.class_names == ("a",) and data.labels.tolist() == [0, 0]
    only_note(data, 1, "one class")


def test_roboflows_project_is_no_class(tmp_path):
    parent = {"id": 0, "name": "fruit-x1y2", "supercategory": "none"}
    child = CATEGORY | {"supercategory": "fruit-x1y2"}
    data = read(tmp_path, coco(categories=[parent, child]))
    assert data.class_names == ("a",) and data.labels.tolist() == [0]
    only_note(data, 1, "no class")
    with_boxes = coco(categories=[parent, child], annotations=[BOX, BOX | {"category_id": 0}])
    data = read(tmp_path, with_boxes)
    assert data.class_names == ("fruit-x1y2", "a") and data.notes == ()


def test_a_category_without_boxes_needs_no_name_in_the_data_yaml(tmp_path):
    data = write(tmp_path, coco(categories=[{"id": 0, "name": "project"}, CATEGORY]))
    data.write_text(data.read_text() + "names: [b, a]\n")
    draw(tmp_path, "0.png")
    result = read_split(read_data_config(data), "train")
    assert result.class_names == ("b", "a") and result.labels.tolist() == [1] and not result.errors


def test_names_that_differ_in_case_are_two_classes_and_said(tmp_path):
    categories = [CATEGORY, {"id": 2, "name": "A"}, {"id": 3, "name": "b"}]
    data = read(tmp_path, coco(categories=categories))
    assert data.class_names == ("a", "A", "b")
    only_note(data, 2, "only in case or spaces", "['a', 'A']")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([CATEGORY, CATEGORY | {"name": "b"}], "'a' and 'b' have the same id 1"),
        ([CATEGORY, {"id": 2}], "'name' of category 1 is missing"),
        ([CATEGORY, {"name": "b"}], "'id' of category 1 is missing"),
        ([CATEGORY, {"id": 2, "name": 7}], "a category's name is not a string: found 7"),
        ([CATEGORY, {"id": None, "name": "b"}], "found the category's id None"),
        ([CATEGORY, {"id": "2", "name": "b"}], "numbers and texts"),
    ],
)
def test_invalid_categories_are_one_sentence(tmp_path, categories, message):
    with pytest.raises(UserError) as raised:
        read(tmp_path, coco(categories=categories))
    assert str(raised.value).startswith(f"{tmp_path / 'a.json'}: ") and message in str(raised.value)


def test_a_category_that_is_listed_twice_is_one(tmp_path):
    data = read(tmp_path, coco(categories=[CATEGORY, CATEGORY]))
    assert data.class_names == ("a",) and data.errors == data.notes == ()


# ------------------------------------------------------------------ crowds and segmentations


@pytest.mark.parametrize(
    ("flags", "crowd"),
    [
        ({"iscrowd": 1}, True),
        ({"iscrowd": True}, True),
        ({"iscrowd": 1.0}, True),
        ({"iscrowd": "1"}, True),
        ({"iscrowd": "0"}, False),
        ({"iscrowd": "false"}, False),
        ({"iscrowd": None}, False),
        ({"ignore": 0, "iscrowd": 0}, False),
        ({"ignore": 1, "iscrowd": 0}, True),
        ({"ignore": True}, True),
        ({"ignore": "0"}, False),
    ],
)
def test_crowd_flags(tmp_path, flags, crowd):
    data = read(tmp_path, coco(annotations=[BOX | flags, OTHER]))
    assert data.crowd.tolist() == [crowd, False] and data.errors == ()
    if crowd:
        only_note(data, 1, "`ignore`" if "ignore" in flags else "`iscrowd`")
    else:
        assert data.notes == ()


def mask(*boxes: tuple[int, int, int, int], width: int = 80, height: int = 64) -> np.ndarray:
    pixels = np.zeros((height, width), np.uint8, order="F")
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 1
    return pixels


def compressed(pixels: np.ndarray) -> dict:
    rle = coco_mask.encode(pixels)
    return rle | {"counts": rle["counts"].decode()}


def uncompressed(pixels: np.ndarray) -> dict:
    flat = np.concatenate(([0], pixels.ravel(order="F"), [2]))
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    counts = np.diff(np.concatenate(([0], edges)))
    counts = [0, *counts[1:].tolist()] if pixels[0, 0] and counts[0] == 0 else counts.tolist()
    return {"size": [*pixels.shape], "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "corners"),
    [
        ([[8, 16, 28, 16, 20, 48]], CORNERS),
        ([8, 16, 28, 16, 20, 48], CORNERS),
        ([[8, 16, 28, 16, 20, 17], [9, 40, 10, 48, 11, 41]], CORNERS),
        ([[[8, 16], [28, 16], [20, 48]]], CORNERS),
        ([[8, 16], [28, 16], [20, 48]], CORNERS),
        ([["8", "16", "28", "16", "20", "48"]], CORNERS),
        ([[-0.5, 16, 28, 16, 20, 64.9]], [0, 16, 28, 64]),
        (compressed(mask((8, 16, 28, 48))), CORNERS),
        (compressed(mask((8, 16, 9, 17), (27, 40, 28, 48))), CORNERS),
        (uncompressed(mask((8, 16, 28, 48))), CORNERS),
        (compressed(mask((0, 0, 80, 64))), [0, 0, 80, 64]),
        (uncompressed(mask((0, 0, 80, 64))), [0, 0, 80, 64]),
        (compressed(mask((3, 0, 4, 64))), [3, 0, 4, 64]),
        (compressed(mask((79, 63, 80, 64))), [79, 63, 80, 64]),
    ],
)
@pytest.mark.parametrize("bbox", [{}, {"bbox": None}, {"bbox": []}])
def test_without_a_bbox_the_box_is_that_of_the_segmentation(tmp_path, segmentation, corners, bbox):
    annotation = {key: BOX[key] for key in ("image_id", "category_id")}
    annotations = [BOX | {"bbox": [0, 0, 9, 9], "segmentation": [[1, 1, 2, 2, 3, 9]]}]
    annotations += [annotation | {"segmentation": segmentation} | bbox, OTHER]
    data = read(tmp_path, coco(annotations=annotations))
    assert pixels(data) == {"0.png": [[0, 0, 9, 9], corners, [1, 2, 4, 6]]}
    only_note(data, 1, "segmentation")


def test_a_crowd_with_a_mask_and_no_bbox(tmp_path):
    crowd = {"image_id": 1, "category_id": 1, "iscrowd": 1}
    crowd["segmentation"] = compressed(mask((8, 16, 28, 48)))
    data = read(tmp_path, coco(annotations=[OTHER, crowd]))
    assert pixels(data) == {"0.png": [[1, 2, 4, 6], CORNERS]} and not data.errors
    assert data.crowd.tolist() == [False, True] and len(data.notes) == 2


def test_a_train_split_of_crowds_only_is_refused(tmp_path):
    """datumaro writes `iscrowd: 1` for every mask, of crowds or not."""
    content = coco(annotations=[BOX | {"iscrowd": 1}, OTHER | {"ignore": 1}])
    with pytest.raises(UserError, match=r"train: all boxes in .* are crowds \(2 of `iscrowd`"):
        read(tmp_path, content)
    assert len(read_split(read_data_config(tmp_path / "data.yaml"), "val").crowd) == 2


def test_boxes_of_masks_are_those_of_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    annotations, expected = [], []
    for number in range(80):
        pixels_of_mask = mask()
        for _ in range(rng.integers(1, 4)):
            x, y = rng.integers(0, 70), rng.integers(0, 54)
            pixels_of_mask[y : y + rng.integers(1, 40), x : x + rng.integers(1, 40)] ^= 1
        pixels_of_mask[rng.integers(64), rng.integers(80)] = 1
        encode = compressed if number % 2 else uncompressed
        segmentation = encode(pixels_of_mask)
        annotations.append({"image_id": 1, "category_id": 1, "segmentation": segmentation})
        expected.append(coco_mask.toBbox(coco_mask.encode(pixels_of_mask)).tolist())
    data = read(tmp_path, coco(annotations=annotations))
    result = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in pixels(data)["0.png"]]
    assert len({*map(tuple, expected)}) == 80  # boxes that are equal would be one
    assert np.allclose(result, expected, atol=0.01) and data.errors == ()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "as segmentation nothing"),
        ([[8, 16, 28, 48]], "as segmentation 4 numbers"),
        ([[8, 16, 28, 16, 20]], "neither polygons"),
        ([[8, 16, 28], [16, 20, 48]], "neither polygons"),
        ([[8, 16, 28, 16, 20, None]], "not finite"),
        ([[8, 16, 28, 16, 20, "x"]], "neither polygons"),
        ("text", "neither polygons"),
        ([{"x": 1}], "neither polygons"),
        ({"size": [64, 80]}, "invalid RLE"),
        ({"size": [64, 80], "counts": [1, 2]}, "invalid RLE"),
        ({"size": [64, 80], "counts": [5120]}, "without a pixel"),
        ({"size": [64, 80], "counts": "~~~"}, "invalid RLE"),
        ({"size": [64, 80], "counts": "o" * 99}, "invalid RLE"),
        ({"size": [0, 0], "counts": []}, "invalid RLE"),
        (
            compressed(mask((1, 2, 3, 4), width=64, height=80)),
            "a mask of 64x80 for an image of 80x64",
        ),
    ],
)
def test_without_a_bbox_an_invalid_segmentation_is_named(tmp_path, segmentation, reason):
    annotation = {"image_id": 1, "category_id": 1, "segmentation": segmentation}
    data = read(tmp_path, coco(annotations=[BOX, annotation]))
    assert pixels(data) == {"0.png": [CORNERS]}
    (error,) = data.errors
    assert error.startswith(f"{tmp_path / 'a.json'}: annotation 1: ") and reason in error, error


# ---------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_json_may_have_a_byte_order_mark_or_another_encoding(tmp_path, encoding, newline):
    text = json.dumps(coco(categories=[{"id": 1, "name": "\u732b"}]), indent=1, ensure_ascii=False)
    draw(tmp_path, "0.png")
    data = write(tmp_path, "")
    (tmp_path / "a.json").write_bytes(text.replace("\n", newline).encode(encoding))
    result = read_split(read_data_config(data), "train")
    assert result.class_names == ("\u732b",) and pixels(result) == {"0.png": [CORNERS]}


DETECTION = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
LABELME = {"version": "5.5.0", "shapes": [], "imagePath": "0.png", "imageData": None}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ([DETECTION], ["a list of detections (COCO results)"]),
        ([{"image": "a.jpg", "annotations": []}], ["CreateML"]),
        ([{"id": 1, "data": {}, "annotations": []}], ["Label Studio", "export as COCO"]),
        ([], ["a list"]),
        (LABELME, ["labelme"]),
        ({"a.jpg123": {"filename": "a.jpg", "regions": []}}, ["VGG Image Annotator"]),
        ({"type": "FeatureCollection", "features": []}, ["GeoJSON"]),
        ("", ["empty"]),
        ("  \n", ["empty"]),
        ("version https://git-lfs.github.com/spec/v1\n", ["Git LFS"]),
        ("<!DOCTYPE html>", ["HTML"]),
        ("{", ["cut off", "line 1 column 2"]),
        (json.dumps(coco())[:-20], ["cut off"]),
        (json.dumps(coco())[:-5], ["cut off"]),
        ('{"images": [}', ["line 1 column 13"]),
        ({"images": [IMAGE], "categories": [CATEGORY]}, ["'annotations' is missing", "test set"]),
        ({"images": [IMAGE], "annotations": [BOX]}, ["'categories' is missing"]),
        (coco() | {"images": {"1": IMAGE}}, ["images is not a list of objects"]),
        (coco(annotations=[BOX, None]), ["annotations is not a list", "None as entry 1"]),
        (coco(annotations=[{"image_id": 1, "caption": "x"}]), ["captions"]),
        (coco(annotations=[{"image_id": 1, "segments_info": []}]), ["panoptic"]),
    ],
)
def test_a_json_that_is_none_of_coco_is_named(tmp_path, content, parts):
    with pytest.raises(UserError) as raised:
        read(tmp_path, content)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'a.json'}: ") and "\n" not in message
    assert all(part in message for part in parts), message


def test_a_json_in_another_encoding_is_one_sentence(tmp_path):
    data = write(tmp_path, "")
    (tmp_path / "a.json").write_bytes(json.dumps(coco()).encode().replace(b'"a"', b'"caf\xe9"'))
    with pytest.raises(UserError, match=r"0xe9, which is not valid in utf-8 \(save .* as UTF-8\)"):
        read_split(read_data_config(data), "train")


def test_what_is_found_does_not_come_from_a_cache_of_other_keys(tmp_path, monkeypatch):
    """The same source with and without the key `images`."""
    monkeypatch.setattr("data.cache.MIN_SCAN_SECONDS", -1.0)
    draw(tmp_path / "export", "x.png")
    draw(tmp_path, "0.png")
    content = coco([IMAGE | {"file_name": "x.png"}])
    data = write(tmp_path, content, "export/a.json")
    assert len(read_split(read_data_config(data), "train")) == 1
    data = write(tmp_path, content, "export/a.json", images=".")
    with pytest.raises(UserError, match="its image is not in"):
        read_split(read_data_config(data), "train")
    assert [*tmp_path.glob("*.npz")]
