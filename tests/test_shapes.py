"""The built-in data set: the same from the same seed, in the YOLO layout, never half there."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from data import shapes
from data.config import read_data_config
from data.formats import read_split

SHAPES = Path(__file__).parents[1] / "data" / "shapes.yaml"


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 12, "val": 4})


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_a_seed_is_a_data_set(few, tmp_path):
    assert shapes.make_shapes(tmp_path / "a") and shapes.make_shapes(tmp_path / "b")
    assert shapes.make_shapes(tmp_path / "c", seed=1)
    assert not shapes.make_shapes(tmp_path / "a")  # it is there
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b and len(a) == 32
    assert (
        len(set(a.values()) | set(c.values())) == 64
    )  # nothing twice: neither in train and val, nor from another seed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_it_reads_without_a_fault(few, tmp_path):
    shapes.make_shapes(tmp_path / "shapes")
    config = read_data_config(SHAPES).model_copy(update={"path": str(tmp_path / "shapes")})
    found = read_split(config, "train")
    assert found.errors == () and len(found) == 12 and len(found.names) == 5
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all() and len(np.unique(found.labels)) == 5


def test_a_failure_leaves_nothing_behind(few, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(shapes.Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        shapes.make_shapes(tmp_path / "shapes")
    assert list(tmp_path.iterdir()) == []
