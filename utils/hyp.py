"""The hyp file: every hyperparameter with its default, range and meaning, as a strict model."""

import inspect
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    create_model,
    model_validator,
)

from utils.errors import UserError
from utils.lf import parse_lf
from utils.schedulers import (
    ARGS,
    SCHEDULERS,
    SCHEDULES,
    A,
    B,
    BatchWarmup,
    parse_milestones,
    restart_epoch,
)
from utils.yamlfile import SHORT, read_yaml

Fraction01 = Annotated[float, Field(ge=0, le=1)]
WarmupEpoch = Annotated[
    int, Field(ge=0, le=1000, description="epochs in which the rate rises from 0, batch by batch")
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# ------------------------------------------------------------------ the scheduler block


def _check_restart(step: Any) -> Any:
    restart_epoch(step, 1)
    return step


def _check_lf(text: str | None) -> str | None:
    if text is not None:
        parse_lf(text)
    return text


def _check_milestones(text: str) -> str:
    counts = [count for count, _ in parse_milestones(text)]
    if counts != sorted(set(counts)):
        raise ValueError(f"found {text!r}, the counts must increase from pair to pair")
    return text


class CawbHyp(_Strict):
    """The `scheduler` block of CAWB; see CosineAnnealingWarmbootingLR in utils/schedulers.py."""

    name: Literal["cawb"] = Field("cawb", description="the schedule")
    steps: list[Annotated[int | str, PlainValidator(_check_restart)]] = Field(
        [],
        description="epochs after which the schedule restarts, or fractions of the run (33%)",
    )
    step_scale: float = Field(0.8, gt=0, le=10, description="factor of the peak at each restart")
    eta_min: Fraction01 = Field(0.2, description="floor of the cosine, as a fraction of the peak")
    warmup_epoch: WarmupEpoch = 2
    epoch_scale: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="epochs by which a segment is stretched, so that it ends above its floor",
    )
    lf: Annotated[str | None, AfterValidator(_check_lf)] = Field(
        None,
        description="a lambda of (epochs into the segment, its length) instead of the cosine",
    )
    per_batch: bool = Field(
        False, description="change the rate at every batch instead of once per epoch"
    )


class _AnnealingHyp(_Strict):
    warmup_epoch: WarmupEpoch = 0


_FORMULA_ARGUMENTS: dict[str, tuple[Any, Any]] = {  # name: type, value if optional and not given
    A: (Annotated[float, Field(description="a of the schedule's formula")], 0.0),
    B: (Annotated[float, Field(description="b of the schedule's formula")], 0.0),
    ARGS: (
        Annotated[
            str,
            AfterValidator(_check_milestones),
            Field(description="count:factor pairs, counts increasing"),
        ],
        "",
    ),
}


def _annealing_hyp(name: str) -> type[BaseModel]:
    """Return the model of the block of a sample-count schedule: the arguments of its formula."""
    formula = SCHEDULES[name]
    fields: dict[str, Any] = {"name": (Literal[name], Field(description="the schedule"))}
    for argument in formula.arguments:
        kind, default = _FORMULA_ARGUMENTS[argument]
        fields[argument] = (kind, default if argument in formula.optional else ...)
    return create_model(name, __base__=_AnnealingHyp, **fields)


def _class_hyp(name: str, scheduler: type[BatchWarmup]) -> type[BaseModel]:
    """Return the model of the block of a class in `SCHEDULERS`.

    Raises TypeError if an argument of its constructor has no type hint.
    """
    # The constructor already states the name, type and default of each argument. They are read
    # from its signature, so that a new class is written in one place: in a hyp file the arguments
    # are its keys, those without a default are required, and any other key or type is an error.
    # The trainer passes the optimizer and the length of the run.
    hints = get_type_hints(scheduler.__init__, include_extras=True) | {"warmup_epoch": WarmupEpoch}
    fields: dict[str, Any] = {"name": (Literal[name], Field(description="the schedule"))}
    for argument in inspect.signature(scheduler).parameters.values():
        if argument.name in ("optimizer", "epochs", "batchs", "batches_per_epoch"):
            continue
        if argument.name not in hints:
            raise TypeError(f"scheduler {name}: {argument.name} of its class needs a type hint")
        is_required = argument.default is inspect.Parameter.empty
        fields[argument.name] = (hints[argument.name], ... if is_required else argument.default)
    return create_model(name, __base__=_Strict, **fields)


