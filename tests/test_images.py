"""Decoded pictures, kept in memory or beside their files: the same pixels, and none that are out of date."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same, weights, write_tiny
from PIL import Image

import train
from data.images import ImageStore, read_image
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


def decodes(monkeypatch) -> list[str]:
    """The files that are decoded from here on."""
    seen = []
    monkeypatch.setattr(pictures, "read_image", lambda file: seen.append(file) or read_image(file))
    return seen


def test_memory_keeps_what_fits(files, monkeypatch):
    seen = decodes(monkeypatch)
    kept = ImageStore(files, memory=3 * 30 * (20 + 21))
    for _ in range(2):
        for i, file in enumerate(files):
            assert torch.equal(kept[i], read_image(file))
    assert [seen.count(file) for file in files] == [1, 1, 2, 2, 2, 2]


def test_all_in_memory(files, monkeypatch):
    kept = ImageStore(files)
    kept.preload(np.array([[30, 20 + i] for i in range(6)]))
    seen = decodes(monkeypatch)
    assert all(torch.equal(kept[i], read_image(file)) for i, file in enumerate(files)) and not seen
    monkeypatch.setattr(pictures, "free_memory", lambda: 100_000)
    with pytest.raises(
        UserError, match=r"--cache ram: takes 0\.0 GB, and 0\.0 GB are free; --cache disk"
    ):
        ImageStore(files).preload(np.full((6, 2), 100), processes=2)


def test_beside_the_files(files, monkeypatch):
    ImageStore(files, beside=True).preload(np.zeros((6, 2)))
    seen = decodes(monkeypatch)
    kept = ImageStore(files, beside=True)
    assert all(torch.equal(kept[i], read_image(file)) for i, file in enumerate(files)) and not seen
    Image.new("RGB", (8, 9), "red").save(files[2])  # another picture of the same name
    assert kept[2].shape == (3, 9, 8) and kept[2].shape == (3, 9, 8) and seen == [files[2]]
    for broken in (b"", b"no array", b"\x93NUMPY\x01\x00v\x00{"):
        Path(f"{files[3]}.npy").write_bytes(broken)
        time = Path(files[3]).stat().st_mtime_ns
        os.utime(f"{files[3]}.npy", ns=(time, time))
        assert torch.equal(kept[3], read_image(files[3]))
    Path(files[4]).unlink()
    with pytest.raises(UserError, match=r"4\.jpg"):
        kept[4]


def test_a_folder_that_cannot_be_written(files, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pictures, "whole_file", refused)
    kept = ImageStore(files, beside=True)
    with pytest.raises(
        UserError, match=r"--cache disk: .*0\.jpg\.npy: cannot be written: Permission denied"
    ):
        kept.preload(np.zeros((6, 2)))
    assert torch.equal(kept[0], read_image(files[0]))


def test_a_run_has_the_same_weights_with_either_and_with_none(tmp_path):
    data = write_tiny(tmp_path / "tiny")
    for name, options in (
        ("none", []),
        ("ram", ["--cache", "ram", "--workers", "2"]),
        ("disk", ["--cache", "disk"]),
    ):
        assert (
            train.main(
                ["--data", str(data), *QUICK, *options, "--project", str(tmp_path), "--name", name]
            )
            == 0
        )
    assert same(weights(tmp_path / "none")["model"], weights(tmp_path / "ram")["model"])
    assert same(weights(tmp_path / "none")["model"], weights(tmp_path / "disk")["model"])
    assert len([*data.parent.rglob("*.npy")]) == 17
