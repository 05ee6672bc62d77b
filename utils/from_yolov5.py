"""Converts a hyp file of YOLOv5 and states what does not carry over, and why.

`python -m utils.from_yolov5 hyp.scratch-low.yaml > mine.yaml`
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from utils.cli import Parser, run_cli
from utils.errors import UserError
from utils.hyp import Hyp
from utils.log import info
from utils.yamlfile import read_yaml, validate

Number = Annotated[
    float, BeforeValidator(lambda value: float(value) if type(value) in (int, float) else value)
]

RENAMED = {  # YOLOv5's key: the key here with the same meaning
    "translate": "translate",
    "scale": "scale",
    "fliplr": "fliplr",
    "flipud": "flipud",
    "mosaic": "mosaic",
    "hsv_h": "hue",
    "hsv_s": "saturation",
    "hsv_v": "brightness",
}
UNSUPPORTED = {  # YOLOv5's keys: why they do not carry over
    (
        "lr0",
        "momentum",
        "weight_decay",
    ): "for an SGD that sums the losses of 64 images; muon, the default here, has its own",
    (
        "warmup_momentum",
        "warmup_bias_lr",
    ): "the warm-up here raises the learning rate of all groups alike and keeps the momentum",
    (
        "box",
        "cls",
        "obj",
        "cls_pw",
        "obj_pw",
        "fl_gamma",
        "label_smoothing",
    ): "weights of another loss; here they are box, cls and dfl",
    ("iou_t", "anchor_t", "anchors"): "this detector has no anchors",
    ("degrees", "shear", "perspective"): "images are cropped and resized here, never warped",
    (
        *("mixup", "copy_paste", "copy_paste_mode", "cutmix"),
        *("bgr", "erasing", "auto_augment"),
    ): "no such augmentation here",
    ("nbs",): "the number of batches in an optimizer step is accumulate here",
    ("pose", "kobj"): "this detector finds boxes",
}


class YOLOv5Hyp(BaseModel):
    """The keys of YOLOv5's hyp file that are converted; the others are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    lrf: Number = Field(0.01, ge=0, le=1)
    warmup_epochs: Number = Field(3.0, ge=0, le=1000)


def from_yolov5(path: Path) -> str:
    """Return the text of a hyp file that means the same as YOLOv5's at `path`, as far as possible.

    YOLOv5's learning rate falls linearly from lr0 to lr0 * lrf (ultralytics/yolov5, train.py); its
    gains of hue, saturation and value are hue, saturation and brightness here. Raises UserError if
    the file cannot be read or is invalid.
    """
    yolov5_hyp = read_yaml(path, YOLOv5Hyp)
    others = yolov5_hyp.model_extra or {}
    lrf = yolov5_hyp.lrf
    for key, new_key in RENAMED.items():
        if key in others:
            _check_value(path, key, new_key, others[key])
    content: dict[str, Any] = {
        "scheduler": {
            "name": "cawb",
            "warmup_epoch": round(yolov5_hyp.warmup_epochs),
            "lf": f"lambda x, y: (1 - x / y) * {1 - lrf:.6g} + {lrf:.6g}",
        }
    }
    for key, new_key in RENAMED.items():
        if key in others:
            value = others[key]
            content[new_key] = float(value) if type(value) is int else value
    validate(content, Hyp, str(path))

    lines = [
        f"# From {path.name} of YOLOv5; the other keys are as in hyp.yaml.",
        yaml.safe_dump(content, sort_keys=False).rstrip(),
    ]
    reasons = {key: reason for keys, reason in UNSUPPORTED.items() for key in keys}
    keys_by_reason: dict[str, list[str]] = {}
    for key in others.keys() - RENAMED.keys():
        keys_by_reason.setdefault(reasons.get(key, "unknown key"), []).append(key)
    if keys_by_reason:
        lines += ["", "# Not converted:"]
        lines += [f"# {', '.join(sorted(ks))}: {why}" for why, ks in sorted(keys_by_reason.items())]
    return "\n".join(lines) + "\n"


def _check_value(path: Path, key: str, new_key: str, value: Any) -> None:
    """Raise UserError, which names YOLOv5's key, if `value` is not allowed for `new_key` here."""
    try:
        validate({new_key: value}, Hyp, "")
    except UserError as error:
        raise UserError(f"{path}: {key}: {str(error).removeprefix(f': {new_key}: ')}") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 for a user's error."""

    def convert() -> None:
        p = Parser(
            "python -m utils.from_yolov5",
            description="Convert a hyp file of YOLOv5 and print the result.",
        )
        p.add_argument("file", type=Path, metavar="FILE", help="hyp file of YOLOv5")
        info(from_yolov5(p.parse_args(argv).file).rstrip("\n"))

    return run_cli("python -m utils.from_yolov5", convert)


if __name__ == "__main__":
    sys.exit(main())