def _cawb_by_default(block: Any) -> Any:
    return {"name": "cawb", **block} if isinstance(block, dict) else block


SCHEDULER_BLOCKS: dict[str, type[BaseModel]] = {
    "cawb": CawbHyp,  # unlike the others it has ranges and descriptions, and its own defaults
    **{name: _class_hyp(name, cls) for name, cls in SCHEDULERS.items() if name != "cawb"},
    **{name: _annealing_hyp(name) for name in SCHEDULES},
}
SchedulerHyp = Annotated[
    Union[tuple(SCHEDULER_BLOCKS.values())],  # noqa: UP007
    Field(discriminator="name"),
    BeforeValidator(_cawb_by_default),
]


# ------------------------------------------------------------------ the whole file


class OptimizerHyp(_Strict):
    """The optimizer and its learning rate."""

    optimizer: Literal["muon", "adamw", "sgd"] = Field(
        "muon",
        description="muon for convolutions and adamw for the rest, adamw for all, or sgd with "
        "Nesterov momentum",
    )
    lr0: float = Field(0.002, gt=0, le=10, description="learning rate at the schedule's peak")
    backbone_lr: float = Field(
        1.0, gt=0, le=10, description="the backbone's share of the learning rate"
    )
    momentum: float = Field(
        0.9, ge=0, lt=1, description="beta1 of adamw, or the momentum of the others"
    )
    weight_decay: float = Field(
        1.0, ge=0, le=10, description="weight decay; biases and norms have none"
    )
    grad_clip: float = Field(
        10.0, ge=0, le=1e6, description="maximum norm of the whole gradient; 0 disables clipping"
    )
    accumulate: int = Field(
        1, ge=1, le=10000, description="batches whose gradients are averaged per optimizer step"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the EMA of the weights per step, once warmed up"
    )
    scheduler: SchedulerHyp = Field(CawbHyp(), description="the learning rate over the run")


def _check_class_weights(value: Any) -> list[float] | dict[str, float] | None:
    if value is None:
        return None
    weights = [*value.values()] if isinstance(value, dict) else value
    has_names = not isinstance(value, dict) or all(isinstance(name, str) for name in value)
    are_numbers = isinstance(weights, list) and all(type(w) in (int, float) for w in weights)
    if not (has_names and are_numbers and weights and all(0 < w <= 1000 for w in weights)):
        raise ValueError(
            f"found {SHORT.repr(value)}, need a list with a number for each class, or class names "
            "with numbers (above 0, up to 1000)"
        )
    # Floats, or pydantic warns when it writes them.
    if isinstance(value, dict):
        return {name: float(weight) for name, weight in value.items()}
    return [float(weight) for weight in weights]


