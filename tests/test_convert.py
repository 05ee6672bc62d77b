"""Converted datasets: equal boxes to a hundredth of a pixel, and equal metrics of predictions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data import convert, describe
from data.config import read_data_config
from data.formats import read_split
from utils.metrics import evaluate

FORMATS = ("voc", "coco", "yolo")


def pixels(annotations):
    image = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    return annotations.boxes.astype(float) * np.tile(annotations.sizes[image], 2)


def by_name(annotations) -> dict[str, list[tuple]]:
    """Return each image's labels and boxes in pixels, in their order, by file name."""
    boxes = pixels(annotations)
    return {
        Path(file).name: [
            (int(annotations.labels[i]), *boxes[i].tolist())
            for i in range(annotations.offsets[k], annotations.offsets[k + 1])
        ]
        for k, file in enumerate(annotations.files.tolist())
    }


def run_convert(format: str, source: Path, folder: Path) -> Path:
    assert convert.main([format, str(source), str(folder)]) == 0
    return folder / "data.yaml"


def test_convert_keeps_boxes_and_metrics_in_every_format(bccd, tmp_path):
    sources = {
        format: run_convert(format, bccd / "data.yaml", tmp_path / format) for format in FORMATS
    }
    sources["back"] = run_convert(
        "yolo", run_convert("coco", sources["voc"], tmp_path / "again"), tmp_path / "back"
    )
    original = read_split(read_data_config(bccd / "data.yaml"), "val")
    rng = np.random.default_rng(0)
    boxes = pixels(original)
    noisy = boxes + rng.normal(0, 6, boxes.shape)
    noisy = np.concatenate((noisy[:, :2], np.maximum(noisy[:, 2:] - noisy[:, :2], 1)), axis=1)
    image = np.repeat(np.arange(len(original)), np.diff(original.offsets))
    detections = np.column_stack((image, noisy, rng.random(len(noisy)), original.labels))
    expected = by_name(original)
    for source in sources.values():
        a = read_split(read_data_config(source), "val")
        assert a.class_names == original.class_names and not a.errors
        actual = by_name(a)
        assert actual.keys() == expected.keys()
        for name, rows in expected.items():
            assert np.abs(np.array(actual[name]) - np.array(rows)).max() < 0.01
        order = {Path(file).name: k for k, file in enumerate(a.files.tolist())}
        reordered = detections.copy()
        reordered[:, 0] = [order[Path(original.files[int(i)]).name] for i in detections[:, 0]]
        result = evaluate(a.ground_truth(), reordered)
        if source == sources["voc"]:
            first = result.overall
        assert (
            result.overall == pytest.approx(first, abs=1e-4, nan_ok=True)
            and 0.1 < first["mAP50-95"] < 0.9
        )
    train = read_split(read_data_config(sources["voc"]), "train")
    assert len(train) == 292 and len(train.labels) == 3941


