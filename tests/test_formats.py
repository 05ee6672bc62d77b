"""Reading datasets: all formats give the same arrays; invalid data is named and skipped."""

import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data.config import read_data_config
from data.formats import read_split
from data.images import read_image
from utils.errors import UserError


def split(path, name="train"):
    return read_split(read_data_config(path), name)


def label_box_rows(annotations, image):
    rows = slice(annotations.offsets[image], annotations.offsets[image + 1])
    return np.c_[annotations.labels, annotations.boxes * 640][rows]


def write_data(folder, **keys):
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def test_read_split_directory_list_and_glob_are_equal(tiny):
    folder = tiny.parent
    files = sorted(str(p) for p in (folder / "images" / "train").iterdir())
    (folder / "list.txt").write_text("\n".join(files) + "\n\n")
    (folder / "relative.txt").write_text("\n".join(f"images/train/{i}.png" for i in range(12)))
    expected = split(tiny)
    assert len(expected) == 12 and len(expected.boxes) == len(expected.labels) > 12
    names = ["class0", "class1"]
    for source in (
        "list.txt",
        "images/train/*.png",
        "relative.txt",
        ["images/train/?.png", "images/train/1?.png"],
    ):
        data = split(write_data(folder, train=source, val="images/val", names=names))
        assert sorted(data.files) == expected.files.tolist()
        assert sorted(data.boxes.tolist()) == sorted(expected.boxes.tolist())
    assert split(
        write_data(folder, train="images/train", val="images/val", names=dict(enumerate(names)))
    ).class_names == tuple(names)


def test_read_split_coco_equals_yolo(bccd, tmp_path):
    names = {0: "RBC", 1: "WBC", 2: "Platelets"}
    for coco in (
        {
            "annotations": str(bccd / "annotations" / "train.json"),
            "images": str(bccd / "images" / "train"),
        },
        [
            {
                "annotations": str(bccd / "annotations" / "train.json"),
                "images": str(bccd / "images" / "train"),
            }
        ],
    ):
        coco_data = split(write_data(tmp_path, train=coco, val=coco))
        yolo_data = split(
            write_data(
                tmp_path,
                path=str(bccd),
                train="images/train",
                val="images/val",
                names=list(names.values()),
            )
        )
        assert coco_data.class_names == yolo_data.class_names
        assert len(coco_data) == len(yolo_data) == 292 and len(coco_data.boxes) == 3941
        coco_files = np.array(coco_data.files.tolist())
        order = np.argsort(coco_files)
        assert all(map(os.path.samefile, coco_files[order], yolo_data.files))
        assert (coco_data.sizes[order] == yolo_data.sizes).all()
        for i, j in enumerate(order):
            rows = [label_box_rows(coco_data, j), label_box_rows(yolo_data, i)]
            in_order = [r[np.lexsort(r.round().T)] for r in rows]
            np.testing.assert_allclose(*in_order, atol=0.01)


