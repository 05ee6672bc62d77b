"""Detectors by name, and out of checkpoints: `build_model` is the one place that knows which there are."""

from pathlib import Path

from models.yolo import SIZES, YOLO
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

MODELS = tuple(f"yolo-{size}" for size in SIZES)


def build_model(name: str, num_classes: int, **options: object) -> YOLO:
    """The detector called `name` (one of `MODELS`), with random weights, for `num_classes` >= 1 classes.

    `options` go to the detector's constructor. Raises ValueError for an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"--model {name}: unknown; known are {', '.join(MODELS)}")
    return YOLO(name.removeprefix("yolo-"), num_classes, **options)


def load(path: str | Path) -> YOLO:
    """The trained detector in a checkpoint, `best.pt` or `last.pt`, with its averaged weights: on the CPU, in evaluation mode.

    It also has `names`, its classes, `imgsz`, the side in pixels that it was trained at, and `data`, the data.yaml that it was
    trained on. Raises UserError when the file is not there, is no checkpoint of this project, or is damaged.
    """
    state = load_checkpoint(Path(path))
    try:
        args, names = state["args"], tuple(state["names"])
        model = build_model(args["model"], len(names))
        model.load_state_dict(state["average"])
        model.names, model.imgsz, model.data = names, int(args["imgsz"]), str(args["data"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise UserError(f"{path}: holds no detector that this version can build") from None
    return model.eval()
