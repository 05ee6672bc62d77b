"""Detectors by name, and out of checkpoints: `build_model` is the one place that knows which there are."""

from pathlib import Path
from typing import TYPE_CHECKING

from models.yolo import SIZES, YOLO
from utils.checkpoint import load_checkpoint, load_matching
from utils.errors import UserError

if TYPE_CHECKING:  # else it is imported when it is asked for, which a start without it need not wait for
    from models.torchvision_models import TorchvisionDetector

MODELS = tuple(f"yolo-{size}" for size in SIZES)


def _unknown(name: str) -> str:
    """What is wrong with the name of a detector, as a sentence; "" if it is known."""
    known, more = MODELS, ", and torchvision/NAME"
    if name.startswith("torchvision"):
        from models.torchvision_models import torchvision_detectors

        known, more = torchvision_detectors(), ""
    return "" if name in known else f"--model {name}: unknown; known are {', '.join(known)}{more}"


def model_name(text: str) -> str:
    """An argument's type: a name that `build_model` knows. Raises UserError for any other."""
    if sentence := _unknown(text):
        raise UserError(sentence)
    return text


def build_model(name: str, num_classes: int, **options: object) -> "YOLO | TorchvisionDetector":
    """The detector called `name`, one of `MODELS` or torchvision/ and what torchvision calls it, with random weights, for
    `num_classes` >= 1 classes.

    `options` go to the constructor of our own. Raises ValueError for an unknown name.
    """
    if sentence := _unknown(name):
        raise ValueError(sentence)
    if name not in MODELS:
        from models.torchvision_models import PREFIX, TorchvisionDetector

        return TorchvisionDetector(name.removeprefix(PREFIX), num_classes)
    return YOLO(name.removeprefix("yolo-"), num_classes, **options)


def start_from(model: "YOLO | TorchvisionDetector", weights: str) -> str:
    """Give `model` the tensors that fit of the checkpoint `weights`, or for DEFAULT torchvision's own; a sentence on how many.

    Raises UserError when there are none.
    """
    if weights != "DEFAULT":
        return load_matching(model, Path(weights))
    if isinstance(model, YOLO):
        raise UserError("--weights DEFAULT: is for --model torchvision/NAME; for this model give a checkpoint")
    return model.take_pretrained()


def load(path: str | Path) -> "YOLO | TorchvisionDetector":
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
