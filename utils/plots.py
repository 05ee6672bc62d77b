"""The pictures of a run folder: batches with their boxes, the curves of results.csv, and what an evaluation found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_dtype, to_pil_image
from torchvision.utils import draw_bounding_boxes, make_grid

COLORS = [
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#46f0f0",
    "#f032e6",
    "#bcf60c",
    "#fabebe",
    "#008080",
]
LIMIT = 16  # pictures in one grid
SMALLEST = 320  # pixels; smaller pictures are enlarged, so that the class names can be read


def _drawn(
    images: Tensor, targets: Sequence[dict[str, Tensor]], names: Sequence[str]
) -> list[Tensor]:
    """Each picture (3, h, w), uint8 or 0..1, with its boxes, their class names and, where there are any, scores.

    Small ones are enlarged.
    """
    times = max(1, SMALLEST // max(images.shape[-2:]))
    drawn = []
    images = images[:LIMIT].cpu()
    images = (
        to_dtype(images.float(), torch.uint8, scale=True) if images.is_floating_point() else images
    )
    images = images.repeat_interleave(times, 2).repeat_interleave(times, 3)
    for image, target in zip(images, targets[:LIMIT], strict=True):
        drawn.append(draw_boxes(image, target | {"boxes": target["boxes"] * times}, names))
    return drawn


def draw_boxes(image: Tensor, target: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """The picture (3, h, w) uint8 with the `boxes` (k, 4) of `target`, xyxy in its pixels, the names of their `labels` (k,) and,
    where there are any, their `scores` (k,); lines and letters grow with the picture."""
    from matplotlib import get_data_path  # it brings a font

    if not len(target["boxes"]):
        return image
    labels = target["labels"].tolist()
    scores = target["scores"].tolist() if "scores" in target else [None] * len(labels)
    texts = [
        names[k] if s is None else f"{names[k]} {s:.2f}"
        for k, s in zip(labels, scores, strict=True)
    ]
    colors = [COLORS[k % len(COLORS)] for k in labels]
    side = max(image.shape)
    font = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    boxes = target["boxes"].cpu()
    return draw_bounding_boxes(
        image,
        boxes,
        texts,
        colors,
        width=max(2, side // 400),
        font=font,
        font_size=max(11, side // 60),
    )


def draw_batch(
    images: Tensor, targets: Sequence[dict[str, Tensor]], names: Sequence[str], path: Path
) -> None:
    """Write a grid of the batch's first pictures, with their boxes, to the JPEG `path`."""
    to_pil_image(make_grid(_drawn(images, targets, names), nrow=4)).save(path)


def draw_predictions(
    images: Tensor,
    targets: Sequence[dict[str, Tensor]],
    predictions: Sequence[dict[str, Tensor]],
    names: Sequence[str],
    path: Path,
    score: float = 0.25,
) -> None:
    """Write pairs to the JPEG `path`: each picture with its labels, and beside it with what scores above `score`."""
    kept = [{key: value[p["scores"] > score] for key, value in p.items()} for p in predictions]
    pairs = zip(_drawn(images, targets, names), _drawn(images, kept, names), strict=True)
    to_pil_image(make_grid([picture for pair in pairs for picture in pair], nrow=4)).save(path)


def draw_results(rows: Sequence[Mapping[str, Any]], path: Path | BinaryIO) -> None:
    """Draw every column of results.csv over the epochs, one small plot each, to the picture `path`."""
    from matplotlib.figure import (
        Figure,  # not pyplot: a picture needs no window and no global state
    )

    names = [name for name in rows[0] if name != "epoch"]
    lines = -(-len(names) // 4)
    figure = Figure(figsize=(14, 3 * lines), layout="constrained")
    grid = figure.subplots(lines, 4)
    for axes, name in zip(grid.flat, names, strict=False):
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None)
        axes.set_title(name)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(names) :]:
        axes.remove()
    figure.savefig(path, dpi=100)


