"""Run a detector over a validation set."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from utils.amp import autocast
from utils.ground_truth import MAX_DETECTIONS


@torch.no_grad()
def run_inference(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, list[dict[str, Tensor]]]],
    device: torch.device,
    dtype: torch.dtype,
    max_detections: int = MAX_DETECTIONS,
) -> np.ndarray:
    """Run `model` in evaluation mode over validation batches and return its detections.

    Convolutions compute in `dtype`. `batches` yields images (B, C, H, W) and a target for each
    image, with `image_id`, `size` (2,), width and height of the original image, and `scale` (2,),
    the pixels of the sample per pixel of the original image in x and y. Returns an array (k, 7):
    image id, x, y, width, height in pixels of the original image, score, class index; what
    `utils.metrics.evaluate` takes. Boxes are clipped to the image, and each image has the
    `max_detections` with the highest scores.
    """
    model.eval()
    rows = [np.zeros((0, 7))]
    for images, targets in batches:
        with autocast(device, dtype):
            outputs = model(images.to(device, non_blocking=True))
        rows.append(_rows(outputs, targets, max_detections))
    return np.concatenate(rows)


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
