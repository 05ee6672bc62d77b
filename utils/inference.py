"""Run a detector over a validation set."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from utils.amp import autocast
from utils.ground_truth import MAX_DETECTIONS
from utils.val_loss import LossTotals


@torch.no_grad()
def run_inference(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, list[dict[str, Tensor]]]],
    device: torch.device,
    dtype: torch.dtype,
    max_detections: int = MAX_DETECTIONS,
    losses: LossTotals | None = None,
) -> np.ndarray:
    """Run `model` in evaluation mode over validation batches and return its detections.

    Convolutions compute in `dtype`. `batches` yields images (B, C, H, W) and a target for each
    image, with `image_id`, `size` (2,), width and height of the original image, and `scale` (2,),
    the pixels of the sample per pixel of the original image in x and y. Returns an array (k, 7):
    image id, x, y, width, height in pixels of the original image, score, class index; what
    `utils.metrics.evaluate` takes. Boxes are clipped to the image, and each image has the
    `max_detections` with the highest scores.

    With `losses`, a `Detector` adds its losses to them in the same forward pass; the targets then
    have `boxes` (n, 4), xyxy in pixels of the sample, `labels` (n,) and `crowd` (n,), too. Crowds
    are no objects in the loss, as in training.
    """
    model.eval()
    rows = [np.zeros((0, 7))]
    # Until the outermost context ends, autocast keeps what it casts, if that requires gradients, as
    # the weights of `models.load` do. Without this one they would be cast anew for every batch.
    with torch.autocast(device.type, enabled=False):
        for images, targets in batches:
            images = images.to(device, non_blocking=True)
            sizes = [_size_without_padding(target) for target in targets]
            with autocast(device, dtype):
                if losses is None:
                    outputs = model(images, sizes=sizes)
                else:
                    objects = [_without_crowds(target) for target in targets]
                    outputs, sums, divisor = model.detect_and_sum_losses(images, objects, sizes)
                    losses.add(sums, divisor)
            rows.append(_rows(outputs, targets, max_detections))
    return np.concatenate(rows)


def _size_without_padding(target: dict[str, Tensor]) -> tuple[int, int]:
    """Return height and width of the image in a sample.

    To NMS a box that reaches into the padding is as detect.py, which pads less, sees it.
    """
    width, height = target["size"].numpy() * target["scale"].numpy()
    return round(float(height)), round(float(width))


def _without_crowds(target: dict[str, Tensor]) -> dict[str, Tensor]:
    keep = ~target["crowd"]
    return {key: target[key][keep] for key in ("boxes", "labels")}


def _rows(
    outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]], max_detections: int
) -> np.ndarray:
    """Return the rows of `run_inference` of one batch, with one copy from the device."""
    counts = torch.tensor([min(len(output["boxes"]), max_detections) for output in outputs])
    boxes, scores, labels = (
        torch.cat([output[key][:max_detections].float() for output in outputs])  # best first
        for key in ("boxes", "scores", "labels")
    )
    detections = torch.cat((boxes, scores[:, None], labels[:, None]), dim=1).cpu()
    image_ids, sizes, scales = (
        torch.stack([target[key] for target in targets]).repeat_interleave(counts, dim=0)
        for key in ("image_id", "size", "scale")
    )
    corners = (detections[:, :4] / scales.repeat(1, 2)).clamp(min=0).minimum(sizes.repeat(1, 2))
    columns = (
        image_ids[:, None].double(),
        corners[:, :2],
        corners[:, 2:] - corners[:, :2],
        detections[:, 4:],
    )
    return torch.cat(columns, dim=1).numpy()