def write_voc(
    folder: Path, objects: str, name: str = "a", size: str = "<width>100</width><height>50</height>"
) -> Path:
    """Write a VOC dataset of one image, 100 x 50, with `objects`; return its data.yaml."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (100, 50)).save(folder / f"{name}.jpg")
    (folder / f"{name}.xml").write_text(
        f"<annotation><filename>{name}.jpg</filename><size>{size}</size>{objects}</annotation>"
    )
    source = {"annotations": ".", "images": "."}
    (folder / "data.yaml").write_text(
        yaml.safe_dump({"path": ".", "train": source, "val": source, "names": ["cat", "dog"]})
    )
    return folder / "data.yaml"


def voc_object(name: str, *corners: object) -> str:
    keys = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    bndbox = "".join(f"<{key}>{value}</{key}>" for key, value in keys)
    return f"<object><name>{name}</name><bndbox>{bndbox}</bndbox></object>"


def test_read_voc_counts_pixels_from_one(tmp_path):
    """A box over the whole 100 x 50 image is 1, 1, 100, 50; one that reaches out is clipped."""
    data = write_voc(
        tmp_path / "v",
        voc_object("dog", 1, 1, 100, 50)
        + voc_object("cat", 11, 21, 20, 30)
        + voc_object("cat", 51, 1, 140, 60),
    )
    annotations = read_split(read_data_config(data), "train")
    assert annotations.labels.tolist() == [1, 0, 0] and not annotations.errors
    assert np.allclose(
        pixels(annotations), [[0, 0, 100, 50], [10, 20, 20, 30], [50, 0, 100, 50]], atol=1e-4
    )


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (
            voc_object("cow", 1, 1, 9, 9),
            "a.xml: object 1: found the class 'cow' (known: ['cat', 'dog']; use `remap`",
        ),
        (
            voc_object("cat", 1, 1, 9),
            "a.xml: object 1: found the bndbox '1 1 9 ' (need four numbers)",
        ),
        (
            voc_object("cat", 1, 1, "nan", 9),
            "a.xml: object 1: found the bndbox '1 1 nan 9', which covers nothing",
        ),
        (
            voc_object("cat", 20, 1, 9, 9),
            "a.xml: object 1: found the bndbox '20 1 9 9', which covers nothing of the "
            "100x50 image",
        ),
    ],
)
def test_read_voc_names_file_and_object_of_errors(objects, message, tmp_path):
    annotations = read_split(
        read_data_config(write_voc(tmp_path / "v", voc_object("cat", 1, 1, 9, 9) + objects)),
        "train",
    )
    assert len(annotations.labels) == len(annotations.errors) == 1
    assert message in annotations.errors[0]


def test_read_voc_skips_invalid_xml(tmp_path):
    data = write_voc(tmp_path / "v", voc_object("cat", 1, 1, 9, 9))
    (tmp_path / "v" / "b.xml").write_text("<annotation><size>")
    (tmp_path / "v" / "c.xml").write_text("<annotations><image name='c.jpg'></image></annotations>")
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(12))
    (tmp_path / "v" / "d.xml").write_text(
        f"<!DOCTYPE x [{entities}]><annotation>&l11;</annotation>"
    )
    annotations = read_split(read_data_config(data), "train")
    assert len(annotations) == 1 and len(annotations.errors) == 3
    for name, error in zip("bcd", annotations.errors, strict=True):
        assert f"{name}.xml: not a VOC xml" in error


def test_convert_does_not_overwrite(tiny, tmp_path, capsys):
    run_convert("yolo", tiny, tmp_path / "new")
    before = sorted((tmp_path / "new").rglob("*"))
    assert convert.main(["coco", str(tiny), str(tmp_path / "new")]) == 2
    error = "already exists (need a new or an empty directory)"
    assert capsys.readouterr().err == f"data.convert: {tmp_path / 'new'}: {error}\n"
    assert sorted((tmp_path / "new").rglob("*")) == before
    assert convert.main(["tfrecord", str(tiny), str(tmp_path / "b")]) == 2


def test_convert_keeps_images_of_equal_name(tiny, tmp_path):
    """Train and val both have a 0.png; VOC keeps all images in one directory."""
    config = read_data_config(run_convert("voc", tiny, tmp_path / "voc"))
    for split, count in (("train", 12), ("val", 5)):
        before, after = read_split(read_data_config(tiny), split), read_split(config, split)
        assert len(after) == count and after.labels.tolist() == before.labels.tolist()
        for a, b in zip(before.files.tolist(), after.files.tolist(), strict=True):
            assert Path(a).read_bytes() == Path(b).read_bytes()


def test_test_split_without_images_or_labels_is_left_out_and_said(tiny, tmp_path, capsys):
    """Roboflow writes the key also without the images; competitions give no labels."""
    text = tiny.read_text()
    for number, test in enumerate(("../test/images", "images/test")):
        tiny.write_text(f"{text}test: {test}\n")
        (tiny.parent / "images" / "test").mkdir(exist_ok=True)
        Image.new("RGB", (80, 64)).save(tiny.parent / "images" / "test" / "q.png")
        assert describe.main([str(tiny.parent)]) == 0
        assert convert.main(["coco", str(tiny), str(tmp_path / f"new{number}")]) == 0
        out, err = capsys.readouterr()
        assert "val: 5 images" in out and "written to" in out
        assert err.count("test ignored") == 2 and "test: " in err
        assert "test" not in (tmp_path / f"new{number}" / "data.yaml").read_text()


@pytest.mark.parametrize(
    "name", ["none/page.jpg", "page", "page.docx", "images", "data.yaml/x.jpg"]
)
def test_describe_out_is_written_or_one_sentence(name, tiny, capsys):
    out = tiny.parent / name
    status = describe.main([str(tiny), "--out", str(out)])
    error = capsys.readouterr().err
    assert (status == 0) == out.is_file() == (name == "none/page.jpg")
    assert status == 0 or (status == 2 and error.startswith(f"data.describe: --out {out}: "))


def test_describe_prints_statistics_and_every_error(tiny, tmp_path, capsys):
    shutil.copytree(tiny.parent, tmp_path / "invalid")
    with (tmp_path / "invalid" / "labels" / "train" / "0.txt").open("a") as file:
        file.write("0 0.5 0.5 0 0\n" * 30)
    (tmp_path / "invalid" / "labels" / "val" / "1.txt").write_text("")
    assert (
        describe.main(
            [str(tmp_path / "invalid" / "data.yaml"), "--out", str(tmp_path / "grid.jpg")]
        )
        == 0
    )
    out, err = capsys.readouterr()
    count = len(read_split(read_data_config(tiny), "train").labels)
    assert f"train: 12 images, 0 of them without a box; {count} boxes" in out
    assert "val: 5 images, 1 of them without" in out
    assert "image width 80 to 80 px" in out and "class1" in out
    assert err.count("labels/train/0.txt: line") == 30
    assert "skipped 30 invalid images or annotations" in err
    with Image.open(tmp_path / "grid.jpg") as grid:
        assert min(grid.size) > 500


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("page", "need a file name that ends in .jpg, .jpeg, .png"),
        ("page.txt", "need a file name that ends in .jpg, .jpeg, .png"),
        ("images", "need a file name that ends in .jpg, .jpeg, .png"),
        ("folder.png", "is a directory (need a file name)"),
        ("data.yaml/page.jpg", "cannot be written: "),
    ],
)
def test_describe_out_that_cannot_be_drawn_is_one_sentence(out, message, tiny, capsys):
    (tiny.parent / "folder.png").mkdir()
    path = tiny.parent / out
    assert describe.main([str(tiny), "--out", str(path)]) == 2
    stdout, stderr = capsys.readouterr()
    assert stderr.startswith(f"data.describe: --out {path}: {message}") and stdout == ""
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["new/folder/page.jpg", "page.PNG", "page.jpeg"])
def test_describe_out_makes_its_directory(name, tiny):
    path = tiny.parent / name
    assert describe.main([str(tiny), "--out", str(path)]) == 0
    with Image.open(path) as image:
        assert image.format == ("PNG" if name.endswith("PNG") else "JPEG")


def test_convert_keeps_crowds_where_the_format_has_them(tmp_path, capsys):
    """COCO's iscrowd and VOC's difficult mean the same here; YOLO has neither."""
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    boxes = [[10, 10, 20, 20], [40, 10, 20, 20], [70, 10, 20, 20]]
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": k % 2}
        for k, box in enumerate(boxes)
    ]
    content = {"images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}]}
    content |= {"categories": [{"id": 1, "name": "cat"}], "annotations": annotations}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "data.yaml").write_text("train: a.json\nval: a.json\n")
    voc = run_convert("voc", tmp_path / "data.yaml", tmp_path / "voc")
    coco = run_convert("coco", voc, tmp_path / "coco")
    assert "does not support" not in capsys.readouterr().err
    for source in (tmp_path / "data.yaml", voc, coco):
        data = read_split(read_data_config(source), "train")
        assert data.crowd.tolist() == [False, True, False]
        np.testing.assert_allclose(pixels(data)[:, 0], [10, 40, 70], atol=0.01)
    yolo = run_convert("yolo", voc, tmp_path / "yolo")
    assert read_split(read_data_config(yolo), "train").crowd.tolist() == [False, False]
    skipped = "train: skipped 1 crowd box, which yolo does not support\n"
    assert skipped in capsys.readouterr().err
