"""The data.yaml: where each split's images and annotations are, and what the classes are called."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)

from data.class_names import class_names
from data.locate import below, exists, locate
from utils.errors import UserError
from utils.letterbox import MAX_IMGSZ
from utils.yamlfile import read_yaml

SPLITS = ("train", "val", "test")
MAX_CHANNELS = 256
NOT_DATA_YAML = {".json", ".txt", ".data", ".xml", ".csv", ".zip"}  # suffixes


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
    names: Any = Field(
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
    """The content of a data.yaml. Keys of other tools (`download`, ...) are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)
    path: str = Field(
        ".",
        description="directory that the other paths are relative to; itself relative to the file",
    )
    train: Source | list[Source]
    val: Source | list[Source]
    test: Source | list[Source] | None = None
    names: Any = Field(
        None,
        description="class names: a list, numbers with names, or a text file with one per line; "
        "optional if all sources are COCO",
    )
    nc: int | None = Field(None, description="number of classes; if given, that of `names`")
    kpt_shape: list[Annotated[int, Field(ge=1, le=1000)]] = Field(
        [],
        max_length=2,
        description="YOLO layout: number of keypoints behind each box, and of the numbers of each",
    )
    remap: dict[str, str | None] = Field(
        {}, description="class name in a source -> class name here, or null to skip the class"
    )
    channels: int = Field(
        3, ge=1, le=MAX_CHANNELS, description="channels of the images; 3: all are read as RGB"
    )
    make: Literal["shapes"] | None = Field(
        None, description="draw the built-in dataset into `path` if it does not exist"
    )
    imgsz: int = Field(640, ge=32, le=MAX_IMGSZ, description="default of --imgsz for this dataset")
    epochs: int = Field(100, ge=1, description="default of --epochs")
    batch_size: int = Field(16, ge=1, description="default of --batch-size")
    _notes: list[str] = PrivateAttr(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What was not taken as the file has it, each a sentence."""
        return self._notes

    @field_validator(*SPLITS, mode="before")
    @classmethod
    def _check_not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        is_empty = value in (None, []) or (isinstance(value, str) and not value.strip())
        if is_empty and info.field_name != "test":  # Roboflow writes `test:` without a test split
            raise ValueError(
                "found nothing (need a directory of images, a .txt list, a glob, or annotations)"
            )
        for source in value if isinstance(value, list) else [value]:
            if not (is_empty or isinstance(source, str | dict | AnnotatedSource)):
                raise ValueError(f"found {source!r} (need a path, or a block with annotations)")
        return None if is_empty else value


def channels_message(channels: int) -> list[str]:
    """Return a list with a message on how training treats other than 3 channels, else []."""
    if channels == 3:
        return []
    return [
        f"channels: {channels}: hue and saturation have no effect, and brightness scales all "
        "channels alike"
    ]


def read_data_config(path: Path) -> DataConfig:
    """Read the data.yaml `path`.

    Returns the config with `path` absolute, `names` a list (None if every source is COCO and the
    key is absent), and `train`, `val` and `test` lists of sources. Raises UserError if the file
    cannot be read or is invalid.
    """
    if path.suffix.lower() in NOT_DATA_YAML:
        raise UserError(
            f"{path}: not a data.yaml (need a YAML file whose keys train, val and names say where "
            "the images are and what the classes are called)"
        )
    config = read_yaml(path, DataConfig)
    directory = Path(os.path.abspath(path)).parent  # noqa: PTH100 - a link counts where it is
    names = None
    if config.names is not None:
        names = class_names(config.names, f"{path}: names", directory)
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
    if names is not None and config.nc not in (None, len(names)):
        raise UserError(f"{path}: nc: found {config.nc}, but names has {len(names)}")
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
    notes: list[str] = []
    root = _find_root(config, path, all_sources[0], notes)
    splits = {
        split: [_locate_source(root, source, notes) for source in sources]
        for split, sources in splits.items()
    }
    config = config.model_copy(update={"path": str(root), "names": names, **splits})
    config._notes = notes
    return config


def _find_root(config: DataConfig, path: Path, source: Source, notes: list[str]) -> Path:
    """Return the directory that the sources are relative to: the first that has `source`.

    The key `path` is relative to the data.yaml, or if that is a link, to what it links to. If there
    is no such directory, as with a file that was written for another place, it may be one below the
    data.yaml, or its own.
    """
    if "\0" in config.path:
        raise UserError(f"{path}: path: found {config.path!r} (need a directory)")
    places = [Path(os.path.abspath(path)).parent]  # noqa: PTH100 - not through links
    if path.is_symlink():
        places.append(path.resolve().parent)
    roots = [(place / locate(place, config.path)).resolve() for place in places]
    text = source if isinstance(source, str) else source.annotations or source.images
    for root in roots:
        if exists(root, locate(root, text)) or (below(text) and exists(root, below(text))):
            return root
    existing = [root for root in roots if root.exists()]
    if not existing and not config.make:
        for place in places:
            for root in (place / below(config.path), place):
                if exists(root, locate(root, text)):
                    notes.append(f"path: {config.path} does not exist; using {root}")
                    return root.resolve()
    return (existing or roots)[0]


def _locate_source(root: Path, source: Source, notes: list[str]) -> Source:
    """Return `source` with paths that exist, if there are such, and add what changed to `notes`."""
    if isinstance(source, str):
        return _locate(root, source, notes)
    paths = {}
    for key in {"annotations", "images", "image_set"} & source.model_fields_set:
        if text := getattr(source, key):
            paths[key] = _locate(root, text, notes)
    return source.model_copy(update=paths)


def _locate(root: Path, text: str, notes: list[str]) -> str:
    """Return the path that `text` stands for, relative to `root`.

    Roboflow writes `../train/images` for the `train/images` beside the data.yaml.
    """
    resolved, inside = locate(root, text), below(text)
    if not inside or not exists(root, inside):
        return resolved
    if not exists(root, resolved):
        notes.append(f"{text} does not exist; using {inside} beside the data.yaml")
        return inside
    if os.path.realpath(root / resolved) != os.path.realpath(root / inside):
        notes.append(f"using {text} as it stands, although {inside} is beside the data.yaml, too")
    return resolved


def _source_list(value: Source | list[Source], path: Path) -> list[Source]:
    """Return `value` as a list of sources: json paths as COCO sources, their `names` as lists."""
    sources: list[Source] = []
    for source in value if isinstance(value, list) else [value]:
        if isinstance(source, str) and not source.strip():
            raise UserError(f"{path}: found an empty source (need a directory, list or glob)")
        if isinstance(source, str) and source.lower().endswith(".json"):
            source = AnnotatedSource(annotations=source)
        if isinstance(source, AnnotatedSource) and source.names is not None:
            if source.annotations:
                raise UserError(
                    f"{path}: names of a source are for the YOLO layout only "
                    f"({source.annotations} has its own)"
                )
            names = class_names(source.names, f"{path}: names of {source.images}", path.parent)
            source = source.model_copy(update={"names": names})
        sources.append(source)
    return sources
