"""`report.html`: a run on one page that needs no network and runs no script."""

import base64
import html
import io
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from utils.atomic import atomic_write
from utils.confusion import per_image_confusion, per_image_f1
from utils.hyp import Hyp
from utils.metrics import METRICS, Result
from utils.plots import draw_boxes, draw_confusion, draw_results, draw_schedule

SHOWN = 4  # best pictures, and as many of the worst
SCORE = 0.25  # lowest of a detection that is drawn or counted
SIDE = 480  # pixels of the pictures on the page
PACKAGES = ("torch", "torchvision", "faster-coco-eval", "numpy")
STYLE = """
:root { color-scheme: light; } body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: auto;
padding: 2em 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; } code { background: #f3f3f3; }
pre { background: #f3f3f3; padding: .8em; overflow-x: auto; white-space: pre-wrap; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; } td, th { padding: .15em .8em; text-align: right; border-bottom: 1px solid #e4e4e4; }
td:first-child, th:first-child, .facts td { text-align: left; } .pictures { display: grid; gap: 1em;
grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); } figure { margin: 0; } figcaption { font-size: .85em; }
"""


def write_report(
    folder: Path,
    command: str,
    facts: Mapping[str, object],
    hyp: Hyp,
    rows: Sequence[Mapping[str, Any]],
    planned: Sequence[Sequence[float]],
    batches: int,
    result: Result,
    truth: Mapping[str, Any],
    found: Tensor,
    files: Sequence[str],
    picture: Callable[[str], Tensor],
) -> None:
    """Write report.html into the run's `folder`.

    `facts` are lines for the head of the page; `planned` is each group's rate in every batch, `batches` an epoch, and the rows of
    results.csv have those that were followed; `result` is the best epoch's, `found` (k, 7) the detections of `best.pt`, as
    `utils.metrics.evaluate` takes them, from a score of `SCORE` on; `picture` reads one of `files` as (3, h, w) uint8. Raises
    OSError when it cannot be written.
    """
    detections = found.numpy()
    names = [category["name"] for category in truth["categories"]]
    matrices = per_image_confusion(truth, detections, SCORE)
    ranked = per_image_f1(matrices)
    order = sorted((i for i in ranked if not np.isnan(ranked[i])), key=lambda i: (-ranked[i], i))
    best, worst = order[:SHOWN], order[max(SHOWN, len(order) - SHOWN) :][::-1]
    shown = {
        i: _picture(picture(str(files[i])), detections[detections[:, 0] == i], truth, i, names)
        for i in (*best, *worst)
    }
    facts = {
        **facts,
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    facts["system"] = f"{platform.platform()}, {os.cpu_count()} cores"
    counts = sum(matrices.values())
    parts = [
        f"<h1>{html.escape(folder.name)}: mAP50-95 {result.overall['mAP50-95']:.3f}, mAP50 {result.overall['mAP50']:.3f}</h1>",
        f"<pre>{html.escape(command)}</pre>",
        f"<div class='facts'>{_table([(name, str(value)) for name, value in facts.items()])}</div>",
        "<h2>Every class, at the best epoch</h2>",
        _table([_row("all", "", sum(c["boxes"] for c in result.classes), result.overall)]
               + [_row(c["class"], c["images"], c["boxes"], c) for c in result.classes],
               ("class", "images", "boxes", *METRICS)),
        "<h2>Curves</h2>", _png(lambda file: draw_results(rows, file)),
        "<h2>Learning rate: planned, and dots for what the epochs ended with</h2>",
        _png(lambda file: draw_schedule(planned, batches, rows, file)),
        f"<h2>What is taken for what, from a score of {SCORE}</h2>", _png(lambda file: draw_confusion(counts, names, file)),
        "<h2>Best pictures</h2>", _gallery([(shown[i], files[i], ranked[i]) for i in best]),
        "<h2>Worst pictures</h2>", _gallery([(shown[i], files[i], ranked[i]) for i in worst]),
        "<h2>Hyperparameters</h2>", _hyp(hyp.model_dump()),
    ]  # fmt: skip
    page = f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(folder.name)}</title>"
    page += f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    with atomic_write(folder / "report.html") as file:
        file.write(page.encode())


def _row(name: str, images: object, boxes: object, values: Mapping[str, Any]) -> tuple[str, ...]:
    return name, str(images), str(boxes), *(f"{values[metric]:.3f}" for metric in METRICS)


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    lines = (
        [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"] if head else []
    )
    lines += [
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def _hyp(hyp: Mapping[str, Any]) -> str:
    """Every key with its value, and where it is not the default's, the default's too."""
    rows, default = [], _flat(Hyp().model_dump())
    for key, value in _flat(hyp).items():
        usual = f"default: {default[key]}" if key in default else "not in the default"
        rows.append((key, str(value), "" if value == default.get(key, ...) else usual))
    return _table(rows, ("key", "value", "changed"))


def _flat(block: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in block.items():
        found |= (
            _flat(value, f"{before}{key}.")
            if isinstance(value, Mapping)
            else {f"{before}{key}": value}
        )
    return found


def _png(draw: Callable[[io.BytesIO], None]) -> str:
    buffer = io.BytesIO()
    draw(buffer)
    return f"<img src='{_address(buffer, 'png')}' alt=''>"


def _address(file: io.BytesIO, kind: str) -> str:
    """An address that holds the picture itself."""
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _picture(
    image: Tensor, found: np.ndarray, truth: Mapping[str, Any], index: int, names: Sequence[str]
) -> tuple[str, str]:
    """What is there and what was found in a picture, each as the address of a small JPEG that holds itself."""

    def drawn(
        boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float] | None
    ) -> str:
        target = {
            "boxes": torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.long),
        }
        target["boxes"][:, 2:] += target["boxes"][:, :2]
        if scores is not None:
            target["scores"] = torch.tensor(scores)
        small = to_pil_image(draw_boxes(image, target, names))
        small.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
        return _address(buffer, "jpeg")

    there = [a for a in truth["annotations"] if a["image_id"] == index]
    return (
        drawn([a["bbox"] for a in there], [a["category_id"] for a in there], None),
        drawn(found[:, 1:5].tolist(), found[:, 6].astype(int).tolist(), found[:, 5].tolist()),
    )


def _gallery(pictures: Sequence[tuple[tuple[str, str], str, float]]) -> str:
    figures = []
    for (labels, found), file, f1 in pictures:
        name = html.escape(Path(str(file)).name)
        figures.append(
            f"<figure><img src='{labels}' alt='labels of {name}'><img src='{found}' alt='detections in {name}'>"
            f"<figcaption>{name}: labels, and below them what was found; F1 {f1:.2f}</figcaption></figure>"
        )
    return f"<div class='pictures'>{''.join(figures)}</div>"
