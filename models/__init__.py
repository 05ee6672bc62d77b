"""Detectors by name: `build_model` is the one place that knows which there are."""

from models.yolo import SIZES, YOLO

MODELS = tuple(f"yolo-{size}" for size in SIZES)


def build_model(name: str, num_classes: int, **options: object) -> YOLO:
    """The detector called `name` (one of `MODELS`), with random weights, for `num_classes` >= 1 classes.

    `options` go to the detector's constructor. Raises ValueError for an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"--model {name}: unknown; known are {', '.join(MODELS)}")
    return YOLO(name.removeprefix("yolo-"), num_classes, **options)
