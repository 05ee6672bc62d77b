"""A kept scan is taken as long as nothing it looked at has changed, and only then."""

import os
import time

import numpy as np
import pytest
from PIL import Image

import data.cache
import data.formats
from data.config import read_data_config
from data.formats import read_split


@pytest.fixture
def scans(monkeypatch):
    """Every scan is worth keeping; how many pictures have been looked at."""
    monkeypatch.setattr(data.cache, "WORTH_KEEPING", -1.0)
    seen, look = [], data.formats.image_size
    monkeypatch.setattr(data.formats, "image_size", lambda file: (seen.append(file), look(file))[1])
    return seen


def read(path):
    return read_split(read_data_config(path), "train")


def same(a, b):
    arrays = ("files", "sizes", "offsets", "boxes", "labels", "crowd")
    return (
        a.names == b.names
        and a.errors == b.errors
        and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)
    )


def test_a_scan_is_kept_with_its_faults(tiny, scans):
    (tiny.parent / "labels" / "train" / "3.txt").write_text("7 0.5 0.5 0.2 0.2\n")
    first, count = read(tiny), len(scans)
    assert count == 12 and len(first.errors) == 1
    assert same(read(tiny), first) and len(scans) == count


def test_a_quick_scan_leaves_no_file(tiny):
    before = sorted(tiny.parent.rglob("*"))
    read(tiny)
    assert sorted(tiny.parent.rglob("*")) == before


def change_label(root):
    (root / "labels" / "train" / "3.txt").write_text("0 0.25 0.25 0.5 0.5\n")


def change_label_of_equal_size(root):
    path = root / "labels" / "train" / "3.txt"
    text = path.read_text()
    path.write_text(("1" if text[0] == "0" else "0") + text[1:])


def touch_picture(root):
    os.utime(root / "images" / "train" / "3.png", ns=(time.time_ns(), time.time_ns() + 10**9))


def replace_picture(root):
    Image.new("RGB", (77, 55)).save(root / "images" / "train" / "3.png")


def add_picture(root):
    Image.new("RGB", (50, 50)).save(root / "images" / "train" / "new.png")


def remove_picture(root):
    (root / "images" / "train" / "3.png").unlink()


def remove_label(root):
    (root / "labels" / "train" / "3.txt").unlink()


def change_classes(root):
    path = root / "data.yaml"
    path.write_text(path.read_text().replace("class1", "other"))


def damage(root):
    (kept,) = root.glob("train-*.npz")
    kept.write_bytes(kept.read_bytes()[:-100])


@pytest.mark.parametrize(
    "change",
    [change_label, change_label_of_equal_size, touch_picture, replace_picture, add_picture, remove_picture, remove_label,
     change_classes, damage],
)  # fmt: skip
def test_a_stale_or_damaged_cache_is_made_anew(tiny, scans, change):
    read(tiny)
    change(tiny.parent)
    scans.clear()
    found = read(tiny)
    assert scans, "nothing was looked at"
    scans.clear()
    assert same(read(tiny), found) and not scans
    (kept,) = tiny.parent.glob("train-*.npz")
    kept.unlink()
    assert same(read(tiny), found)


def test_a_coco_scan_is_kept_too(bccd, tmp_path, scans):
    text = (bccd / "annotations" / "val.json").read_text()
    (tmp_path / "val.json").write_text(text)
    (tmp_path / "data.yaml").write_text(
        f"train: &a {{annotations: val.json, images: {bccd / 'images' / 'val'}}}\nval: {{annotations: val.json}}\n"
    )
    first = read(tmp_path / "data.yaml")
    count = len(scans)
    assert count == 72 and same(read(tmp_path / "data.yaml"), first) and len(scans) == count
    (tmp_path / "val.json").write_text(text + "\n")
    assert same(read(tmp_path / "data.yaml"), first) and len(scans) == 2 * count


def test_a_place_that_cannot_be_written_costs_nothing_but_time(tiny, scans, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data.cache.tempfile, "mkstemp", refuse)
    assert same(read(tiny), read(tiny)) and len(scans) == 24
    assert not list(tiny.parent.glob("*.npz"))
