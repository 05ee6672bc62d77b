"""COCO metrics of detections: precision, recall, mAP50, mAP75 and mAP50-95, overall and for each class, by faster-coco-eval."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

METRICS = ("precision", "recall", "mAP50", "mAP75", "mAP50-95")


@dataclass(frozen=True)
class Result:
    """What an evaluation found. `overall` has the keys of `METRICS`; `classes` one dict a class, with `class`, `images`,
    `boxes` and the same keys, nan where a class has no box to find."""

    overall: dict[str, float]
    classes: list[dict[str, Any]]


class Curves(NamedTuple):
    """For K classes at IoU 0.5, along recalls 0, 0.01, ..., 1; nan for a class that has no box to find."""

    precision: np.ndarray  # (K, 101): the best at this recall or a higher one
    scores: (
        np.ndarray
    )  # (K, 101): the lowest score of the detections that it takes to get there; 0 beyond the last


def to_coco_gt(
    sizes: np.ndarray,
    offsets: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    crowd: np.ndarray,
    names: Sequence[str],
) -> dict[str, Any]:
    """A split's arrays as a COCO data set, in each picture's own pixels; picture i gets the id i, class k the category id k.

    sizes (n, 2): width, height; offsets (n + 1,); boxes (N, 4): xyxy, 0..1; labels, crowd (N,).
    """
    image = np.repeat(np.arange(len(sizes)), np.diff(offsets))
    corners = boxes.astype(np.float64) * np.tile(sizes[image], 2)
    widths, heights = (corners[:, 2:] - corners[:, :2]).T
    return {
        "images": [{"id": i, "width": int(w), "height": int(h)} for i, (w, h) in enumerate(sizes)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": int(image[i]),
                "category_id": int(labels[i]),
                "bbox": [
                    float(corners[i, 0]),
                    float(corners[i, 1]),
                    float(widths[i]),
                    float(heights[i]),
                ],
                "area": float(widths[i] * heights[i]),
                "iscrowd": int(crowd[i]),
            }
            for i in range(len(labels))
        ],
    }


def evaluate(truth: dict[str, Any], detections: np.ndarray) -> Result:
    """Compare detections (k, 7) - image id, x, y, width, height in the picture's pixels, score, category id - with a COCO truth.

    The averages are COCO's: over IoU 0.50 to 0.95, 101 recall points, at most 100 detections a picture. Precision and recall
    are those at the recall point where a class's F1 at IoU 0.5 is best, averaged over the classes.
    """
    return evaluate_with_curves(truth, detections)[0]


def evaluate_with_curves(truth: dict[str, Any], detections: np.ndarray) -> tuple[Result, Curves]:
    """What `evaluate` finds, and the curves behind precision, recall and F1."""
    from faster_coco_eval import (  # imported here: a run need not wait for it to start
        COCO,
        COCOeval_faster,
    )

    coco = COCO(truth)
    evaluation = COCOeval_faster(
        coco, coco.loadRes(detections), "bbox", print_function=lambda *_: None
    )
    # Only what is asked for: boxes of all sizes, and as many detections as COCO admits.
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.params.maxDets = evaluation.params.maxDets[-1:]
    evaluation.evaluate()
    evaluation.accumulate()
    # [IoU, recall, class, area, detections a picture], -1 where there is no truth
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    present = [k for k in range(precision.shape[2]) if (precision[:, :, k] > -1).all()]
    classes = []
    for k, category in enumerate(truth["categories"]):
        boxes = [a for a in truth["annotations"] if a["category_id"] == k and not a["iscrowd"]]
        row = {
            "class": category["name"],
            "images": len({a["image_id"] for a in boxes}),
            "boxes": len(boxes),
        }
        values = (
            _class_metrics(precision[:, :, k])
            if k in present
            else dict.fromkeys(METRICS, float("nan"))
        )
        classes.append(row | values)
    overall = {
        name: float(np.mean([classes[k][name] for k in present])) if present else 0.0
        for name in METRICS
    }
    shown = [evaluation.eval[key][0, :, :, 0, 0].T.astype(float) for key in ("precision", "scores")]
    absent = ~np.isin(np.arange(len(classes)), present)
    for values in shown:
        values[absent] = np.nan
    return Result(overall, classes), Curves(*shown)


def _class_metrics(precision: np.ndarray) -> dict[str, float]:
    """The metrics of one class from its precision at 10 IoUs (0.50 to 0.95) and 101 recalls."""
    recall = np.linspace(0, 1, 101)
    f1 = 2 * precision[0] * recall / np.maximum(precision[0] + recall, 1e-12)
    best = int(f1.argmax())
    values = (
        precision[0, best],
        recall[best],
        precision[0].mean(),
        precision[5].mean(),
        precision.mean(),
    )
    return dict(zip(METRICS, map(float, values), strict=True))


@torch.no_grad()
def run_inference(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, list[dict[str, Tensor]]]],
    device: torch.device,
    bf16: bool,
) -> np.ndarray:
    """Run `model` over validation batches; its detections (k, 7) as `evaluate` takes them.

    A target's `scale` (2,) takes the sample's pixels back to the picture's, `image_id` says which picture it is.
    """
    model.eval()
    rows = [np.zeros((0, 7))]
    for images, targets in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = model(images.to(device, non_blocking=True))
        for target, result in zip(targets, found, strict=True):
            boxes = result["boxes"].float().cpu() / target["scale"].repeat(2)
            image = torch.full((len(boxes), 1), float(target["image_id"]))
            columns = (
                image,
                boxes[:, :2],
                boxes[:, 2:] - boxes[:, :2],
                result["scores"].cpu()[:, None].float(),
            )
            rows.append(
                torch.cat((*columns, result["labels"].cpu()[:, None].float()), dim=1)
                .double()
                .numpy()
            )
    return np.concatenate(rows)


def format_table(result: Result) -> str:
    """The result as text: one line for all classes, one for each."""
    width = max(len("all"), *(len(row["class"]) for row in result.classes))
    lines = [f"{'class':<{width}}  images   boxes" + "".join(f"{name:>11}" for name in METRICS)]
    total = {
        "class": "all",
        "images": "",
        "boxes": sum(row["boxes"] for row in result.classes),
        **result.overall,
    }
    for row in [total, *result.classes]:
        values = "".join(f"{row[name]:11.3f}" for name in METRICS)
        lines.append(f"{row['class']:<{width}}  {row['images']:>6}  {row['boxes']:>6}{values}")
    return "\n".join(lines)
