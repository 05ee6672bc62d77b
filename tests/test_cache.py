"""A cached scan is used as long as nothing that it read has changed, and only then."""

import os
import time

import numpy as np
import pytest
from PIL import Image

import data.cache
import data.formats.scan
from data.config import read_data_config
from data.formats import read_split


@pytest.fixture
def scans(monkeypatch):
    """Cache every scan, however fast; return a list to which each image read is appended."""
    monkeypatch.setattr(data.cache, "MIN_SCAN_SECONDS", -1.0)
    files, image_size = [], data.formats.scan.image_size

    def recording_image_size(file, channels):
        files.append(file)
        return image_size(file, channels)

    monkeypatch.setattr(data.formats.scan, "image_size", recording_image_size)
    return files


def read(path):
    return read_split(read_data_config(path), "train")


def same(a, b):
    arrays = ("sizes", "offsets", "boxes", "labels", "crowd")
    return (
        a.class_names == b.class_names
        and a.errors == b.errors
        and a.files.tolist() == b.files.tolist()
        and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)
    )


def test_cached_scan_keeps_errors(tiny, scans):
    (tiny.parent / "labels" / "train" / "3.txt").write_text("7 .5 .5 .2 .2\n0 .5 .5 .2 .2\n")
    first, count = read(tiny), len(scans)
    assert count == 12 and len(first.errors) == 1
    assert same(read(tiny), first) and len(scans) == count


def test_cached_fast_scan_writes_no_file(tiny):
    before = sorted(tiny.parent.rglob("*"))
    read(tiny)
    assert sorted(tiny.parent.rglob("*")) == before


def change_label(root):
    (root / "labels" / "train" / "3.txt").write_text("0 0.25 0.25 0.5 0.5\n")


def change_label_of_equal_size(root):
    path = root / "labels" / "train" / "3.txt"
    text = path.read_text()
    path.write_text(("1" if text[0] == "0" else "0") + text[1:])


def touch_image(root):
    os.utime(root / "images" / "train" / "3.png", ns=(time.time_ns(), time.time_ns() - 10**9))


def replace_image(root):
    Image.new("RGB", (77, 55)).save(root / "images" / "train" / "3.png")


def add_image(root):
    Image.new("RGB", (50, 50)).save(root / "images" / "train" / "new.png")


def remove_image(root):
    (root / "images" / "train" / "3.png").unlink()


def remove_label(root):
    (root / "labels" / "train" / "3.txt").unlink()


def change_classes(root):
    path = root / "data.yaml"
    path.write_text(path.read_text().replace("class1", "other"))


def truncate_cache(root):
    (cache_file,) = root.glob("train-*.npz")
    cache_file.write_bytes(cache_file.read_bytes()[:-100])


@pytest.mark.parametrize(
    "change",
    [
        change_label,
        change_label_of_equal_size,
        touch_image,
        replace_image,
        add_image,
        remove_image,
        remove_label,
        change_classes,
        truncate_cache,
    ],
)
def test_cached_outdated_or_corrupted_file_is_replaced(tiny, scans, change):
    read(tiny)
    change(tiny.parent)
    scans.clear()
    rescanned = read(tiny)
    assert scans, "the outdated cache was used"
    scans.clear()
    assert same(read(tiny), rescanned) and not scans
    (cache_file,) = tiny.parent.glob("train-*.npz")
    cache_file.unlink()
    assert same(read(tiny), rescanned)


def test_cached_coco_scan(bccd, tmp_path, scans):
    text = (bccd / "annotations" / "val.json").read_text()
    (tmp_path / "val.json").write_text(text)
    (tmp_path / "data.yaml").write_text(
        f"train: {{annotations: val.json, images: {bccd / 'images' / 'val'}}}\n"
        "val: {annotations: val.json}\n"
    )
    first = read(tmp_path / "data.yaml")
    count = len(scans)
    assert count == 72 and same(read(tmp_path / "data.yaml"), first) and len(scans) == count
    (tmp_path / "val.json").write_text(text + "\n")
    assert same(read(tmp_path / "data.yaml"), first) and len(scans) == 2 * count


def test_cached_unwritable_directory_is_scanned_again(tiny, scans, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data.cache, "atomic_write", refuse)
    assert same(read(tiny), read(tiny)) and len(scans) == 24
    assert not list(tiny.parent.glob("*.npz"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_cache_file_can_be_read_by_whom_the_umask_allows(tiny, scans, umask, mode):
    previous = os.umask(umask)
    try:
        read(tiny)
    finally:
        os.umask(previous)
    (cache_file,) = tiny.parent.glob("train-*.npz")
    assert cache_file.stat().st_mode & 0o777 == mode


def test_scan_of_a_file_with_a_date_in_the_future_is_cached(tmp_path, monkeypatch):
    """As of a camera whose clock is wrong: no run would ever find a cache."""
    monkeypatch.setattr(data.cache, "MIN_SCAN_SECONDS", -1.0)
    file, counts = tmp_path / "image.jpg", []
    file.touch()
    os.utime(file, (time.time(), time.time() + 1e7))

    def scan():
        counts.append(1)
        return {"count": np.array([1])}, [str(file)]

    for _ in range(2):
        data.cache.cached(tmp_path / "x.npz", "key", scan)
    assert len(counts) == 1


def test_scan_of_a_file_that_changes_meanwhile_is_not_cached(tmp_path, monkeypatch):
    """As when somebody draws boxes while a run starts: the next one must not miss them."""
    monkeypatch.setattr(data.cache, "MIN_SCAN_SECONDS", -1.0)
    label, counts = tmp_path / "label.txt", []
    label.write_text("1")

    def scan():
        count = int(label.read_text())
        counts.append(count)
        if count == 1:
            time.sleep(0.05)  # longer than a tick of the file system's clock
            label.write_text("2")
        return {"count": np.array([count])}, [str(label)]

    cached = [data.cache.cached(tmp_path / "x.npz", "key", scan)["count"][0] for _ in range(3)]
    assert cached == [1, 2, 2] and counts == [1, 2]