def test_read_split_coco_sparse_ids_and_crowds(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    (tmp_path / "labels.json").write_text(
        json.dumps(
            {
                "images": [{"id": 7, "file_name": "a.png", "width": 100, "height": 50}],
                "categories": [{"id": 90, "name": "last"}, {"id": 3, "name": "first"}],
                "annotations": [
                    {
                        "id": 1,
                        "image_id": 7,
                        "category_id": 90,
                        "bbox": [10, 5, 20, 10],
                        "iscrowd": 0,
                    },
                    {
                        "id": 2,
                        "image_id": 7,
                        "category_id": 3,
                        "bbox": [-5, 0, 15, 50],
                        "iscrowd": 1,
                    },
                    {"id": 3, "image_id": 7, "category_id": 3, "bbox": [10, 10, 0, 10]},
                    {"id": 4, "image_id": 7, "category_id": 4, "bbox": [10, 10, 5, 10]},
                    {"id": 5, "image_id": 8, "category_id": 3, "bbox": [10, 10, 5, 10]},
                ],
            }
        )
    )
    data = split(write_data(tmp_path, train="labels.json", val="labels.json"))
    assert data.class_names == ("first", "last")
    assert data.labels.tolist() == [1, 0] and data.crowd.tolist() == [False, True]
    np.testing.assert_allclose(data.boxes, [[0.1, 0.1, 0.3, 0.3], [0, 0, 0.1, 1]], atol=1e-6)
    assert len(data.errors) == 3 and all("labels.json" in error for error in data.errors)


def test_read_split_remaps_classes_of_every_format(tmp_path):
    """The same five boxes in each format; car and truck become one class, trees are skipped."""
    source_names = ["truck", "tree", "person", "car"]
    boxes = [
        ("car", 0),
        ("tree", 10),
        ("truck", 20),
        ("person", 30),
        ("car", 40),
    ]  # class, left edge; 10 x 20 pixels of 100 x 50
    for folder in ("images", "labels", "xml"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (100, 50)).save(tmp_path / "images" / "a.png")
    lines = [f"{source_names.index(name)} {(x + 5) / 100} 0.2 0.1 0.4" for name, x in boxes]
    (tmp_path / "labels" / "a.txt").write_text("\n".join(lines))
    annotations = [
        {"image_id": 1, "category_id": 5 + source_names.index(name), "bbox": [x, 0, 10, 20]}
        for name, x in boxes
    ]
    categories = [{"id": 5 + k, "name": name} for k, name in enumerate(source_names)]
    images = [{"id": 1, "file_name": "images/a.png", "width": 100, "height": 50}]
    coco = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "a.json").write_text(json.dumps(coco))
    corners = "<xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>20</ymax>"
    objects = [
        f"<object><name>{name}</name><bndbox>{corners.format(x + 1, x + 10)}</bndbox></object>"
        for name, x in boxes
    ]
    head = "<filename>a.png</filename><size><width>100</width><height>50</height></size>"
    (tmp_path / "xml" / "a.xml").write_text(f"<annotation>{head}{''.join(objects)}</annotation>")
    path = tmp_path / "data.yaml"
    for source in (
        f"{{images: images, names: {source_names}}}",
        "a.json",
        "{annotations: xml, images: images}",
    ):
        rest = "names: [person, vehicle]\nremap: {car: vehicle, truck: vehicle, tree: null}\n"
        path.write_text(f"train: {source}\nval: {source}\n{rest}")
        data = split(path)
        assert data.class_names == ("person", "vehicle") and data.errors == ()
        assert data.labels.tolist() == [1, 1, 0, 1], source
        expected = [[x / 100, 0, (x + 10) / 100, 0.4] for _, x in boxes if x != 10]
        np.testing.assert_allclose(data.boxes, expected, atol=1e-6)
    path.write_text("train: a.json\nval: a.json\nnames: [person, car, truck]\n")  # no tree
    with pytest.raises(UserError, match=r"found the class .tree.*`remap`"):
        split(path)


