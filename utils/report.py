"""`report.html`: a run on one page that needs no network and runs no script."""

import base64
import html
import io
import platform
import shlex
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from utils.atomic import atomic_write
from utils.confusion import CONF, confusion_matrix, match_detections, per_image_f1
from utils.cpus import cpu_count
from utils.ground_truth import GroundTruth
from utils.hyp import Hyp
from utils.keep_going import KeepGoing
from utils.metrics import COLUMNS, Result, format_metric, table_rows
from utils.plots import draw_boxes, draw_confusion, draw_results, draw_schedule

GALLERY_SIZE = 4  # best images, and as many of the worst
REPORT_CONF = CONF  # score above which a detection is drawn and counted
IMAGE_SIZE = 480  # pixels, longer side of an image on the page
PACKAGES = ("torch", "torchvision", "numpy")
STYLE = """
:root { color-scheme: light; } img { max-width: 100%; height: auto; } figure { margin: 0; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: auto; padding: 2em 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; }
pre { background: #f3f3f3; padding: .8em; overflow-x: auto; white-space: pre-wrap; }
code { background: #f3f3f3; } figcaption { font-size: .85em; } table { border-collapse: collapse; }
td, th { padding: .15em .8em; text-align: right; border-bottom: 1px solid #e4e4e4; }
td:first-child, th:first-child, .environment td { text-align: left; }
.gallery { display: grid; gap: 1em; }
.gallery { grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); }
"""


@dataclass(frozen=True)
class RunSummary:
    """What the report says about a run."""

    command: str
    """The command line that starts the run again, as `command_line` returns it."""
    environment: Mapping[str, object]
    """What results depend on besides the command, by name: device, precision, processes."""
    hyp: Hyp
    """The hyperparameters."""
    rows: Sequence[Mapping[str, Any]]
    """The rows of results.csv, one for each epoch."""
    planned: Sequence[array]
    """For each parameter group the planned learning rate of every batch of the run."""
    batches_per_epoch: int
    """Number of batches in an epoch, to which `planned` refers."""
    result: Result
    """The metrics of the best epoch."""
    ground_truth: GroundTruth
    """The boxes of the validation set."""
    detections: Tensor
    """The best epoch's detections (k, 7), as `utils.inference.run_inference` returns them.

    Those with a score of at most `REPORT_CONF` may be missing.
    """
    files: Sequence[str]
    """The image file of each image id."""
    read_image: Callable[[str], Tensor]
    """Reads one of `files` as (C, h, w) uint8."""
    curves: Path | None = None
    """The file with the plot of `rows`, if it has been drawn already."""


