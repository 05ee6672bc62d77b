"""A copy of a dataset for a peer that writes into the dataset's directory."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml


@contextmanager
def copy_dataset(data: Path) -> Iterator[Path]:
    """Copy the YOLO dataset of the data.yaml `data` to a temporary directory.

    Yields a data.yaml with an absolute `path`, which every tool understands.
    """
    config = yaml.safe_load(data.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "data"
        shutil.copytree(data.parent / config.get("path", "."), root)
        target = Path(directory) / "data.yaml"
        target.write_text(yaml.safe_dump(config | {"path": str(root)}), encoding="utf-8")
        yield target