def write_coco(path, width, height, bbox):
    """Write a COCO json about one image, turned.jpg, of the stated size with one box."""
    content = {
        "images": [{"id": 1, "file_name": "turned.jpg", "width": width, "height": height}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": bbox}],
    }
    path.write_text(json.dumps(content))


def write_voc(path, width, height, bbox):
    """Write the same as Pascal VOC xml."""
    x, y, w, h = bbox
    edges = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in edges.items())
    path.write_text(
        f"<annotation><filename>turned.jpg</filename>"
        f"<size><width>{width}</width><height>{height}</height></size>"
        f"<object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    )


@pytest.mark.parametrize("write", [write_coco, write_voc])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_follow_the_exif_orientation_of_the_image(orientation, write, tmp_path):
    """A bright rectangle is where the box is, whether the box is in the stored or shown frame."""
    pixels = np.zeros((64, 160, 3), np.uint8)
    pixels[8:24, 96:152] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    shown = read_image(str(tmp_path / "turned.jpg"))[0].numpy() > 128
    ys, xs = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    box = [int(v) for v in (xs[0], ys[0], xs[-1] + 1 - xs[0], ys[-1] + 1 - ys[0])]
    (tmp_path / "xml").mkdir()
    path = tmp_path / ("a.json" if write is write_coco else "xml/a.xml")
    source = "a.json" if write is write_coco else {"annotations": "xml"}
    frames = [(*shown.shape[::-1], box)]
    if orientation > 4:  # otherwise both frames have the same size, and boxes are as shown
        frames.append((160, 64, [96, 8, 56, 16]))
    for frame in frames:
        write(path, *frame)
        data = split(write_data(tmp_path, train=source, val=source, names=["cat"]))
        assert not data.errors and data.sizes.tolist() == [[*shown.shape[::-1]]]
        found = data.boxes[0] * np.tile(data.sizes[0], 2)
        x, y, w, h = box
        np.testing.assert_allclose(found, [x, y, x + w, y + h], atol=1e-3)


@pytest.mark.parametrize("write", [write_coco, write_voc])
@pytest.mark.parametrize(("width", "height"), [(80, 32), (64, 160), (4000, 64)])
def test_stated_size_that_is_not_the_image_size_is_an_error(width, height, write, tmp_path):
    """A resized copy, sides swapped although EXIF does not turn the image, another image."""
    Image.new("RGB", (160, 64)).save(tmp_path / "turned.jpg")
    (tmp_path / "xml").mkdir()
    path = tmp_path / ("a.json" if write is write_coco else "xml/a.xml")
    write(path, width, height, [10, 8, 20, 16])
    source = "a.json" if write is write_coco else {"annotations": "xml"}
    message = (
        f"{tmp_path / 'turned.jpg'}: found 160x64 pixels, but {path} expects {width}x{height}; "
        "image skipped"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        split(write_data(tmp_path, train=source, val=source, names=["cat"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "4 fields"),
        ("0 0.5 0.5 0.2 0.2 0.9", "6 fields"),
        ("0 0.5 x 0.2 0.2", "five numbers"),
        ("2 0.5 0.5 0.2 0.2", "class 2"),
        ("-1 0.5 0.5 0.2 0.2", "class -1"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5"),
        ("0 1.5 0.5 0.2 0.2", "1.5"),
        ("0 0.5 0.5 0 0.2", "above 0"),
        ("0 0.5 -0.1 0.2 0.2", "-0.1"),
        ("0 nan 0.5 0.2 0.2", "nan"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1", "8 fields"),
        ("0 0.1 0.1 0.5 x 0.5 0.5", "7 numbers"),
        ("0 0.1 0.1 0.5 0.1 0.5 1.5", "1.5 (allowed: 0 to 1"),
        ("0 0.1 0.1 nan 0.1 0.5 0.5", "nan"),
        ("0 0.1 0.2 0.5 0.2 0.7 0.2", "above 0"),
    ],
)
def test_read_split_skips_and_names_invalid_label_line(tiny, line, message):
    path = tiny.parent / "labels" / "train" / "3.txt"
    before = split(tiny)
    path.write_text(f"{line}\n{path.read_text()}")
    data = split(tiny)
    assert data.boxes.tolist() == before.boxes.tolist()
    (error,) = data.errors
    assert error.startswith(f"{path}: line 1: ") and message in error
    assert error.endswith("; box skipped")


@pytest.mark.parametrize(
    ("line", "corners"),
    [
        ("1 0.25 0.5 0.75 0.125 0.5 0.875", (0.25, 0.125, 0.75, 0.875)),  # a triangle
        ("1 0 0 1 0 1 1 0 1", (0, 0, 1, 1)),  # the whole image
        ("1 0.5 0.5 0.5 0.625 0.75 0.5 0.625 0.25 0.375 0.375", (0.375, 0.25, 0.75, 0.625)),
    ],
)
def test_read_split_takes_the_box_of_a_polygon(tiny, line, corners):
    path = tiny.parent / "labels" / "train" / "3.txt"
    path.write_text(f"{line}\n0 0.5 0.5 0.25 0.25\n")
    data = split(tiny)
    image = [Path(str(file)).stem for file in data.files].index("3")
    rows = slice(data.offsets[image], data.offsets[image + 1])
    assert data.boxes[rows].tolist() == [[*corners], [0.375, 0.375, 0.625, 0.625]]
    assert data.labels[rows].tolist() == [1, 0] and data.errors == ()


def test_read_split_skips_and_names_invalid_images(tiny):
    images = tiny.parent / "images" / "train"
    (images / "0.png").write_bytes(b"")
    (images / "1.png").write_text("text")
    Image.new("RGB", (400, 400), "red").save(images / "cut.jpg")
    content = (images / "cut.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(content[: len(content) // 2])
    data = split(tiny)
    assert len(data) == 10 and len(data.errors) == 3
    for name in ("0.png", "1.png", "cut.jpg"):
        assert any(str(images / name) in error for error in data.errors)


def test_read_split_accepts_image_with_appended_video(tiny):
    for kind in ("png", "jpg"):
        path = tiny.parent / "images" / "train" / f"moving.{kind}"
        Image.new("RGB", (30, 20), "red").save(path)
        path.write_bytes(path.read_bytes() + b"video" * 3000)
        assert read_image(str(path)).shape == (3, 20, 30)
    assert len(split(tiny)) == 14 and not split(tiny).errors


def test_read_split_rejects_postscript_named_png(tiny):
    """Pillow would start Ghostscript for it."""
    path = tiny.parent / "images" / "train" / "x.png"
    Image.new("RGB", (30, 20)).save(path, "EPS")
    data = split(tiny)
    assert len(data) == 12
    assert data.errors == (f"{path}: not an image in a supported format; skipped",)
    with pytest.raises(UserError, match="not an image in a supported format"):
        read_image(str(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_read_image_corrupted_bytes_do_not_crash(kind, tmp_path):
    """torchvision 0.29's PNG decoder ends the process with SIGSEGV."""
    rng = np.random.default_rng(0)
    path = tmp_path / "image"
    Image.fromarray(rng.integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(path, kind)
    content, outcomes = path.read_bytes(), set()
    for _ in range(100):
        corrupted = bytearray(content)
        for position in rng.integers(30, len(content), 4):
            corrupted[position] = rng.integers(256)
        path.write_bytes(corrupted)
        try:
            outcomes.add(read_image(str(path)).shape[0])
        except UserError as error:
            outcomes.add(str(error).partition(": ")[2].partition(":")[0])
    assert outcomes <= {3, "cannot be decoded"} and outcomes


def test_read_split_unusual_decoder_exception_is_one_message(tiny):
    """A TIFF whose StripOffsets is a RATIONAL: Pillow raises TypeError."""
    path = tiny.parent / "images" / "train" / "x.tif"
    Image.new("RGB", (9, 7)).save(path)
    content = bytearray(path.read_bytes())
    tags = int.from_bytes(content[4:8], "little") + 2
    strip_offsets = next(
        position
        for position in range(tags, len(content), 12)
        if content[position : position + 2] == (273).to_bytes(2, "little")
    )
    content[strip_offsets + 2] = 5  # the type RATIONAL
    path.write_bytes(content)
    (error,) = split(tiny).errors
    assert error.startswith(f"{path}: cannot be read: ") and error.endswith("; skipped")
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nval: images/val\n", "names"),
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}\n", "gap"),
        ("train: nowhere\nval: images/val\nnames: [a, b]\n", "nowhere"),
        ("train: labels\nval: images/val\nnames: [a, b]\n", "no images found"),
        ("val: images/val\nnames: [a, b]\n", "'train' is missing"),
        ("train: [\n", "line"),
        ("- 1\n", "key: value"),
        (
            "train: images/train\ntrain: images/val\nval: images/val\nnames: [a, b]\n",
            "duplicate key",
        ),
        ("train: a.json\nval: images/val\nnames: [a, b]\n", "a.json"),
        (
            "train: images/train\nval: images/val\nnames: [a, b]\nremap: {a: b}\n",
            "remap: 'a' is one of the names",
        ),
        (
            "train: images/train\nval: images/val\nnames: [a, b]\nremap: {c: d}\n",
            "remap: c: found 'd'",
        ),
        ("train: a.json\nval: a.json\nremap: {c: null}\n", "'names' is missing"),
        (
            "train: {images: images/train, names: [a, c]}\nval: images/val\nnames: [a, b]\n",
            "found the class 'c'",
        ),
        (
            "train: {annotations: a.json, names: [a]}\nval: images/val\nnames: [a, b]\n",
            "train: names: found .* for a.json, which has its own",
        ),
    ],
)
def test_read_data_config_error_messages(tiny, text, message):
    tiny.write_text(text)
    with pytest.raises(UserError, match=message):
        split(tiny)


def test_read_split_without_boxes_is_an_error(tiny):
    shutil.rmtree(tiny.parent / "labels")
    with pytest.raises(UserError, match="no boxes"):
        split(tiny)


def png_bomb(path: Path, size: int = 60_000) -> None:
    """Write a PNG of a few kilobytes whose header claims `size` x `size` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_read_split_rejects_decompression_bomb_by_header(tiny):
    path = tiny.parent / "images" / "train" / "bomb.png"
    png_bomb(path)
    assert path.stat().st_size < 2000
    data = split(tiny)
    assert len(data) == 12 and data.errors == (f"{path}: too large to decode; skipped",)


def test_read_split_voc_image_set_and_its_alias(tmp_path):
    """`image_set` chooses among the xml files; `list` means the same."""
    (tmp_path / "xml").mkdir()
    for name in "ab":
        Image.new("RGB", (100, 50)).save(tmp_path / f"{name}.jpg")
        box = "<xmin>1</xmin><ymin>1</ymin><xmax>50</xmax><ymax>50</ymax>"
        (tmp_path / "xml" / f"{name}.xml").write_text(
            "<annotation><size><width>100</width><height>50</height></size>"
            f"<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        )
    (tmp_path / "set.txt").write_text("b 1\n")
    for key in ("image_set", "list"):
        source = {"annotations": "xml", key: "set.txt"}
        data = split(write_data(tmp_path, train=source, val=source, names=["cat"]))
        assert [Path(file).name for file in data.files] == ["b.jpg"] and len(data.boxes) == 1


def test_annotations_messages_count_errors_with_the_right_plural(tiny):
    path = tiny.parent / "labels" / "train" / "3.txt"
    path.write_text("9 .5 .5 .2 .2\n0 .5 .5 .2 .2\n")
    assert split(tiny).messages("train")[1:] == ["train: skipped 1 invalid image or annotation"]
    path.write_text("9 .5 .5 .2 .2\n" * 30 + "0 .5 .5 .2 .2\n")
    messages = split(tiny).messages("train")
    assert len(messages) == 21
    assert messages[20] == "train: skipped 30 invalid images or annotations"
    assert len(split(tiny).messages("train", limit=30)) == 31


def test_read_data_config_does_not_draw_the_builtin_dataset(tmp_path):
    (tmp_path / "data.yaml").write_text(
        "path: shapes\ntrain: images/train\nval: images/val\nnames: [a]\nmake: shapes\n"
    )
    assert read_data_config(tmp_path / "data.yaml").make == "shapes"
    assert not (tmp_path / "shapes").exists()
