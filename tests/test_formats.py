"""Reading data sets: the YOLO layout in all its forms and COCO json give the same arrays; faults are named and counted."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data.config import read_data_config
from data.formats import label_file, read_split
from data.images import read_image
from utils.errors import UserError


def split(path, name="train"):
    return read_split(read_data_config(path), name)


def write_data(folder, **keys):
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def test_folder_list_and_glob_are_the_same(tiny):
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
        found = split(write_data(folder, train=source, val="images/val", names=names))
        order = np.argsort(found.files)
        assert found.files[order].tolist() == expected.files.tolist()
        assert sorted(found.boxes.tolist()) == sorted(expected.boxes.tolist())
    assert split(
        write_data(folder, train="images/train", val="images/val", names=dict(enumerate(names)))
    ).names == tuple(names)


def test_coco_json_gives_the_same_as_yolo(bccd, tmp_path):
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
        ours = split(write_data(tmp_path, train=coco, val=coco))
        yolo = split(
            write_data(
                tmp_path,
                path=str(bccd),
                train="images/train",
                val="images/val",
                names=list(names.values()),
            )
        )
        assert (
            ours.names == yolo.names and len(ours) == len(yolo) == 292 and len(ours.boxes) == 3941
        )
        order = np.argsort(ours.files)
        assert all(map(os.path.samefile, ours.files[order], yolo.files))
        assert (ours.sizes[order] == yolo.sizes).all()
        for i, j in enumerate(order):
            mine = np.c_[ours.labels, ours.boxes * 640][ours.offsets[j] : ours.offsets[j + 1]]
            theirs = np.c_[yolo.labels, yolo.boxes * 640][yolo.offsets[i] : yolo.offsets[i + 1]]
            in_order = [rows[np.lexsort(rows.round().T)] for rows in (mine, theirs)]
            np.testing.assert_allclose(*in_order, atol=0.01)


def test_coco_ids_need_not_be_dense_and_crowds_are_marked(tmp_path):
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
    found = split(write_data(tmp_path, train="labels.json", val="labels.json"))
    assert (
        found.names == ("first", "last")
        and found.labels.tolist() == [1, 0]
        and found.crowd.tolist() == [False, True]
    )
    np.testing.assert_allclose(found.boxes, [[0.1, 0.1, 0.3, 0.3], [0, 0, 0.1, 1]], atol=1e-6)
    assert len(found.errors) == 3 and all("labels.json" in fault for fault in found.errors)


def test_sources_that_call_their_classes_otherwise(tmp_path):
    """The same five boxes in each layout; car and truck become one class, trees are left out."""
    own = ["truck", "tree", "person", "car"]
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
    lines = [f"{own.index(name)} {(x + 5) / 100} 0.2 0.1 0.4" for name, x in boxes]
    (tmp_path / "labels" / "a.txt").write_text("\n".join(lines))
    annotations = [
        {"image_id": 1, "category_id": 5 + own.index(name), "bbox": [x, 0, 10, 20]}
        for name, x in boxes
    ]
    categories = [{"id": 5 + k, "name": name} for k, name in enumerate(own)]
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
    data = tmp_path / "data.yaml"
    for source in (
        f"{{images: images, names: {own}}}",
        "a.json",
        "{annotations: xml, images: images}",
    ):
        rest = "names: [person, vehicle]\nremap: {car: vehicle, truck: vehicle, tree: null}\n"
        data.write_text(f"train: {source}\nval: {source}\n{rest}")
        found = split(data)
        assert found.names == ("person", "vehicle") and found.errors == ()
        assert found.labels.tolist() == [1, 1, 0, 1], source
        expected = [[x / 100, 0, (x + 10) / 100, 0.4] for _, x in boxes if x != 10]
        np.testing.assert_allclose(found.boxes, expected, atol=1e-6)
    data.write_text(
        "train: a.json\nval: a.json\nnames: [person, car, truck]\n"
    )  # and nothing said of trees
    with pytest.raises(UserError, match=r"found the class .tree.*`remap`"):
        split(data)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 0.5 0.5 0.2", "4 fields"), ("0 0.5 0.5 0.2 0.2 0.9", "6 fields"), ("0 0.5 x 0.2 0.2", "five numbers"),
        ("2 0.5 0.5 0.2 0.2", "class 2"), ("-1 0.5 0.5 0.2 0.2", "class -1"), ("0.5 0.5 0.5 0.2 0.2", "class 0.5"),
        ("0 1.5 0.5 0.2 0.2", "1.5"), ("0 0.5 0.5 0 0.2", "above 0"), ("0 0.5 -0.1 0.2 0.2", "-0.1"),
        ("0 nan 0.5 0.2 0.2", "nan"),
    ],
)  # fmt: skip
def test_a_bad_label_line_is_named_and_the_rest_kept(tiny, line, says):
    path = tiny.parent / "labels" / "train" / "3.txt"
    before = split(tiny)
    path.write_text(f"{line}\n{path.read_text()}")
    found = split(tiny)
    assert found.boxes.tolist() == before.boxes.tolist()
    assert (
        len(found.errors) == 1 and f"{path}: line 1" in found.errors[0] and says in found.errors[0]
    )


def test_bad_pictures_are_named_and_left_out(tiny):
    images = tiny.parent / "images" / "train"
    (images / "0.png").write_bytes(b"")
    (images / "1.png").write_text("text")
    Image.new("RGB", (400, 400), "red").save(images / "cut.jpg")
    whole = (images / "cut.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    found = split(tiny)
    assert len(found) == 10 and len(found.errors) == 3
    for name in ("0.png", "1.png", "cut.jpg"):
        assert any(str(images / name) in fault for fault in found.errors)


def test_what_a_phone_adds_to_a_picture_is_no_fault(tiny):
    for kind in ("png", "jpg"):
        path = tiny.parent / "images" / "train" / f"moving.{kind}"
        Image.new("RGB", (30, 20), "red").save(path)
        path.write_bytes(path.read_bytes() + b"film" * 3000)
        assert read_image(str(path)).shape == (3, 20, 30)
    assert len(split(tiny)) == 14 and not split(tiny).errors


def test_postscript_is_no_picture_whatever_its_name(tiny):
    """Pillow would start an interpreter for it."""
    path = tiny.parent / "images" / "train" / "x.png"
    Image.new("RGB", (30, 20)).save(path, "EPS")
    found = split(tiny)
    assert len(found) == 12 and found.errors == (
        f"{path}: is no picture that can be read; left out",
    )
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image(str(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_pictures_end_no_process(kind, tmp_path):
    """torchvision 0.29's decoder of PNGs ended it with SIGSEGV."""
    rng = np.random.default_rng(0)
    path = tmp_path / "picture"
    Image.fromarray(rng.integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(path, kind)
    whole, outcomes = path.read_bytes(), set()
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(30, len(whole), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            outcomes.add(read_image(str(path)).shape[0])
        except UserError as error:
            outcomes.add(str(error).partition(": ")[2].partition(":")[0])
    assert outcomes <= {3, "cannot be decoded"} and outcomes


def test_a_decoder_that_fails_in_its_own_way_is_one_sentence(tiny):
    """A TIFF whose pixels begin at a fraction: Pillow raises TypeError."""
    path = tiny.parent / "images" / "train" / "x.tif"
    Image.new("RGB", (9, 7)).save(path)
    content = bytearray(path.read_bytes())
    tags = int.from_bytes(content[4:8], "little") + 2
    place = next(
        at
        for at in range(tags, len(content), 12)
        if content[at : at + 2] == (273).to_bytes(2, "little")
    )
    content[place + 2] = 5  # StripOffsets is a RATIONAL
    path.write_bytes(content)
    (fault,) = split(tiny).errors
    assert fault.startswith(f"{path}: cannot be read: ") and fault.endswith("; left out")
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image(str(path))


def test_labels_lie_where_the_yolo_layout_has_them():
    assert (
        str(label_file("a/images/b/images/c/d.x.jpg")).replace("\\", "/")
        == "a/images/b/labels/c/d.x.txt"
    )
    assert str(label_file("a/d.jpg")).replace("\\", "/") == "a/d.txt"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: images/train\nval: images/val\n", "names"),
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}\n", "gap"),
        ("train: nowhere\nval: images/val\nnames: [a, b]\n", "nowhere"),
        ("train: labels\nval: images/val\nnames: [a, b]\n", "no picture"),
        ("val: images/val\nnames: [a, b]\n", "'train' is missing"),
        ("train: [\n", "line"),
        ("- 1\n", "key: value"),
        ("train: images/train\ntrain: images/val\nval: images/val\nnames: [a, b]\n", "twice"),
        ("train: a.json\nval: images/val\nnames: [a, b]\n", "a.json"),
        (
            "train: images/train\nval: images/val\nnames: [a, b]\nremap: {a: b}\n",
            "remap: 'a' is itself one",
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
            "names of a source",
        ),
    ],
)
def test_what_is_wrong_with_a_data_file(tiny, text, says):
    tiny.write_text(text)
    with pytest.raises(UserError, match=says):
        split(tiny)


def test_a_data_set_without_any_box(tiny):
    shutil.rmtree(tiny.parent / "labels")
    with pytest.raises(UserError, match="no box"):
        split(tiny)


def png_bomb(path: Path, side: int = 60_000) -> None:
    """A PNG of a few kilobytes whose header says that it has `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_a_picture_that_no_memory_holds_is_told_by_its_header(tiny):
    path = tiny.parent / "images" / "train" / "bomb.png"
    png_bomb(path)
    assert path.stat().st_size < 2000
    found = split(tiny)
    assert len(found) == 12 and found.errors == (f"{path}: is too large to decode; left out",)
