"""The hyp file: every hyperparameter, with its default, its bounds and what it does, as one strict pydantic model.

`python -m utils.hyp from-yolov5 FILE > mine.yaml` makes one out of YOLOv5's.
"""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    create_model,
)

from utils.cli import Parser, run_cli
from utils.schedulers import (
    SCHEDULES,
    parse_lf,
    parse_milestones,
    restart_epoch,
    schedule_arguments,
)
from utils.yamlfile import read_yaml

Share = Annotated[float, Field(ge=0, le=1)]
WarmupEpoch = Annotated[
    int, Field(ge=0, le=1000, description="epochs in which the rate rises from 0, batch by batch")
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _restart(step: Any) -> Any:
    restart_epoch(step, 1)
    return step


def _lf(text: str | None) -> str | None:
    if text is not None:
        parse_lf(text)
    return text


def _rates(text: str) -> str:
    counts = [count for count, _ in parse_milestones(text)]
    if counts != sorted(set(counts)):
        raise ValueError(f"found {text!r}, the counts must rise from pair to pair")
    return text


class CawbHyp(_Strict):
    """The `scheduler` block of CAWB; `utils/schedulers.py` says what its arguments do."""

    name: Literal["cawb"] = Field("cawb", description="the schedule")
    steps: list[Annotated[int | str, PlainValidator(_restart)]] = Field(
        [], description="after which epochs, or which shares of the run (33%), the rate boots again"
    )
    step_scale: float = Field(
        0.8, gt=0, le=10, description="each boot's peak, as a share of the one before"
    )
    eta_min: Share = Field(0.2, description="the cosine's floor, as a share of the peak")
    warmup_epoch: WarmupEpoch = 2
    epoch_scale: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="epochs that stretch a segment, so that it ends above its floor",
    )
    lf: Annotated[str | None, AfterValidator(_lf)] = Field(
        None, description="a lambda of (epochs into the segment, its length) in place of the cosine"
    )


class _AnnealingHyp(_Strict):
    warmup_epoch: WarmupEpoch = 0


_ARGUMENTS: dict[str, Any] = {
    "learning_rate_decay_a": Annotated[float, Field(description="a of the schedule's formula")],
    "learning_rate_decay_b": Annotated[float, Field(description="b of the schedule's formula")],
    "learning_rate_args": Annotated[
        str, AfterValidator(_rates), Field(description="count:rate pairs, counts rising")
    ],
}


def _annealing_hyp(name: str) -> type[_AnnealingHyp]:
    """The block of a sample-count schedule: its name and what its formula takes, so that a new formula needs nothing here."""
    takes = {
        key: (
            _ARGUMENTS[key],
            ... if parameter.default is inspect.Parameter.empty else parameter.default,
        )
        for key, parameter in schedule_arguments(name).items()
    }
    return create_model(
        name,
        __base__=_AnnealingHyp,
        name=(Literal[name], Field(description="the schedule")),
        **takes,
    )


def _cawb_unless_named(block: Any) -> Any:
    return {"name": "cawb", **block} if isinstance(block, dict) else block


SCHEDULER_BLOCKS = {"cawb": CawbHyp, **{name: _annealing_hyp(name) for name in SCHEDULES}}
SchedulerHyp = Annotated[
    Union[tuple(SCHEDULER_BLOCKS.values())],  # noqa: UP007
    Field(discriminator="name"),
    BeforeValidator(_cawb_unless_named),
]


class Hyp(_Strict):
    """All hyperparameters of a run. Raises pydantic's ValidationError for an unknown key, a wrong type or a bad value."""

    optimizer: Literal["muon", "adamw", "sgd"] = Field(
        "muon",
        description="muon for convolutions and adamw for the rest, adamw for all, or sgd with Nesterov momentum",
    )
    lr0: float = Field(0.002, gt=0, le=10, description="learning rate at the schedule's peak")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="adamw's beta1, or the momentum of the others"
    )
    weight_decay: float = Field(
        1.0,
        ge=0,
        le=10,
        description="decay of the convolutions' weights; biases and norms have none",
    )
    grad_clip: float = Field(
        10.0, ge=0, le=1e6, description="largest norm of the whole gradient; 0 leaves it as it is"
    )
    accumulate: int = Field(
        1, ge=1, le=10000, description="batches whose gradients are averaged for one optimizer step"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay a step of the average of the weights, once warmed up"
    )
    scheduler: SchedulerHyp = Field(CawbHyp(), description="the learning rate over the run")

    box: float = Field(7.5, ge=0, le=1000, description="gain of the box loss (complete IoU)")
    cls: float = Field(
        2.0, ge=0, le=1000, description="gain of the class loss (binary cross-entropy)"
    )
    dfl: float = Field(1.5, ge=0, le=1000, description="gain of the distribution focal loss")

    mosaic: Share = Field(
        1.0, description="probability that a sample is put together from four pictures"
    )
    close_mosaic: int = Field(10, ge=0, le=100000, description="last epochs, without mosaic")
    scale: float = Field(
        0.5, ge=0, lt=1, description="a picture is scaled by 1 - scale to 1 + scale"
    )
    translate: Share = Field(
        0.1, description="a picture is shifted by up to this share of the sample's side"
    )
    fliplr: Share = Field(0.5, description="probability of a flip left to right")
    flipud: Share = Field(0.0, description="probability of a flip upside down")
    hue: float = Field(
        0.015, ge=0, le=0.5, description="hue turns by up to this share of the circle, either way"
    )
    saturation: Share = Field(
        0.7, description="colourfulness is multiplied by 1 - saturation to 1 + saturation"
    )
    brightness: Share = Field(
        0.4, description="brightness is multiplied by 1 - brightness to 1 + brightness"
    )


def load_hyp(path: Path) -> Hyp:
    """The hyp file at `path`. Raises UserError, one sentence, when it cannot be read or is wrong."""
    return read_yaml(path, Hyp)


def main(argv: list[str] | None = None) -> int:
    """Print what a hyp file of another project is here; the exit status: 0, or 2 after one sentence for a user's mistake."""
    from utils.from_yolov5 import from_yolov5

    def work() -> None:
        p = Parser(
            prog="python -m utils.hyp",
            description="Turn a hyp file of another project into one of ours, on stdout.",
        )
        p.add_argument("origin", choices=["from-yolov5"])
        p.add_argument("file", type=Path)
        args = p.parse_args(argv)
        print(from_yolov5(args.file), end="")

    return run_cli("utils.hyp", work)


if __name__ == "__main__":
    sys.exit(main())
