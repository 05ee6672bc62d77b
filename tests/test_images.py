"""Decoded images, kept in memory or on disk: the same pixels, and never outdated ones."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bitwise_equal, load_state, write_tiny
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import data.images
import train
from data.images import ImageStore, read_image, unique_stem
from utils.errors import UserError

QUICK = ["--imgsz", "64", "--batch-size", "4", "--epochs", "2", "--device", "cpu", "--noplots"]


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.jpg", quality=95
        )
    return [str(tmp_path / f"{i}.jpg") for i in range(6)]


@pytest.fixture
def decoded(monkeypatch):
    """A list to which every file that is decoded from here on is appended."""
    decoded_files = []

    def recording_read_image(file, channels):
        decoded_files.append(file)
        return read_image(file, channels)

    monkeypatch.setattr(data.images, "read_image", recording_read_image)
    return decoded_files


def store_of(files, **options):
    """Return a store of the images that `files` writes."""
    sizes = np.array([[30, 20 + i] for i in range(len(files))])
    return ImageStore(files, sizes, **options)


def test_image_store_keeps_images_up_to_cache_bytes(files, decoded):
    store = store_of(files, cache_bytes=3 * 30 * (20 + 21))
    for _ in range(2):
        for i, file in enumerate(files):
            assert torch.equal(store[i], read_image(file))
    assert [decoded.count(file) for file in files] == [1, 1, 2, 2, 2, 2]


def test_image_store_preload_keeps_all_images_in_memory(files, decoded, monkeypatch):
    store = store_of(files)
    store.preload()
    decoded.clear()
    assert all(torch.equal(store[i], read_image(file)) for i, file in enumerate(files))
    assert not decoded
    monkeypatch.setattr(data.images, "available_memory", lambda: 100_000)
    message = (
        r"--cache ram: needs 0\.0 GB of memory, and 0\.0 GB are available \(use --cache disk\)"
    )
    with pytest.raises(UserError, match=message):
        ImageStore(files, np.full((6, 2), 100)).preload(num_processes=2)


def test_image_store_returns_an_image_that_has_changed_its_size(files):
    store = store_of(files, cache_bytes=10**6)
    Image.new("RGB", (8, 9), "red").save(files[2])
    for _ in range(2):
        assert torch.equal(store[2], read_image(files[2])) and store[2].shape == (3, 9, 8)


class Decoded(Dataset):
    """The images of a store, which workers read."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, index):
        return self.store[index]


def test_image_store_workers_share_what_they_decode(files, decoded):
    """What either of two workers has decoded the main process need not decode again."""
    store = store_of(files, cache_bytes=10**6)
    expected = [read_image(file) for file in files]
    images = list(DataLoader(Decoded(store), None, num_workers=2))
    assert all(map(torch.equal, images, expected))
    assert all(map(torch.equal, (store[i] for i in range(6)), expected))
    assert not decoded


def test_image_store_on_disk_is_valid_until_the_image_changes(files, decoded):
    store_of(files, on_disk=True).fill_disk(range(6))
    decoded.clear()
    store = store_of(files, on_disk=True)
    assert all(torch.equal(store[i], read_image(file)) for i, file in enumerate(files))
    assert not decoded
    Image.new("RGB", (8, 9), "red").save(files[2])  # another image of the same name
    assert store[2].shape == (3, 9, 8) and store[2].shape == (3, 9, 8)
    assert decoded == [files[2]]
    for corrupted in (b"", b"no array", b"\x93NUMPY\x01\x00v\x00{"):
        Path(f"{files[3]}.npy").write_bytes(corrupted)
        mtime = Path(files[3]).stat().st_mtime_ns
        os.utime(f"{files[3]}.npy", ns=(mtime, mtime))
        assert torch.equal(store[3], read_image(files[3]))
    Path(files[4]).unlink()
    with pytest.raises(UserError, match=r"4\.jpg"):
        store[4]


def test_image_store_on_disk_in_unwritable_directory(files, monkeypatch):
    """Filling the cache is an error; reading an image works all the same."""

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(data.images, "atomic_write", refuse)
    store = store_of(files, on_disk=True)
    message = r"--cache disk: .*0\.jpg\.npy: cannot be written: Permission denied"
    with pytest.raises(UserError, match=message):
        store.fill_disk(range(6))
    assert torch.equal(store[0], read_image(files[0]))


def test_unique_stem_numbers_repeated_names():
    used_stems: set[str] = set()
    stems = [unique_stem(file, used_stems) for file in ("a/x.jpg", "b/x.png", "x.jpg", "y.jpg")]
    assert stems == ["x", "x_2", "x_3", "y"] == sorted(used_stems)


def test_train_with_either_cache_gives_the_same_weights(tmp_path):
    data_yaml = write_tiny(tmp_path / "tiny")
    arguments = ["--data", str(data_yaml), *QUICK, "--project", str(tmp_path)]
    for name, options in (
        ("none", []),
        ("ram", ["--cache", "ram", "--workers", "2"]),
        ("disk", ["--cache", "disk"]),
    ):
        assert train.main([*arguments, *options, "--name", name]) == 0
    assert bitwise_equal(
        load_state(tmp_path / "none")["model"], load_state(tmp_path / "ram")["model"]
    )
    assert bitwise_equal(
        load_state(tmp_path / "none")["model"], load_state(tmp_path / "disk")["model"]
    )
    assert len([*data_yaml.parent.rglob("*.npy")]) == 17
