"""The hyp file: every hyperparameter, with its default, its bounds and what it does, as one strict pydantic model."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from utils.schedulers import parse_lf
from utils.yamlfile import read_yaml

Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SchedulerHyp(_Strict):
    """The `scheduler` block: CAWB and its arguments; `utils/schedulers.py` says what they do."""

    name: Literal["cawb"] = Field("cawb", description="the schedule: cawb")
    steps: list[Annotated[int, Field(ge=1)]] = Field([], description="epochs after which the rate boots again")
    step_scale: float = Field(0.8, gt=0, le=10, description="each boot's peak, as a share of the one before")
    eta_min: Share = Field(0.01, description="the cosine's floor, as a share of the peak")
    warmup_epoch: int = Field(2, ge=0, le=1000, description="epochs in which the rate rises from 0, batch by batch")
    epoch_scale: float = Field(1.0, ge=0, le=1000, description="epochs that stretch a segment, so that it ends above its floor")
    lf: str | None = Field(None, description="a lambda of (epochs into the segment, its length) in place of the cosine")

    @field_validator("lf")
    @classmethod
    def _lf_is_arithmetic(cls, text: str | None) -> str | None:
        if text is not None:
            parse_lf(text)
        return text


class Hyp(_Strict):
    """All hyperparameters of a run. Raises pydantic's ValidationError for an unknown key, a wrong type or a bad value."""

    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="sgd with Nesterov momentum, or adamw")
    lr0: float = Field(0.002, gt=0, le=10, description="learning rate at the schedule's peak")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd's momentum, or adamw's beta1")
    weight_decay: float = Field(0.01, ge=0, le=1, description="decay of the convolutions' weights; biases and norms have none")
    grad_clip: float = Field(10.0, ge=0, le=1e6, description="largest norm of the whole gradient; 0 leaves it as it is")
    accumulate: int = Field(1, ge=1, le=10000, description="batches whose gradients are averaged for one optimizer step")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay a step of the average of the weights, once warmed up")
    scheduler: SchedulerHyp = Field(SchedulerHyp(), description="the learning rate over the run")

    box: float = Field(7.5, ge=0, le=1000, description="gain of the box loss (complete IoU)")
    cls: float = Field(2.0, ge=0, le=1000, description="gain of the class loss (binary cross-entropy)")
    dfl: float = Field(1.5, ge=0, le=1000, description="gain of the distribution focal loss")

    mosaic: Share = Field(1.0, description="probability that a sample is put together from four pictures")
    close_mosaic: int = Field(10, ge=0, le=100000, description="last epochs, without mosaic")
    scale: float = Field(0.5, ge=0, lt=1, description="a picture is scaled by 1 - scale to 1 + scale")
    translate: Share = Field(0.1, description="a picture is shifted by up to this share of the sample's side")
    fliplr: Share = Field(0.5, description="probability of a flip left to right")
    flipud: Share = Field(0.0, description="probability of a flip upside down")
    hue: float = Field(0.015, ge=0, le=0.5, description="hue turns by up to this share of the circle, either way")
    saturation: Share = Field(0.7, description="colourfulness is multiplied by 1 - saturation to 1 + saturation")
    brightness: Share = Field(0.4, description="brightness is multiplied by 1 - brightness to 1 + brightness")


def load_hyp(path: Path) -> Hyp:
    """The hyp file at `path`. Raises UserError, one sentence, when it cannot be read or is wrong."""
    return read_yaml(path, Hyp)


def save_hyp(hyp: Hyp, path: Path) -> None:
    """Write every value of `hyp`, defaults included, to the YAML file `path`."""
    path.write_text(yaml.safe_dump(hyp.model_dump(), sort_keys=False), encoding="utf-8")
