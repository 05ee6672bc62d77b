"""Turns a hyp file of YOLOv5 into one of ours, and says what does not carry over, and why."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from utils.hyp import Hyp
from utils.yamlfile import read_yaml, validate

Number = Annotated[
    float, BeforeValidator(lambda value: float(value) if type(value) in (int, float) else value)
]

SAME = {  # theirs: ours, with one meaning
    "translate": "translate", "scale": "scale", "fliplr": "fliplr", "flipud": "flipud", "mosaic": "mosaic", "hsv_h": "hue",
    "hsv_s": "saturation", "hsv_v": "brightness",
}  # fmt: skip
LEFT = {  # theirs: why it stays behind
    (
        "lr0",
        "momentum",
        "weight_decay",
    ): "of an SGD that adds up the losses of 64 pictures; muon, the default here, has its own",
    (
        "warmup_momentum",
        "warmup_bias_lr",
    ): "the warm-up here raises one rate, that of every group, and leaves the momentum alone",
    (
        "box",
        "cls",
        "obj",
        "cls_pw",
        "obj_pw",
        "fl_gamma",
        "label_smoothing",
    ): "gains of another loss; here are box, cls and dfl",
    ("iou_t", "anchor_t", "anchors"): "of anchors, which this detector has none of",
    ("degrees", "shear", "perspective"): "would warp pictures, which are cut and resized here",
    ("mixup", "copy_paste"): "no such augmentation here",
}


class YOLOv5Hyp(BaseModel):
    """The keys of a hyp file of YOLOv5 that carry over; others are left where they are."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    lrf: Number = Field(0.01, ge=0, le=1)
    warmup_epochs: Number = Field(3.0, ge=0, le=1000)


def from_yolov5(path: Path) -> str:
    """The text of a hyp file that means the same as the one of YOLOv5 at `path`, as far as it can.

    YOLOv5's learning rate falls along a straight line from lr0 to lr0 * lrf (ultralytics/yolov5, train.py); its gains of hue,
    saturation and value are hue, saturation and brightness here. Raises UserError when the file cannot be read or is wrong.
    """
    theirs = read_yaml(path, YOLOv5Hyp)
    found: dict[str, Any] = {
        "scheduler": {
            "name": "cawb",
            "warmup_epoch": round(theirs.warmup_epochs),
            "lf": f"lambda x, y: (1 - x / y) * {1 - theirs.lrf:.6g} + {theirs.lrf:.6g}",
        }
    }
    given = theirs.model_extra or {}
    found |= {
        ours: float(given[key]) if type(given[key]) is int else given[key]
        for key, ours in SAME.items()
        if key in given
    }
    validate(found, Hyp, str(path))
    lines = [
        f"# From {path.name} of YOLOv5; what is not here is as in hyp.yaml.",
        yaml.safe_dump(found, sort_keys=False).rstrip(),
    ]
    reasons = {key: why for keys, why in LEFT.items() for key in keys}
    left: dict[str, list[str]] = {}
    for key in given.keys() - SAME.keys():
        left.setdefault(reasons.get(key, "not known here"), []).append(key)
    if left:
        lines += [
            "",
            "# Left behind:",
            *(f"# {', '.join(sorted(keys))}: {why}" for why, keys in sorted(left.items())),
        ]
    return "\n".join(lines) + "\n"
