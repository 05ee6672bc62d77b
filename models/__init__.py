"""Detectors by name, and from checkpoints."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from models.detector import Detector
from models.timm_backbones import PREFIX as TIMM_PREFIX
from models.timm_backbones import check_timm_name
from models.torchvision_backbones import backbone_names
from models.torchvision_detectors import TorchvisionDetector, detector_names
from models.transformers_detectors import PREFIX as TRANSFORMERS
from models.transformers_detectors import SHORTHANDS, TransformersDetector, hub_id
from models.weights import PREFIX
from models.yolo import YOLO
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.letterbox import imgsz_bounds

# What `--model` builds, besides detectors of torchvision and transformers: a name, and what to call
# with `num_classes`.
MODELS: dict[str, Callable[..., Detector]] = {
    "yolo-n": partial(YOLO, "n"),
    "yolo-s": partial(YOLO, "s"),
    "yolo-m": partial(YOLO, "m"),
    "yolo-l": partial(YOLO, "l"),
    "yolo-x": partial(YOLO, "x"),
}


def build_model(
    name: str,
    num_classes: int,
    backbone: str | None = None,
    channels: int = 3,
    architecture: dict[str, Any] | None = None,
) -> Detector:
    """Build the detector `name` with random weights, for `num_classes` >= 1 classes.

    name: a key of `MODELS` or `SHORTHANDS`, torchvision/ and the name of a detector in torchvision,
    or transformers/ and a hub id or folder.
    backbone: torchvision/ and the name of a classifier in torchvision, or timm/ and the name of a
        network in timm, to use as the backbone.
    channels: of the images; 3 are RGB.
    architecture: what a model of transformers is built from, as in its `config`; None: ask the hub.
    Raises ValueError for an unknown name, UserError if the backbone or the number of channels does
    not fit the model, or a model of transformers cannot be read.
    """
    constructor = _constructor(name)
    if constructor is None:
        raise ValueError(_unknown_model(name))
    options: dict[str, object] = {}
    if backbone:
        options["backbone"] = backbone
    if channels != 3:
        options["channels"] = channels
    if architecture:
        options["architecture"] = architecture
    for option, value in options.items():
        if option not in inspect.signature(constructor).parameters:
            raise UserError(_unfit_option(name, option, value))
    model = constructor(num_classes, **options)
    model.channels = channels
    model.config = {
        "name": name,
        "num_classes": num_classes,
        "backbone": backbone,
        "channels": channels,
    }
    if model.architecture is not None:
        model.config["architecture"] = model.architecture
    return model


def load(path: str | Path) -> Detector:
    """Load the detector in a checkpoint, `best.pt` or `last.pt`, with its EMA weights.

    It is on the CPU, in evaluation mode, and has `class_names`, `imgsz`, the (largest) image size
    in pixels that it was trained at, `data`, the data.yaml of its training, `amp`, its precision,
    and `single_cls`, whether all of its classes were trained as one. It gives as many detections of
    an image as counted in validation, if that is more than it gives by default. After `.train()` it
    returns unweighted losses; the weights are those of the hyp file: `box`, `cls` and `dfl`.
    Raises UserError if the file is not found, corrupted, or not a checkpoint of this project.
    """
    checkpoint = load_checkpoint(Path(path))
    try:
        model = build_model(**checkpoint["model_config"])
        model.load_state_dict(checkpoint["ema"]["model"])
        model.class_names = tuple(checkpoint["class_names"])
        model.imgsz = imgsz_bounds(checkpoint["args"]["imgsz"], model.stride)[1]
        model.data = str(checkpoint["args"]["data"])
        model.amp = str(checkpoint["args"].get("amp", "auto"))
        model.single_cls = bool(checkpoint["args"].get("single_cls"))
        model.allow_detections(checkpoint.get("detection_limit", 0))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise UserError(
            f"{path}: holds no detector that this version can build "
            "(need best.pt or last.pt of a run of this version)"
        ) from None
    return model.eval()


def model_name(text: str) -> str:
    """Check a `--model` argument (argparse type). Raises UserError for an unknown name."""
    if _constructor(text) is None:
        raise UserError(_unknown_model(text))
    return text


def backbone_name(text: str) -> str:
    """Check a `--backbone` argument (argparse type). Raises UserError for an unknown name."""
    if text.startswith(TIMM_PREFIX):
        check_timm_name(text.removeprefix(TIMM_PREFIX))
    elif text not in backbone_names():
        names = ", ".join((f"{TIMM_PREFIX}NAME", *backbone_names()))
        raise UserError(f"--backbone {text}: unknown backbone (choose from {names})")
    return text


def _constructor(name: str) -> Callable[..., Detector] | None:
    """Return what builds the detector `name` when called with `num_classes`, None if unknown."""
    if name in detector_names():
        return partial(TorchvisionDetector, name.removeprefix(PREFIX))
    if name not in MODELS and (source := hub_id(name)):
        return partial(TransformersDetector, source)
    return MODELS.get(name)


def _unknown_model(name: str) -> str:
    names = (*MODELS, *SHORTHANDS, f"{PREFIX}NAME", f"{TRANSFORMERS}NAME")
    names = detector_names() if name.startswith(PREFIX) else names
    return f"--model {name}: unknown model (choose from {', '.join(names)})"


def _unfit_option(name: str, option: str, value: object) -> str:
    models = ", ".join(k for k in MODELS if option in inspect.signature(MODELS[k]).parameters)
    if option == "channels":
        return f"--model {name}: takes images of 3 channels, not of {value} (allowed: {models})"
    return f"--backbone {value}: {name} has its own backbone (allowed: {models})"
