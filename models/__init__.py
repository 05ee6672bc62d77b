"""Detectors by name, and out of checkpoints: `build_model` is the one place that knows which there are."""

from pathlib import Path
from typing import TYPE_CHECKING

from models.yolo import SIZES, YOLO
from utils.checkpoint import load_checkpoint, load_checkpoint_weights
from utils.errors import UserError
from utils.letterbox import imgsz_bounds

if (
    TYPE_CHECKING
):  # else it is imported when it is asked for, which a start without it need not wait for
    from models.torchvision_detectors import TorchvisionDetector

MODELS = tuple(f"yolo-{size}" for size in SIZES)


def _unknown(name: str) -> str:
    """What is wrong with the name of a detector, as a sentence; "" if it is known."""
    known, more = MODELS, ", and torchvision/NAME"
    if name.startswith("torchvision"):
        from models.torchvision_detectors import detector_names

        known, more = detector_names(), ""
    return "" if name in known else f"--model {name}: unknown; known are {', '.join(known)}{more}"


def model_name(text: str) -> str:
    """An argument's type: a name that `build_model` knows. Raises UserError for any other."""
    if sentence := _unknown(text):
        raise UserError(sentence)
    return text


def backbone_name(text: str) -> str:
    """An argument's type: torchvision/ and what torchvision calls a classifier. Raises UserError for any other."""
    from models.torchvision_backbones import backbone_names

    if text not in backbone_names():
        raise UserError(f"--backbone {text}: unknown; known are {', '.join(backbone_names())}")
    return text


def build_model(
    name: str, num_classes: int, backbone: str | None = None, **options: object
) -> "YOLO | TorchvisionDetector":
    """The detector called `name`, one of `MODELS` or torchvision/ and what torchvision calls it, with random weights, for
    `num_classes` >= 1 classes.

    `backbone`, a `backbone_name`, takes the place of our own's, and `options` go to its constructor. Raises ValueError for an
    unknown name, UserError for a backbone that does not fit.
    """
    if sentence := _unknown(name):
        raise ValueError(sentence)
    if name not in MODELS:
        from models.torchvision_detectors import PREFIX, TorchvisionDetector

        if backbone:
            raise UserError(f"--backbone {backbone}: is for our own models; {name} has its own")
        return TorchvisionDetector(name.removeprefix(PREFIX), num_classes)
    return YOLO(
        name.removeprefix("yolo-"),
        num_classes,
        backbone=backbone and backbone.removeprefix("torchvision/"),
        **options,
    )


def load_initial_weights(
    model: "YOLO | TorchvisionDetector", weights: str | None, pretrained: bool
) -> str:
    """Give `model` the tensors that fit of the checkpoint `weights`, or for DEFAULT torchvision's own, and before that, if
    `pretrained`, its backbone torchvision's; a line each on how many.

    Raises UserError when there are none.
    """
    said = ""
    if pretrained and not hasattr(getattr(model, "backbone", None), "load_pretrained"):
        raise UserError(
            "--pretrained: is for --backbone torchvision/NAME; whole detectors start with --weights"
        )
    if pretrained:
        said += f"{model.backbone.load_pretrained()}\n"
    if weights == "DEFAULT" and isinstance(model, YOLO):
        raise UserError(
            "--weights DEFAULT: is for --model torchvision/NAME; for this model give a checkpoint"
        )
    if weights:
        said += f"{model.load_pretrained() if weights == 'DEFAULT' else load_checkpoint_weights(model, Path(weights))}\n"
    return said


def load(path: str | Path) -> "YOLO | TorchvisionDetector":
    """The trained detector in a checkpoint, `best.pt` or `last.pt`, with its averaged weights: on the CPU, in evaluation mode.

    It also has `names`, its classes, `imgsz`, the side in pixels that it was trained at, and `data`, the data.yaml that it was
    trained on. Raises UserError when the file is not there, is no checkpoint of this project, or is damaged.
    """
    state = load_checkpoint(Path(path))
    try:
        args, names = state["args"], tuple(state["names"])
        model = build_model(args["model"], len(names), args.get("backbone"))
        model.load_state_dict(state["average"])
        model.names, model.imgsz, model.data = (
            names,
            imgsz_bounds(args["imgsz"])[1],
            str(args["data"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise UserError(f"{path}: holds no detector that this version can build") from None
    return model.eval()
