"""The three formats say the same: boxes to a hundredth of a pixel, and the same figures for the same predictions."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data import convert, describe
from data.config import read_data_config
from data.formats import read_split
from utils.metrics import evaluate, to_coco_gt

FORMATS = ("voc", "coco", "yolo")


def pixels(annotations):
    image = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    return annotations.boxes.astype(float) * np.tile(annotations.sizes[image], 2)


def by_name(annotations) -> dict[str, list[tuple]]:
    """Of each picture, by its file's name, the labels and boxes in pixels, in their order."""
    boxes = pixels(annotations)
    return {
        Path(file).name: [
            (int(annotations.labels[i]), *boxes[i].tolist())
            for i in range(annotations.offsets[k], annotations.offsets[k + 1])
        ]
        for k, file in enumerate(annotations.files.tolist())
    }


def converted(kind: str, source: Path, folder: Path) -> Path:
    assert convert.main([kind, str(source), str(folder)]) == 0
    return folder / "data.yaml"


def test_bccd_in_all_three_forms(bccd, tmp_path):
    sources = {kind: converted(kind, bccd / "data.yaml", tmp_path / kind) for kind in FORMATS}
    sources["back"] = converted(
        "yolo", converted("coco", sources["voc"], tmp_path / "again"), tmp_path / "back"
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
        found = read_split(read_data_config(source), "val")
        assert found.names == original.names and not found.errors
        mine = by_name(found)
        assert mine.keys() == expected.keys()
        for name, rows in expected.items():
            assert np.abs(np.array(mine[name]) - np.array(rows)).max() < 0.01
        a = found
        order = {Path(file).name: k for k, file in enumerate(a.files.tolist())}
        moved = detections.copy()
        moved[:, 0] = [order[Path(original.files[int(i)]).name] for i in detections[:, 0]]
        result = evaluate(
            to_coco_gt(a.sizes, a.offsets, a.boxes, a.labels, a.crowd, a.names), moved
        )
        if source == sources["voc"]:
            first = result.overall
        assert result.overall == pytest.approx(first, abs=1e-4) and 0.1 < first["mAP50-95"] < 0.9
    train = read_split(read_data_config(sources["voc"]), "train")
    assert len(train) == 292 and len(train.labels) == 3941


def voc(
    folder: Path, objects: str, name: str = "a", size: str = "<width>100</width><height>50</height>"
) -> Path:
    """A VOC set of one picture, 100 x 50, with `objects`; its data.yaml."""
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


def thing(name: str, *corners: object) -> str:
    keys = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    return f"<object><name>{name}</name><bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in keys)}</bndbox></object>"


def test_voc_counts_pixels_from_one(tmp_path):
    """A box over the whole 100 x 50 picture is 1, 1, 100, 50; one that lies in it or reaches out is cut."""
    data = voc(
        tmp_path / "v",
        thing("dog", 1, 1, 100, 50) + thing("cat", 11, 21, 20, 30) + thing("cat", 51, 1, 140, 60),
    )
    found = read_split(read_data_config(data), "train")
    assert found.labels.tolist() == [1, 0, 0] and not found.errors
    assert np.allclose(
        pixels(found), [[0, 0, 100, 50], [10, 20, 20, 30], [50, 0, 100, 50]], atol=1e-4
    )


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (
            thing("cow", 1, 1, 9, 9),
            "a.xml: object 1: found the name 'cow', known are ['cat', 'dog']; the box is left out",
        ),
        (thing("cat", 1, 1, 9), "a.xml: object 1: found the bndbox '1 1 9 ', need four numbers"),
        (
            thing("cat", 1, 1, "nan", 9),
            "a.xml: object 1: found the bndbox '1 1 nan 9', which covers nothing",
        ),
        (
            thing("cat", 20, 1, 9, 9),
            "a.xml: object 1: found the bndbox '20 1 9 9', which covers nothing of the 100x50 picture",
        ),
    ],
)
def test_faults_in_voc_name_the_file_and_the_object(objects, message, tmp_path):
    found = read_split(
        read_data_config(voc(tmp_path / "v", thing("cat", 1, 1, 9, 9) + objects)), "train"
    )
    assert len(found.labels) == 1 and len(found.errors) == 1 and message in found.errors[0]


def test_voc_files_that_cannot_be_used(tmp_path):
    data = voc(tmp_path / "v", thing("cat", 1, 1, 9, 9))
    (tmp_path / "v" / "b.xml").write_text("<annotation><size>")
    (tmp_path / "v" / "c.xml").write_text(
        "<annotation><size><width>0</width><height>9</height></size></annotation>"
    )
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(12))
    (tmp_path / "v" / "d.xml").write_text(f"<!DOCTYPE x [{laughs}]><annotation>&l11;</annotation>")
    found = read_split(read_data_config(data), "train")
    assert len(found) == 1 and len(found.errors) == 3
    for name, fault in zip("bcd", found.errors, strict=True):
        assert f"{name}.xml: is no VOC xml with the picture's size" in fault


def test_what_is_there_is_not_overwritten(tiny, tmp_path, capsys):
    converted("yolo", tiny, tmp_path / "new")
    before = sorted((tmp_path / "new").rglob("*"))
    assert convert.main(["coco", str(tiny), str(tmp_path / "new")]) == 2
    assert (
        capsys.readouterr().err
        == f"data.convert: {tmp_path / 'new'}: is there already; need a new folder, or an empty one\n"
    )
    assert sorted((tmp_path / "new").rglob("*")) == before
    assert convert.main(["tfrecord", str(tiny), str(tmp_path / "b")]) == 2


def test_pictures_of_one_name_stay_two(tiny, tmp_path):
    """Train and val both have a 0.png; VOC keeps all pictures in one folder."""
    found = read_data_config(converted("voc", tiny, tmp_path / "voc"))
    for split, count in (("train", 12), ("val", 5)):
        before, after = read_split(read_data_config(tiny), split), read_split(found, split)
        assert len(after) == count and after.labels.tolist() == before.labels.tolist()
        for a, b in zip(before.files.tolist(), after.files.tolist(), strict=True):
            assert Path(a).read_bytes() == Path(b).read_bytes()


def test_describe(tiny, tmp_path, capsys):
    shutil.copytree(tiny.parent, tmp_path / "faulty")
    with (tmp_path / "faulty" / "labels" / "train" / "0.txt").open("a") as file:
        file.write("0 0.5 0.5 0 0\n" * 30)
    (tmp_path / "faulty" / "labels" / "val" / "1.txt").write_text("")
    assert (
        describe.main([str(tmp_path / "faulty" / "data.yaml"), "--out", str(tmp_path / "page.jpg")])
        == 0
    )
    out, err = capsys.readouterr()
    count = len(read_split(read_data_config(tiny), "train").labels)
    assert (
        f"train: 12 pictures, 0 of them without a box; {count} boxes" in out
        and "val: 5 pictures, 1 of them without" in out
    )
    assert "80 to 80 px wide" in out and "class1" in out
    assert err.count("labels/train/0.txt: line") == 30 and "30 faults in all" in err  # every one
    with Image.open(tmp_path / "page.jpg") as page:
        assert min(page.size) > 500
