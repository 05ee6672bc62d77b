"""The images in a run directory: boxes, curves over epochs, learning rates, evaluation.

Matplotlib is imported where it is used, so that a run without plots does not wait for it, and
always as `matplotlib.figure.Figure`: unlike pyplot it needs no display and has no global state.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype, to_pil_image
from torchvision.utils import make_grid

from utils.atomic import atomic_write
from utils.fonts import drawable_names, font_runs, plain_text
from utils.text import display_width, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
MAX_IMAGES = 16  # in one grid
MIN_SIZE = 320  # pixels; smaller images are enlarged so that class names are legible
MAX_CURVES = 20  # of single classes in one plot; more would hide each other
MAX_POINTS = 20000  # of a learning-rate curve; far more than the plot has pixels
MAX_COUNTS = 30  # classes of a confusion matrix whose counts are still legible
MAX_NAMES = 100  # classes of a confusion matrix whose names are still legible

Targets = Sequence[dict[str, Tensor]]

# ----------------------------------------------------------------------------------------------
# Images with boxes


def as_rgb(images: Tensor) -> Tensor:
    """Return what is shown of images (..., C, h, w), with 3 channels.

    Of 1 or 2 channels the first as gray, of more the first three as red, green and blue.
    """
    channels = images.shape[-3]
    if channels < 3:
        return images.narrow(-3, 0, 1).expand(*images.shape[:-3], 3, *images.shape[-2:])
    return images.narrow(-3, 0, 3)


def draw_boxes(image: Tensor, target: dict[str, Tensor], class_names: Sequence[str]) -> Tensor:
    """Return the image as (3, h, w) uint8 with labeled boxes; lines and font grow with the image.

    The image (C, h, w) uint8 is shown as `as_rgb` says. `target` has `boxes` (k, 4), xyxy in
    pixels, `labels` (k,) and optionally `scores` (k,).
    """
    image = as_rgb(image)
    if not len(target["boxes"]):
        return image
    names, labels = drawable_names(class_names), target["labels"].tolist()
    texts = [names[k] for k in labels]
    if "scores" in target:
        scores = target["scores"].tolist()
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores, strict=True)]
    size = max(image.shape)
    width, font_size = max(2, size // 400), max(11, size // 60)
    canvas = to_pil_image(image.cpu())
    draw = ImageDraw.Draw(canvas)
    colors = [COLORS[k % len(COLORS)] for k in labels]
    boxes = target["boxes"].round().tolist()
    for box, color in zip(boxes, colors, strict=True):
        if all(map(math.isfinite, box)) and box[0] <= box[2] and box[1] <= box[3]:
            draw.rectangle(box, outline=color, width=width)
    for box, color, text in zip(boxes, colors, texts, strict=True):  # above all boxes
        if all(map(math.isfinite, box)):
            _draw_label(draw, (box[0], box[1]), text, color, font_size)
    return pil_to_tensor(canvas)


def _draw_label(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, color: str, font_size: int
) -> None:
    """Draw `text` on a rectangle of `color`: above the `corner` of a box, below it at the top.

    It is moved to stay inside the picture.
    """
    runs = font_runs(text, font_size)
    lengths = [font.getlength(part) for part, font in runs]
    width, height = sum(lengths) + 2, font_size * 1.3
    x = max(0, min(corner[0], draw.im.size[0] - width))
    y = corner[1] - height if corner[1] >= height else corner[1]
    y = max(0, min(y, draw.im.size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=color)
    red, green, blue = ImageColor.getrgb(color)
    ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 128 else "white"
    baseline = y + font_size
    for (part, font), length in zip(runs, lengths, strict=True):
        draw.text((x + 1, baseline), part, ink, font, anchor="ls")
        x += length


def _draw_each(images: Tensor, targets: Targets, class_names: Sequence[str]) -> list[Tensor]:
    """Return the first `MAX_IMAGES` images with their boxes, small ones enlarged.

    images (B, C, h, w): uint8, or float in 0..1.
    """
    zoom = max(1, MIN_SIZE // max(images.shape[-2:]))
    images = as_rgb(images[:MAX_IMAGES]).cpu()
    if images.is_floating_point():
        images = to_dtype(images.float(), torch.uint8, scale=True)
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return [
        draw_boxes(image, target | {"boxes": target["boxes"] * zoom}, class_names)
        for image, target in zip(images, targets[:MAX_IMAGES], strict=True)
    ]


def draw_batch(images: Tensor, targets: Targets, class_names: Sequence[str], path: Path) -> None:
    """Write a grid of the first images of a batch (B, C, h, w), with boxes, to the JPEG `path`."""
    _save_grid(_draw_each(images, targets, class_names), path)


def draw_predictions(
    images: Tensor,
    targets: Targets,
    predictions: Targets,
    class_names: Sequence[str],
    path: Path,
    conf: float = 0.25,
) -> None:
    """Write pairs to the JPEG `path`: an image with its ground truth, and with its predictions.

    Predictions with a score of at most `conf` are skipped.
    """
    confident = [{key: value[p["scores"] > conf] for key, value in p.items()} for p in predictions]
    pairs = zip(
        _draw_each(images, targets, class_names),
        _draw_each(images, confident, class_names),
        strict=True,
    )
    _save_grid([image for pair in pairs for image in pair], path)


def _save_grid(images: Sequence[Tensor], path: Path) -> None:
    """Write images of one size, four in a row; the suffix of `path` says in which format."""
    grid = to_pil_image(make_grid([*images], nrow=4))
    image_format = Image.registered_extensions()[path.suffix.lower()]
    with atomic_write(path) as file:
        grid.save(file, image_format)


# ----------------------------------------------------------------------------------------------
# Curves over the run


@contextmanager
def _figure(
    path: Path | BinaryIO | str, texts: Iterable[str] = (), dpi: int = 100, **options: Any
) -> Iterator["Figure"]:
    """Context that gives a figure, with fonts for `texts`, and writes it to `path` at its end."""
    from matplotlib.figure import Figure

    with plain_text(texts):
        figure = Figure(layout="constrained", **options)
        yield figure
        if not isinstance(path, str | Path):
            figure.savefig(path, dpi=dpi)
            return
        path = Path(path)
        with atomic_write(path if path.suffix else path.with_suffix(".png")) as file:
            figure.savefig(file, dpi=dpi, format=path.suffix[1:] or "png")


def draw_results(rows: Sequence[Mapping[str, Any]], path: Path | BinaryIO) -> None:
    """Draw every column of results.csv over the epochs; a row may lack columns that others have."""
    columns = dict.fromkeys(key for row in rows for key in row if key != "epoch")
    num_lines = math.ceil(len(columns) / 4)
    with _figure(path, columns, figsize=(14, 3 * num_lines)) as figure:
        grid = figure.subplots(num_lines, 4)
        for axes, name in zip(grid.flat, columns, strict=False):
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
            points = [(epoch, y) for epoch, y in points if math.isfinite(y)]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None)
            axes.set_title(one_line(name))
            axes.grid(alpha=0.3)
        for axes in grid.flat[len(columns) :]:
            axes.remove()


def draw_plan(
    curves: Sequence[array],
    batches_per_epoch: int,
    path: Path | BinaryIO | str,
    labels: Sequence[str] = (),
) -> None:
    """Draw planned learning rates over the epochs; equal curves share one line.

    Each curve has the learning rate of every batch of a run; `labels` names them (default: group 0,
    1, ...).
    """
    with _figure(path, labels, dpi=150, figsize=(8, 4)) as figure:
        axes = figure.subplots()
        for group in _equal_curves(curves):
            if labels:
                label = ", ".join(labels[i] for i in group)
            else:
                label = "group " + ", ".join(map(str, group))
            _plot_lr(axes, curves[group[0]], batches_per_epoch, _legend_text(label))
        _finish_lr_axes(axes)


def draw_schedule(
    planned: Sequence[array],
    batches_per_epoch: int,
    rows: Sequence[Mapping[str, Any]],
    path: Path | BinaryIO,
) -> None:
    """Draw planned learning rates, and as dots the actual ones at the end of each epoch.

    The latter are the columns lr/0, lr/1, ... of `rows`, which are those of results.csv. `planned`
    has for each parameter group the learning rate of every batch of the run.
    """
    with _figure(path, figsize=(9, 4)) as figure:
        axes = figure.subplots()
        for group in _equal_curves(planned):
            label = "group " + ", ".join(map(str, group))
            _plot_lr(axes, planned[group[0]], batches_per_epoch, f"{label}: planned")
            column = f"lr/{group[0]}"
            # A row has the learning rate of the last batch of its epoch; draw it where that begins.
            last_batch = 1 - 1 / batches_per_epoch
            known = [row for row in rows if row.get(column) is not None]
            epochs = [row["epoch"] + last_batch for row in known]
            axes.plot(epochs, [row[column] for row in known], ".", label=f"{label}: actual")
        _finish_lr_axes(axes)


def _legend_text(name: str) -> str:
    """Return `name` so that a legend shows it: one that starts with _ is ignored of it."""
    text = one_line(name, 80)
    return f" {text}" if text.startswith("_") else text


def _equal_curves(curves: Sequence[array]) -> list[list[int]]:
    """Return the indices of `curves` in groups of bitwise identical ones."""
    groups: dict[bytes, list[int]] = {}
    for i, curve in enumerate(curves):
        groups.setdefault(curve.tobytes(), []).append(i)
    return [*groups.values()]


def _plot_lr(axes: "Axes", curve: array, batches_per_epoch: int, label: str) -> None:
    batches = range(0, len(curve), 1 + len(curve) // MAX_POINTS)
    epochs = [i / batches_per_epoch for i in batches]
    axes.plot(epochs, [curve[i] for i in batches], linewidth=1.2, label=label)


def _finish_lr_axes(axes: "Axes") -> None:
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


# ----------------------------------------------------------------------------------------------
# An evaluation


def draw_curves(
    precision: np.ndarray, scores: np.ndarray, class_names: Sequence[str], out_dir: Path
) -> None:
    """Write PR_curve.png (precision over recall) and F1_curve.png (F1 over confidence threshold).

    `precision` and `scores` (K, 101) are those of `utils.metrics.Curves`.
    """
    recall = np.linspace(0, 1, precision.shape[1])
    thresholds = np.linspace(0, 1, 1001)
    f1 = _f1_at_thresholds(precision, scores, recall, thresholds)
    _draw_class_curves(
        recall, precision, class_names, "recall", "precision", out_dir / "PR_curve.png"
    )
    _draw_class_curves(thresholds, f1, class_names, "confidence", "F1", out_dir / "F1_curve.png")


def _f1_at_thresholds(
    precision: np.ndarray, scores: np.ndarray, recall: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """Return the F1 of each class at each confidence threshold; nan for a class without curves."""
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    f1_at_threshold = np.full((len(precision), len(thresholds)), np.nan)
    for k in np.flatnonzero(~np.isnan(precision).all(1)):
        # Recalls that are reached. Below the lowest score nothing changes, above the highest there
        # are no detections.
        reached = precision[k] > 0
        if not reached.any():
            f1_at_threshold[k] = 0.0
            continue
        x, y = scores[k, reached][::-1], f1[k, reached][::-1]
        f1_at_threshold[k] = np.interp(thresholds, x, y, right=0.0)
    return f1_at_threshold


def _draw_class_curves(
    x: np.ndarray,
    curves: np.ndarray,
    class_names: Sequence[str],
    xlabel: str,
    ylabel: str,
    path: Path,
) -> None:
    """Draw the first `MAX_CURVES` curves (K, len(x)) and the mean of all; skip rows of nan."""
    has_gt = ~np.isnan(curves).all(1)
    names = [name for name, drawn in zip(drawable_names(class_names), has_gt, strict=True) if drawn]
    with _figure(path, names[:MAX_CURVES], figsize=(9, 6)) as figure:
        axes = figure.subplots()
        for name, curve in zip(names[:MAX_CURVES], curves[has_gt], strict=False):
            axes.plot(x, curve, linewidth=1, label=_legend_text(name))
        axes.set(xlabel=xlabel, ylabel=f"{ylabel} at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        if has_gt.any():
            mean = curves[has_gt].mean(0)
            axes.plot(x, mean, linewidth=3, color="black", label="all classes")
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        else:
            axes.set_title("no ground-truth boxes")


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path | BinaryIO) -> None:
    """Draw the confusion matrix (K + 1, K + 1) of `utils.confusion`.

    Colors are fractions of a column, numbers are counts. Of more than `MAX_NAMES` classes the axes
    show indices instead of names.
    """
    fractions = matrix / np.maximum(matrix.sum(0), 1)
    names = drawable_names(class_names) if len(class_names) <= MAX_NAMES else []
    margin = 0.14 * max(map(display_width, names), default=0)  # inches of the longest name
    inches = max(5.0, min(30.0, 1 + margin + 0.6 * len(matrix))) if names else 16.0
    with _figure(path, names, figsize=(inches + 1, inches)) as figure:
        axes = figure.subplots()
        heatmap = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(heatmap, label="fraction of the column")
        axes.set(xlabel="true class", ylabel="predicted class")
        if names:
            ticks = range(len(matrix))
            axes.set_xticks(ticks, [*names, "background"], rotation=90)
            axes.set_yticks(ticks, [*names, "background"])
        if len(matrix) <= MAX_COUNTS:
            for row, column in np.argwhere(matrix):
                color = "white" if fractions[row, column] > 0.5 else "black"
                text = str(matrix[row, column])
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