def draw_plan(
    curves: Sequence[Sequence[float]],
    batches_per_epoch: int,
    path: str | Path,
    labels: Sequence[str] = (),
) -> None:
    """Draw learning-rate curves over the epochs to the file `path`, equal ones as one line.

    `curves` are those of `utils.plan.plan`: a rate for each batch of the run. `labels` has a name
    for each; without it they are parameter groups.
    """
    from matplotlib.figure import Figure  # not pyplot: no window and no global state

    groups: dict[tuple[float, ...], list[int]] = {}
    for i, curve in enumerate(curves):
        groups.setdefault(tuple(curve), []).append(i)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for curve, indices in groups.items():
        label = "group " + ", ".join(map(str, indices))
        if labels:
            label = ", ".join(labels[i] for i in indices)
        shown = range(0, len(curve), 1 + len(curve) // 20000)  # the image has fewer pixels
        epochs = [i / batches_per_epoch for i in shown]
        axes.plot(epochs, [curve[i] for i in shown], linewidth=1.2, label=label)
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def draw_schedule(
    planned: Sequence[Sequence[float]],
    batches: int,
    rows: Sequence[Mapping[str, Any]],
    path: Path | BinaryIO,
) -> None:
    """Draw each group's planned rate in every batch, `batches` an epoch, and over it a dot for what each of the `rows` of
    results.csv ended with, to the picture `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] + 1 - 1 / batches for row in rows]  # where an epoch's last batch begins
    for group, curve in enumerate(planned):
        if any(curve == other for other in planned[:group]):
            continue
        shown = range(
            0, len(curve), 1 + len(curve) // 20000
        )  # far more than the picture has pixels
        axes.plot(
            [i / batches for i in shown],
            [curve[i] for i in shown],
            linewidth=1.2,
            label=f"group {group}, planned",
        )
        axes.plot(
            epochs, [row[f"lr/{group}"] for row in rows], ".", label=f"group {group}, followed"
        )
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def draw_curves(
    precision: np.ndarray, scores: np.ndarray, names: Sequence[str], folder: Path
) -> None:
    """Write PR_curve.png and F1_curve.png: for each class, precision over recall and F1 over the score that is asked for.

    `precision` and `scores` are those of `utils.metrics.Curves`.
    """
    from matplotlib.figure import Figure

    recall = np.linspace(0, 1, precision.shape[1])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    asked = np.linspace(0, 1, 1001)
    reached = np.full((len(names), len(asked)), np.nan)
    for k in np.flatnonzero(~np.isnan(precision).all(1)):
        # Recalls that some score gives: below the lowest score nothing changes, above the highest nothing is left.
        got = precision[k] > 0
        x, y = scores[k, got][::-1], f1[k, got][::-1]
        reached[k] = np.interp(asked, x, y, right=0.0) if got.any() else 0.0
    for file, x, curves, label, axis in (
        ("PR_curve.png", recall, precision, "precision", "recall"),
        ("F1_curve.png", asked, reached, "F1", "score"),
    ):
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.subplots()
        there = ~np.isnan(curves).all(1)
        for name, curve in zip(
            np.asarray(names)[there][:20], curves[there], strict=False
        ):  # more would hide each other
            axes.plot(x, curve, linewidth=1, label=name)
        if there.any():
            axes.plot(x, curves[there].mean(0), linewidth=3, color="black", label="all classes")
        axes.set(xlabel=axis, ylabel=f"{label} at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(folder / file, dpi=100)


def draw_confusion(counts: np.ndarray, names: Sequence[str], path: Path | BinaryIO) -> None:
    """Draw the confusion matrix (K + 1, K + 1) of K classes to the picture `path`: shares of what is there, and the counts."""
    from matplotlib.figure import Figure

    shares = counts / np.maximum(counts.sum(0), 1)
    side = max(5.0, min(30.0, 2 + 0.6 * len(counts)))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the column")
    ticks = range(len(counts))
    axes.set_xticks(ticks, [*names, "nothing"], rotation=90)
    axes.set_yticks(ticks, [*names, "nothing"])
    axes.set(xlabel="what is there", ylabel="what was detected")
    if len(counts) <= 30:  # more would not be legible
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column,
                row,
                f"{counts[row, column]}",
                ha="center",
                va="center",
                color=color,
                fontsize=8,
            )
    figure.savefig(path, dpi=100)
