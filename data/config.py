"""What a data.yaml says: where its splits come from, what its classes are called, here and in its sources."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from data.shapes import make_shapes
from utils.errors import UserError
from utils.letterbox import MAX_IMGSZ
from utils.yamlfile import read_yaml

SPLITS = ("train", "val", "test")
Names = dict[int, str] | list[str]


class AnnotatedSource(BaseModel):
    """A COCO json and the folder its `file_name`s are in, a folder of Pascal VOC xml and that of their pictures, or, without
    `annotations`, pictures in the YOLO layout whose label files count classes by `names` of their own."""

    model_config = ConfigDict(extra="forbid", strict=True)
    annotations: str | None = None
    images: str = "."
    list: str | None = Field(
        None,
        description="VOC: a text file with a picture's name (no suffix) a line; without it all are taken",
    )
    names: Names | None = Field(
        None, description="YOLO layout: the classes that its label files number"
    )

    @property
    def coco(self) -> bool:
        """Whether it is COCO's."""
        return self.annotations is not None and self.annotations.endswith(".json")


Source = str | AnnotatedSource


class DataConfig(BaseModel):
    """What a data.yaml says. Keys of other tools (`nc`, `download`, ...) are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)
    path: str = Field(
        ".", description="folder that the other paths are relative to; itself relative to this file"
    )
    train: Source | list[Source]
    val: Source | list[Source]
    test: Source | list[Source] | None = None
    names: Names | None = Field(None, description="class names; COCO json brings its own")
    remap: dict[str, str | None] = Field(
        {}, description="what sources call a class: its name here, or null to leave it out"
    )
    make: Literal["shapes"] | None = Field(
        None, description="draw the built-in data set at `path` if it is not there"
    )
    imgsz: int = Field(
        640,
        ge=32,
        le=MAX_IMGSZ,
        description="--imgsz, if the command does not say; so for the next two",
    )
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(16, ge=1)


def read_data_config(path: Path) -> DataConfig:
    """The data.yaml at `path`, its `path` made absolute, its `names` a list, its `train`, `val` and `test` lists of sources.

    A built-in data set that is not there yet is drawn. Raises UserError when it cannot be read or is wrong.
    """
    config = read_yaml(path, DataConfig)
    names = _names(config.names, path)
    sources = {
        split: _sources(getattr(config, split), path)
        for split in SPLITS
        if getattr(config, split) is not None
    }
    if names is None and (
        config.remap
        or any(isinstance(s, str) or not s.coco for listed in sources.values() for s in listed)
    ):
        raise UserError(
            f"{path}: key 'names' is missing; only COCO json brings its own class names"
        )
    for old, new in config.remap.items():
        if old in names:
            raise UserError(
                f"{path}: remap: {old!r} is itself one of the names; allowed are what sources call other classes"
            )
        if new is not None and new not in names:
            raise UserError(
                f"{path}: remap: {old}: found {new!r}, allowed are null and the names {names}"
            )
    root = (path.parent / config.path).resolve()
    if config.make == "shapes" and make_shapes(root):
        print(f"the built-in data set was drawn into {root}")
    return config.model_copy(update={"path": str(root), "names": names, **sources})


def _names(names: Names | None, path: Path) -> list[str] | None:
    """Class names as a list."""
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(
                f"{path}: names: found the ids {sorted(names)}, need 0 to {len(names) - 1} without a gap"
            )
        names = [names[i] for i in range(len(names))]
    if names is not None and not names:
        raise UserError(f"{path}: names: found none, need at least one class")
    if twice := [name for name in names or () if names.count(name) > 1]:
        raise UserError(
            f"{path}: names: found {twice[0]!r} {names.count(twice[0])} times, need a name of its own for each class"
        )
    return names


def _sources(value: Source | list[Source], path: Path) -> list[Source]:
    """A list of sources, those that name a .json file as COCO's, their names as lists."""
    values = value if isinstance(value, list) else [value]
    values = [
        AnnotatedSource(annotations=v) if isinstance(v, str) and v.endswith(".json") else v
        for v in values
    ]
    for source in values:
        if isinstance(source, AnnotatedSource) and source.annotations and source.names:
            raise UserError(
                f"{path}: names of a source are for the YOLO layout; {source.annotations} has its own"
            )
    return [
        v if isinstance(v, str) else v.model_copy(update={"names": _names(v.names, path)})
        for v in values
    ]