def command_line(program: str, args: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the command that runs `program` with `args`, without defaults and --resume.

    Arguments of an older version, which have no default, are omitted.
    """
    words = ["python", program]
    for key, value in args.items():
        if key in defaults and value != defaults[key] and key != "resume":
            words.append(f"--{key.replace('_', '-')}")
            if value is not True:
                words.append(str(value))
    return shlex.join(words)


def write_report(run_dir: Path, summary: RunSummary, keep_going: KeepGoing | None = None) -> None:
    """Write report.html to `run_dir`, without a section that cannot be made.

    Raises OSError when the file cannot be written.
    """
    path = run_dir / "report.html"
    keep_going = keep_going or KeepGoing()
    detections = summary.detections.numpy()
    class_names = summary.ground_truth.class_names
    matches = match_detections(summary.ground_truth, detections, REPORT_CONF)
    matrix = confusion_matrix(matches, len(class_names))
    f1 = per_image_f1(matches, len(class_names))
    ranking = sorted(f1, key=lambda i: (-f1[i], i))
    best = ranking[:GALLERY_SIZE]
    worst = ranking[max(GALLERY_SIZE, len(ranking) - GALLERY_SIZE) :][::-1]

    def gallery(image_ids: Sequence[int]) -> str:
        figures = []
        for i in image_ids:
            with keep_going.without(f"{path}: {summary.files[i]}"):
                figures.append(_figure(summary, detections, i, class_names, f1[i]))
        return f"<div class='gallery'>{''.join(figures)}</div>"

    sections: dict[str, Callable[[], str]] = {
        "Environment": lambda: _environment_table(summary.environment),
        "Per-class metrics": lambda: _metrics_table(summary.result),
        "Training curves": lambda: _png(partial(_write_curves, summary)),
        "Learning rate: planned and actual": lambda: _png(
            lambda file: draw_schedule(
                summary.planned, summary.batches_per_epoch, summary.rows, file
            )
        ),
        f"Confusion matrix (confidence > {REPORT_CONF})": lambda: _png(
            lambda file: draw_confusion(matrix, class_names, file)
        ),
        "Best images": lambda: _none_correct(f1, best) + gallery(best),
        "Worst images": lambda: gallery(worst),
        "Hyperparameters": lambda: _hyp_table(summary.hyp.model_dump()),
    }
    overall = summary.result.overall
    title = html.escape(run_dir.name)
    parts = [
        f"<h1>{title}: mAP50-95 {overall['mAP50-95']:.3f}, mAP50 {overall['mAP50']:.3f}</h1>",
        f"<pre>{html.escape(summary.command)}</pre>",
    ]
    for heading, make in sections.items():
        with keep_going.without(f"{path}: {heading}"):
            content = make()
            if heading == "Environment":  # it needs no heading
                parts.append(f"<div class='environment'>{content}</div>")
            else:
                parts += [f"<h2>{html.escape(heading)}</h2>", content]
    page = (
        f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    with atomic_write(path) as file:
        # A byte of a file name that is not UTF-8 is shown as a backslash with its number.
        file.write(page.encode(errors="backslashreplace"))


def _table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    lines = []
    if header:
        lines.append(f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>")
    for row in rows:
        lines.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _environment_table(environment: Mapping[str, object]) -> str:
    versions = {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    system = {"system": f"{platform.platform()}, {cpu_count()} cores"}
    entries = {**environment, **versions, **system}
    return _table([(name, str(value)) for name, value in entries.items()])


def _metrics_table(result: Result) -> str:
    header = ("class", "images", "boxes", *COLUMNS)
    rows = [
        [*(str(row[key]) for key in header[:3]), *(format_metric(row[key]) for key in COLUMNS)]
        for row in table_rows(result)
    ]
    return _table(rows, header)


def _hyp_table(hyp: Mapping[str, Any]) -> str:
    """Return a table of every key with its value and, if it was changed, the default."""
    rows, defaults = [], _flatten(Hyp().model_dump())
    for key, value in _flatten(hyp).items():
        if key not in defaults:
            note = "not in the default"
        elif value != defaults[key]:
            note = f"default: {defaults[key]}"
        else:
            note = ""
        rows.append((key, str(value), note))
    return _table(rows, ("key", "value", "changed"))


def _flatten(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with keys such as `scheduler.name`."""
    flat: dict[str, Any] = {}
    for key, value in block.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _data_uri(file: io.BytesIO, subtype: str) -> str:
    """Return a URI that contains the image itself."""
    return f"data:image/{subtype};base64,{base64.b64encode(file.getvalue()).decode()}"


def _png(draw: Callable[[io.BytesIO], None]) -> str:
    buffer = io.BytesIO()
    draw(buffer)
    return f"<img src='{_data_uri(buffer, 'png')}' alt=''>"


def _write_curves(summary: RunSummary, file: io.BytesIO) -> None:
    if summary.curves:
        file.write(summary.curves.read_bytes())
    else:
        draw_results(summary.rows, file)


def _none_correct(f1: Mapping[int, float], image_ids: Sequence[int]) -> str:
    """Return a sentence if none of the images has a correct detection, else ""."""
    if any(f1[i] > 0 for i in image_ids):
        return ""
    return f"<p>No image has a correct detection with a score above {REPORT_CONF}.</p>"


def _figure(
    summary: RunSummary,
    detections: np.ndarray,
    image_id: int,
    class_names: Sequence[str],
    f1: float,
) -> str:
    """Return an image twice, with its ground truth and with its detections, as small JPEGs."""
    path = str(summary.files[image_id])
    image = summary.read_image(path)
    boxes = summary.ground_truth.rows(image_id)
    ground_truth = {
        "boxes": _xyxy(summary.ground_truth.xywh[boxes].tolist()),
        "labels": torch.tensor(summary.ground_truth.labels[boxes].tolist(), dtype=torch.long),
    }
    rows = detections[detections[:, 0] == image_id]
    predictions = {
        "boxes": _xyxy(rows[:, 1:5].tolist()),
        "labels": torch.tensor(rows[:, 6].astype(int).tolist(), dtype=torch.long),
        "scores": torch.tensor(rows[:, 5].tolist()),
    }
    name = html.escape(Path(path).name)
    found = "detections" if len(rows) else f"no detection above {REPORT_CONF}"
    top, bottom = (_jpeg(image, target, class_names) for target in (ground_truth, predictions))
    return (
        f"<figure><img src='{top}' alt='ground truth of {name}'>"
        f"<img src='{bottom}' alt='detections in {name}'>"
        f"<figcaption>{name}: ground truth (top), {found} (bottom); F1 {f1:.2f}</figcaption>"
        "</figure>"
    )


def _xyxy(xywh: Sequence[Sequence[float]]) -> Tensor:
    boxes = torch.tensor(xywh, dtype=torch.float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _jpeg(image: Tensor, target: dict[str, Tensor], class_names: Sequence[str]) -> str:
    # Boxes are drawn on the image in its size on the page, so that their labels are legible there.
    thumbnail = ImageOps.contain(to_pil_image(image), (IMAGE_SIZE, IMAGE_SIZE))
    scale = torch.tensor([thumbnail.width / image.shape[2], thumbnail.height / image.shape[1]])
    target = target | {"boxes": target["boxes"] * scale.repeat(2)}
    buffer = io.BytesIO()
    drawn = draw_boxes(pil_to_tensor(thumbnail), target, class_names)
    to_pil_image(drawn).save(buffer, "JPEG", quality=85)
    return _data_uri(buffer, "jpeg")
