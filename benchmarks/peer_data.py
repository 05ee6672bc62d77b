"""A copy of a data set for a peer that writes into what it reads, with a data.yaml that every tool understands."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml


@contextmanager
def copied(data: Path) -> Iterator[Path]:
    """The data.yaml of a temporary copy of the YOLO data set behind `data`, with an absolute `path`."""
    config = yaml.safe_load(data.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        shutil.copytree(data.parent / config.get("path", "."), root)
        target = Path(folder) / "data.yaml"
        target.write_text(yaml.safe_dump(config | {"path": str(root)}), encoding="utf-8")
        yield target
