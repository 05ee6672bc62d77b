"""COCO json files for tests, and how they are read."""

import json
from pathlib import Path

import yaml
from PIL import Image

from data.config import read_data_config
from data.formats import read_split

SIZE = {"width": 80, "height": 64}
IMAGE = {"id": 1, "file_name": "0.png", **SIZE}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 16, 20, 32]}
CORNERS = [8, 16, 28, 48]
OTHER = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
CATEGORY = {"id": 1, "name": "a"}


def draw(folder: Path, *names: str, size: tuple[int, int] = (80, 64)) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)


def write(folder: Path, content: object, file: str = "a.json", **source: object) -> Path:
    """Write the json `file`, and a data.yaml with it for both splits, which is returned."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    source = {"annotations": file, **source}
    data = folder / "data.yaml"
    data.write_text(yaml.safe_dump({"train": source, "val": source}))
    return data


def read(folder: Path, content: object, **source: object):
    draw(folder, "0.png", "1.png")
    return read_split(read_data_config(write(folder, content, **source)), "train")


def coco(images=(IMAGE,), annotations=(BOX,), categories=(CATEGORY,), **others: object) -> dict:
    lists = {"images": images, "annotations": annotations, "categories": categories}
    return {key: [*entries] for key, entries in lists.items()} | others


def only_note(data, count: int, *parts: str) -> None:
    (note,) = data.notes
    assert note.endswith(f": {count}") and all(part in note for part in parts), note
    assert data.errors == ()
