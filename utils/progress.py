"""Where a run is: every number of a run that is not a weight, as one part of its state."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from utils.metrics import METRICS, Result


class RunningMeans:
    """Means over an epoch of named scalars. They stay on the device, so that no step waits for it.

    A value that is not finite is counted as the mean so far: one bad batch must not hide the rest
    of the epoch.
    """

    def __init__(self) -> None:
        self._means: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    @torch.no_grad()
    def update(self, **values: Tensor) -> None:
        """Add one value of each name: scalar tensors, on any one device."""
        names = tuple(values)
        new = torch.stack([value.detach() for value in values.values()])
        means = self._means.get(names, torch.zeros(())).to(new.device)
        count = self._counts.get(names, 0) + 1
        self._means[names] = means + (torch.where(new.isfinite(), new, means) - means) / count
        self._counts[names] = count

    def values(self) -> dict[str, float]:
        """Return the mean of each name; on a GPU this waits for the device."""
        return {
            name: mean
            for names, means in self._means.items()
            for name, mean in zip(names, means.tolist(), strict=True)
        }

    def reset(self) -> None:
        """Forget all values, at the start of an epoch."""
        self._means.clear()
        self._counts.clear()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return names, means and counts as plain data."""
        return [
            {"names": list(names), "means": means.tolist(), "count": self._counts[names]}
            for names, means in self._means.items()
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        self.reset()
        for group in state:
            names = tuple(group["names"])
            self._means[names] = torch.tensor(group["means"])
            self._counts[names] = group["count"]


@dataclass
class Progress:
    """Position, history and best result of a run.

    A field that is added here is saved and restored with the others; a checkpoint without it, or
    with one that is unknown here, is refused by name.
    """

    epoch: int = 0  # the epoch under way, or the next one
    batch: int = 0  # the next batch of that epoch
    elapsed: float = 0.0  # seconds already spent in that epoch
    means: RunningMeans = field(default_factory=RunningMeans)  # of the losses of that epoch
    skipped_steps: int = 0  # optimizer steps skipped for a non-finite loss or gradient
    consecutive_skips: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # the rows of results.csv
    best_map: float = -1.0  # mAP50-95
    best_epoch: int = -1
    best_result: Result | None = None
    best_detections: Tensor = field(default_factory=lambda: torch.zeros(0, 7))  # for the report
    early_stopped: bool = False
    finished: bool = False  # plots and report are written, too

    def start_timer(self) -> None:
        """Start to measure the epoch's time, on top of what is already spent."""
        self._start_time = time.monotonic() - self.elapsed

    def seconds(self) -> float:
        """Return the seconds spent in the epoch so far."""
        return time.monotonic() - self._start_time

    def skip_step(self) -> None:
        """Count an optimizer step that was skipped because its numbers were not finite."""
        self.skipped_steps += 1
        self.consecutive_skips += 1

    def record_result(self, result: Result, detections: Tensor) -> bool:
        """Keep `result`, and the detections (k, 7) to report, if it is the best; return if so."""
        if result.overall["mAP50-95"] <= self.best_map:
            return False
        self.best_map, self.best_epoch = result.overall["mAP50-95"], self.epoch
        self.best_result, self.best_detections = result, detections
        return True

    def record_epoch(
        self,
        val_losses: Mapping[str, float],
        metrics: Mapping[str, float],
        lrs: Sequence[float],
    ) -> dict[str, float | None]:
        """Add a row to the history and return it: the mean losses, the losses and `metrics` of the
        evaluation (both empty if there was none), the learning rate of each parameter group, the
        seconds."""
        row: dict[str, Any] = {"epoch": self.epoch}
        for name, mean in self.means.values().items():
            row[f"train/{name}"] = round(mean, 5)
        for name, loss in val_losses.items():
            row[f"val/{name}"] = round(loss, 5)
        for name in METRICS:
            row[f"metrics/{name}"] = round(metrics[name], 5) if metrics else None
        for group, lr in enumerate(lrs):
            row[f"lr/{group}"] = lr
        row["seconds"] = round(self.seconds(), 2)
        self.history.append(row)
        return row

    def next_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        self.epoch, self.batch, self.elapsed = self.epoch + 1, 0, 0.0
        self.means.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return all fields as plain data."""
        state = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return state | {
            "elapsed": self.seconds() if self.batch else 0.0,
            "means": self.means.state_dict(),
            "best_result": vars(self.best_result) if self.best_result else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all fields. Raises ValueError that names a missing, unknown or invalid field."""
        names = {entry.name for entry in fields(self)}
        if different := sorted(names ^ state.keys()):
            raise ValueError(f"progress: missing or unknown {', '.join(different)}")
        for name in names - {"means", "best_result"}:
            default, value = getattr(self, name), state[name]
            expected = Real if isinstance(default, Real) else type(default)
            if default is not None and not isinstance(value, expected):
                raise ValueError(f"{name}: found {value!r}, need {type(default).__name__}")
            setattr(self, name, value)
        self.means.load_state_dict(state["means"])
        self.best_result = Result(**state["best_result"]) if state["best_result"] else None


def summary_line(row: Mapping[str, float | None]) -> str:
    """Return a row of the history as one line of text."""
    parts = [f"epoch {row['epoch']}"]
    for name, value in row.items():
        group, _, short_name = name.partition("/")
        if group in ("train", "metrics") and value is not None:
            parts.append(f"{short_name} {value:.3f}")
    parts.append(f"lr {row['lr/0']:.2e}")
    return "  ".join(parts)
