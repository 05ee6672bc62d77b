"""The data.yaml: where each split's images and annotations are, and what the classes are called."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from utils.errors import UserError
from utils.letterbox import MAX_IMGSZ
from utils.yamlfile import read_yaml

SPLITS = ("train", "val", "test")
Names = dict[int, str] | list[str]


class AnnotatedSource(BaseModel):
    """A source of images that is more than a path.

    One of: a COCO json and the directory of its `file_name`s (without `images` it is looked for
    beside the json and the data.yaml); a directory of Pascal VOC xml and the directory of its
    images; a directory of labelme's json files, one per image, and that of its images (without
    `images` they are where each json says); or, without `annotations`, images in the YOLO layout
    whose label files use class numbers of their own, named by `names`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    annotations: str | None = None
    images: str = "."
    image_set: str | None = Field(
        None,
        validation_alias=AliasChoices("image_set", "list"),
        description="VOC: text file with one image name (no suffix) per line; all images if absent",
    )
    names: Names | None = Field(
        None, description="YOLO layout: names of the class numbers in its label files"
    )

    @property
    def is_coco(self) -> bool:
        """Whether the annotations are a COCO json."""
        return self.annotations is not None and self.annotations.lower().endswith(".json")

    @property
    def is_voc(self) -> bool:
        """Whether the annotations are a directory, of Pascal VOC xml or of labelme's json."""
        return self.annotations is not None and not self.is_coco

    @property
    def has_images(self) -> bool:
        """Whether the directory of the images is given."""
        return "images" in self.model_fields_set


Source = str | AnnotatedSource


class DataConfig(BaseModel):
    """The content of a data.yaml. Keys of other tools (`nc`, `download`, ...) are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)
    path: str = Field(
        ".",
        description="directory that the other paths are relative to; itself relative to the file",
    )
    train: Source | list[Source]
    val: Source | list[Source]
    test: Source | list[Source] | None = None
    names: Names | None = Field(None, description="class names; optional if all sources are COCO")
    remap: dict[str, str | None] = Field(
        {}, description="class name in a source -> class name here, or null to skip the class"
    )
    make: Literal["shapes"] | None = Field(
        None, description="draw the built-in dataset into `path` if it does not exist"
    )
    imgsz: int = Field(640, ge=32, le=MAX_IMGSZ, description="default of --imgsz for this dataset")
    epochs: int = Field(100, ge=1, description="default of --epochs")
    batch_size: int = Field(16, ge=1, description="default of --batch-size")


def read_data_config(path: Path) -> DataConfig:
    """Read the data.yaml `path`.

    Returns the config with `path` absolute, `names` a list (None if every source is COCO and the
    key is absent), and `train`, `val` and `test` lists of sources. Raises UserError if the file
    cannot be read or is invalid.
    """
    config = read_yaml(path, DataConfig)
    names = _names_list(config.names, path)
    splits = {
        split: _source_list(getattr(config, split), path)
        for split in SPLITS
        if getattr(config, split) is not None
    }
    all_sources = [source for sources in splits.values() for source in sources]
    only_coco = all(isinstance(s, AnnotatedSource) and s.is_coco for s in all_sources)
    if names is None and (config.remap or not only_coco):
        raise UserError(
            f"{path}: key 'names' is missing (only COCO json comes with its own class names)"
        )
    for old, new in config.remap.items():
        if old in names:
            raise UserError(
                f"{path}: remap: {old!r} is one of the names (allowed: what sources call other "
                "classes)"
            )
        if new is not None and new not in names:
            raise UserError(
                f"{path}: remap: {old}: found {new!r} (allowed: null and the names {names})"
            )
    root = (path.parent / config.path).resolve()
    return config.model_copy(update={"path": str(root), "names": names, **splits})


def _names_list(names: Names | None, path: Path) -> list[str] | None:
    """Return class names as a list. Raises UserError for ids with a gap, no or duplicate names."""
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(
                f"{path}: names: found the ids {sorted(names)} (need 0 to {len(names) - 1} "
                "without a gap)"
            )
        names = [names[i] for i in range(len(names))]
    if names is None:
        return None
    if not names:
        raise UserError(f"{path}: names: found none (need at least one class)")
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"{path}: names: found {duplicates[0]!r} {names.count(duplicates[0])} times (class "
            "names must be unique)"
        )
    return names


def _source_list(value: Source | list[Source], path: Path) -> list[Source]:
    """Return `value` as a list of sources: json paths as COCO sources, their `names` as lists."""
    sources: list[Source] = []
    for source in value if isinstance(value, list) else [value]:
        if isinstance(source, str) and source.lower().endswith(".json"):
            source = AnnotatedSource(annotations=source)
        if isinstance(source, AnnotatedSource):
            if source.annotations and source.names:
                raise UserError(
                    f"{path}: names of a source are for the YOLO layout only "
                    f"({source.annotations} has its own)"
                )
            source = source.model_copy(update={"names": _names_list(source.names, path)})
        sources.append(source)
    return sources
