"""The built-in dataset: the same from the same seed, in the YOLO layout, complete or absent."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from data import shapes
from data.config import read_data_config
from data.formats import read_split

SHAPES_YAML = Path(__file__).parents[1] / "data" / "shapes.yaml"


@pytest.fixture
def small_dataset(monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 12, "val": 4})


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_make_shapes_is_a_function_of_the_seed(small_dataset, tmp_path):
    assert shapes.make_shapes(tmp_path / "a") and shapes.make_shapes(tmp_path / "b")
    assert shapes.make_shapes(tmp_path / "c", seed=1)
    assert not shapes.make_shapes(tmp_path / "a")  # exists
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b and len(a) == 32
    # No duplicates, neither between train and val nor between seeds.
    assert len(set(a.values()) | set(c.values())) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_make_builtin_draws_a_valid_dataset(small_dataset, tmp_path):
    config = read_data_config(SHAPES_YAML).model_copy(update={"path": str(tmp_path / "shapes")})
    assert shapes.make_builtin(config) and not shapes.make_builtin(config)
    data = read_split(config, "train")
    assert data.errors == () and len(data) == 12 and len(data.class_names) == 5
    assert (data.boxes[:, 2:] > data.boxes[:, :2]).all() and len(np.unique(data.labels)) == 5


def test_make_builtin_ignores_other_datasets(tiny, tmp_path):
    config = read_data_config(tiny).model_copy(update={"path": str(tmp_path / "missing")})
    assert not shapes.make_builtin(config) and not (tmp_path / "missing").exists()


def test_make_shapes_failure_leaves_no_files(small_dataset, tmp_path, monkeypatch):
    def disk_full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(shapes.Image.Image, "save", disk_full)
    with pytest.raises(OSError, match="no space"):
        shapes.make_shapes(tmp_path / "shapes")
    assert list(tmp_path.iterdir()) == []