class LossWeights(_Strict):
    """The weight of each loss, and its only default. A new loss is one line here."""

    box: float = Field(7.5, ge=0, le=1000, description="weight of the box loss (complete IoU)")
    cls: float = Field(
        2.0, ge=0, le=1000, description="weight of the class loss (binary cross-entropy)"
    )
    dfl: float = Field(1.5, ge=0, le=1000, description="weight of the distribution focal loss")

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights by the names of the losses."""
        return {name: getattr(self, name) for name in LossWeights.model_fields}


# Keys of YOLOv5's and Ultralytics' hyp files that are none here.
YOLOV5_KEYS = {
    *("lrf", "warmup_epochs", "warmup_momentum", "warmup_bias_lr", "obj", "cls_pw", "obj_pw"),
    *("iou_t", "anchor_t", "anchors", "fl_gamma", "label_smoothing", "hsv_h", "hsv_s", "hsv_v"),
    *("degrees", "shear", "perspective", "mixup", "copy_paste", "copy_paste_mode", "cutmix"),
    *("bgr", "erasing", "auto_augment", "nbs", "pose", "kobj"),
}


class Hyp(LossWeights, OptimizerHyp):
    """All hyperparameters of a run: those of its bases and the augmentation.

    Raises pydantic's ValidationError for an unknown key, a wrong type or a value out of range.
    """

    class_weights: Annotated[
        list[float] | dict[str, float] | None, PlainValidator(_check_class_weights)
    ] = Field(
        None,
        description="factors of the class loss: a list in the order of the classes, or by class "
        "name, 1 for the others",
    )
    small_epochs: int = Field(
        6,
        ge=0,
        le=100000,
        description="first epochs with samples of half --imgsz; at most a quarter of the run",
    )
    mosaic: Fraction01 = Field(1.0, description="probability of a mosaic of four images")
    close_mosaic: int = Field(10, ge=0, le=100000, description="final epochs without mosaic")
    scale: float = Field(
        0.5, ge=0, lt=1, description="random scale between 1 - scale and 1 + scale"
    )
    translate: Fraction01 = Field(
        0.1, description="random shift by up to this fraction of the image size"
    )
    fliplr: Fraction01 = Field(0.5, description="probability of a horizontal flip")
    flipud: Fraction01 = Field(0.0, description="probability of a vertical flip")
    hue: float = Field(
        0.015, ge=0, le=0.5, description="random hue shift by up to this fraction of the circle"
    )
    saturation: Fraction01 = Field(
        0.7, description="random saturation between 1 - saturation and 1 + saturation"
    )
    brightness: Fraction01 = Field(
        0.4, description="random brightness between 1 - brightness and 1 + brightness"
    )

    @model_validator(mode="before")
    @classmethod
    def _check_not_yolov5(cls, content: Any) -> Any:
        keys = YOLOV5_KEYS & content.keys() if isinstance(content, dict) else set()
        if keys := sorted(keys - cls.model_fields.keys()):
            raise ValueError(
                f"found {', '.join(keys)}, as in a hyp file of YOLOv5; convert it with "
                "`python -m utils.from_yolov5 FILE > mine.yaml`"
            )
        return content

    def num_small_epochs(self, epochs: int) -> int:
        """Return how many epochs of a run of `epochs` have small samples: at most a quarter."""
        return min(self.small_epochs, epochs // 4)

    def unused_loss_weights(self, losses: Collection[str], model: str) -> list[str]:
        """Return a message if `model` has none of the `losses` that a weight is for, else []."""
        unused = ", ".join(sorted(self.loss_weights.keys() - losses))
        if not unused:
            return []
        return [
            f"{model}: the loss weights {unused} have no effect; its losses are {', '.join(losses)}"
        ]

    def weights_of_classes(self, class_names: Sequence[str], hyp_file: Path) -> list[float]:
        """Return `class_weights`, which must not be None, in the order of the classes.

        Raises UserError, which names `hyp_file`, if they do not fit the classes.
        """
        weights = self.class_weights
        if isinstance(weights, list):
            if len(weights) != len(class_names):
                raise UserError(
                    f"{hyp_file}: class_weights: found {len(weights)}, need {len(class_names)}, "
                    f"one for each class ({', '.join(class_names)})"
                )
            return weights
        if unknown := [name for name in weights if name not in class_names]:
            raise UserError(
                f"{hyp_file}: class_weights: {unknown[0]}: not a class of the dataset (choose from "
                f"{', '.join(class_names)})"
            )
        return [weights.get(name, 1.0) for name in class_names]

    @model_validator(mode="after")
    def _check_backbone_lr(self) -> Self:
        if self.backbone_lr != 1 and self.scheduler.name == "linear":
            raise ValueError(
                f"backbone_lr: found {self.backbone_lr:g}, need 1 with the scheduler linear, which "
                "takes the same amount off every rate (cawb with an lf can be a line, too)"
            )
        return self

    def __reduce__(self) -> tuple[object, ...]:
        # Pickled as plain data: the classes of most scheduler blocks cannot be imported.
        return type(self).model_validate, (self.model_dump(),)


def load_hyp(path: Path) -> Hyp:
    """Read the hyp file at `path`. Raises UserError if it cannot be read or is invalid."""
    return read_yaml(path, Hyp)
