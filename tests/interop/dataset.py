"""The dataset that every tool exports, and the comparison of what our readers make of an export."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.config import read_data_config
from data.formats import read_split

Box = tuple[float, float, float, float]
NAMES = ["person", "traffic light", "鳥"]


@dataclass(frozen=True)
class Object:
    """An object: its class, and the corners of a polygon, or two corners of a box, in pixels."""

    name: str
    points: tuple[tuple[float, float], ...]
    is_crowd: bool = False  # COCO's iscrowd, VOC's difficult

    @property
    def is_polygon(self) -> bool:
        """Whether this is a polygon rather than a box."""
        return len(self.points) > 2

    @property
    def box(self) -> Box:
        """The bounding box, xyxy in pixels."""
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class Picture:
    """An image of the dataset."""

    width: int
    height: int
    objects: tuple[Object, ...] = ()


TRUTH = {
    "train": {
        "plain.jpg": Picture(
            160,
            120,
            (
                Object("person", ((10.25, 20.5), (60.75, 90.125))),
                Object("traffic light", ((100.4, 5.3), (120.7, 48.9))),
                Object("person", ((130.0, 70.5), (160.0, 120.0))),
            ),
        ),
        "two words.png": Picture(
            97,
            61,
            (
                Object("鳥", ((30.6, 12.2), (80.9, 55.3))),
                Object("traffic light", ((3.0, 4.0), (20.0, 40.0)), is_crowd=True),
            ),
        ),
        "empty.png": Picture(50, 40),
    },
    "val": {
        "größe 猫.jpg": Picture(
            80,
            100,
            (
                Object("鳥", ((12.5, 20.25), (60.75, 35.5), (33.3, 80.8))),
                Object("person", ((50.1, 60.2), (75.9, 95.6))),
            ),
        ),
        "full.png": Picture(64, 48, (Object("person", ((0.0, 0.0), (64.0, 48.0))),)),
    },
}


@dataclass(frozen=True)
class Loss:
    """What an export does not keep of the dataset, because the format or its writer cannot."""

    pixels: float  # how far a side of a box may be from the truth
    no_polygons: bool = False  # polygons are ignored
    no_crowd: bool = False  # crowd objects are ignored
    crowd_as_objects: bool = False  # crowd objects are written as any other
    no_empty: bool = False  # images without objects are ignored


def draw(path: Path, image: Picture) -> None:
    """Save a gray image with the size of `image`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (image.width, image.height), "gray").save(path)


def truth_name(path: str) -> str | None:
    """Return the name in TRUTH of an image that a tool saved, maybe with a prefix to its name."""
    names = (name for images_of_split in TRUTH.values() for name in images_of_split)
    return next((name for name in names if path.endswith(name)), None)


def draw_copy(path: Path) -> None:
    """Save the image that a tool saved at `path`, whose name ends as in TRUTH."""
    images_of_split = TRUTH["train"] | TRUTH["val"]
    draw(path, images_of_split[truth_name(path.name)])


def differences(data_yaml: Path, loss: Loss) -> tuple[list[str], int, int, float]:
    """Read an export and compare it with the truth.

    Returns a sentence for each difference, the numbers of images and boxes, and the largest
    distance of a box's side from the truth in pixels. Raises UserError as the readers do.
    """
    problems, images, boxes, largest = [], 0, 0, 0.0
    config = read_data_config(data_yaml)
    for split, images_of_split in TRUTH.items():
        annotations = read_split(config, split)
        problems += [f"{split}: {error}" for error in annotations.errors]
        if annotations.class_names != tuple(NAMES):
            problems.append(f"{split}: classes {annotations.class_names}")
        images += len(annotations)
        boxes += len(annotations.boxes)
        expected = {
            name: image
            for name, image in images_of_split.items()
            if image.objects or not loss.no_empty
        }
        names = [truth_name(file) for file in annotations.files]
        if sorted(map(str, names)) != sorted(expected):
            problems.append(f"{split}: images {annotations.files.tolist()}")
            continue
        for i, name in enumerate(names):
            rows = slice(annotations.offsets[i], annotations.offsets[i + 1])
            got = np.c_[
                annotations.labels[rows],
                annotations.crowd[rows],
                annotations.boxes[rows] * np.tile(annotations.sizes[i], 2),
            ]
            size = annotations.sizes[i].tolist()
            sentences, distance = _compare(expected[name], size, got, loss)
            problems += [f"{split}: {name}: {sentence}" for sentence in sentences]
            largest = max(largest, distance)
    return problems, images, boxes, largest


def _compare(
    image: Picture, size: list[int], got: np.ndarray, loss: Loss
) -> tuple[list[str], float]:
    """Compare an image's `size` and rows of class, crowd and box in pixels with the truth."""
    if size != [image.width, image.height]:
        return [f"size {size}"], 0.0
    expected = [
        (NAMES.index(o.name), o.is_crowd and not loss.crowd_as_objects, *o.box)
        for o in image.objects
        if not (o.is_polygon and loss.no_polygons) and not (o.is_crowd and loss.no_crowd)
    ]
    expected = np.array(expected, float).reshape(-1, 6)
    if len(got) != len(expected):
        return [f"{len(got)} boxes instead of {len(expected)}"], 0.0
    # The boxes of a class are farther from each other than any loss: their order is that of x.
    got, expected = (rows[np.lexsort((rows[:, 2], rows[:, 0]))] for rows in (got, expected))
    distance = np.abs(got[:, 2:] - expected[:, 2:]).max(initial=0)
    problems = []
    if (got[:, 0] != expected[:, 0]).any():
        problems.append(f"classes {got[:, 0].tolist()} instead of {expected[:, 0].tolist()}")
    if (got[:, 1] != expected[:, 1]).any():
        problems.append(f"crowd {got[:, 1].tolist()} instead of {expected[:, 1].tolist()}")
    if distance > loss.pixels:
        problems.append(f"boxes {got[:, 2:].round(3).tolist()}, {distance:.3f} pixels off")
    return problems, float(distance)
