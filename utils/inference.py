"""Run a detector over a validation set."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from utils.amp import autocast


@torch.no_grad()
def run_inference(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, list[dict[str, Tensor]]]],
    device: torch.device,
    dtype: torch.dtype,
) -> np.ndarray:
    """Run `model` in evaluation mode over validation batches and return its detections.

    Convolutions compute in `dtype`. `batches` yields images (B, 3, H, W) and a target for each
    image, with `image_id` and `scale` (2,), the pixels of the sample per pixel of the original
    image in x and y. Returns an array (k, 7): image id, x, y, width, height in pixels of the
    original image, score, class index; what `utils.metrics.evaluate` takes.
    """
    model.eval()
    rows = [np.zeros((0, 7))]
    for images, targets in batches:
        with autocast(device, dtype):
            outputs = model(images.to(device, non_blocking=True))
        for target, output in zip(targets, outputs, strict=True):
            boxes = output["boxes"].float().cpu() / target["scale"].repeat(2)
            columns = (
                torch.full((len(boxes), 1), float(target["image_id"])),
                boxes[:, :2],
                boxes[:, 2:] - boxes[:, :2],
                output["scores"].cpu()[:, None].float(),
                output["labels"].cpu()[:, None].float(),
            )
            rows.append(torch.cat(columns, dim=1).double().numpy())
    return np.concatenate(rows)
