"""The plots of a training run and its report, in its directory.

An error in one of them is a warning and never ends a run.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.amp import autocast
from utils.keep_going import KeepGoing
from utils.log import stage
from utils.plots import draw_batch, draw_plan, draw_predictions, draw_results
from utils.report import RunSummary, write_report

Batch = tuple[Tensor, list[dict[str, Tensor]]]  # images (B, C, h, w), and their targets


def draw_lr_plan(run_dir: Path, lr_plan: Sequence[array], batches_per_epoch: int) -> None:
    """Draw lr.png: for each parameter group the planned learning rate of every batch."""
    path = run_dir / "lr.png"
    with KeepGoing().without(path):
        draw_plan(lr_plan, batches_per_epoch, path)


def draw_train_batch(run_dir: Path, batch: Batch, class_names: Sequence[str]) -> None:
    """Draw train_batch.jpg: a batch as the model gets it, with its boxes."""
    path = run_dir / "train_batch.jpg"
    with KeepGoing().without(path):
        draw_batch(*batch, class_names, path)


def draw_final_plots(
    run_dir: Path,
    summary: RunSummary,
    val_batches: Iterable[Batch],
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    keep_going: KeepGoing,
) -> list[str]:
    """Draw results.png and val_batch.jpg, and write report.html.

    val_batch.jpg shows the first of `val_batches` with what `model`, in evaluation mode on
    `device`, detects in it; convolutions compute in `dtype`. `keep_going` says afterwards whether
    all was made. Returns a list with a message that says where the report is, [] if there is none.
    """
    stage("results_plots")
    path = curves = run_dir / "results.png"
    with keep_going.without(path):
        draw_results(summary.rows, path)
    if not keep_going.succeeded:
        curves = None  # the report draws them
    path = run_dir / "val_batch.jpg"
    with keep_going.without(path):
        images, targets = next(iter(val_batches))
        with torch.no_grad(), autocast(device, dtype):
            predictions = model(images.to(device))
        draw_predictions(images, targets, predictions, summary.ground_truth.class_names, path)
    stage("report")
    path = run_dir / "report.html"
    with keep_going.without(path):
        write_report(run_dir, replace(summary, curves=curves), keep_going)
        return [f"report: {path}"]
    return []
