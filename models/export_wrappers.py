"""Detectors in the form in which they are exported: tensors in, tensors out."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from models.detector import Detector


class ExportModel(nn.Module):
    """The predictions of a batch, without post-processing, as `Detector.predict` returns them.

    (B, C, H, W) in 0..1, with H and W multiples of the model's stride, to `boxes` (B, A, 4), xyxy
    in pixels, and `scores` (B, A, num_classes) in 0..1.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model
        model.prepare_export()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model.predict(images)


class ExportModelWithNMS(ExportModel):
    """The detections in one image, with the model's thresholds.

    (1, C, H, W) in 0..1, with H and W multiples of the model's stride, to `boxes` (k, 4), xyxy in
    pixels, `scores` (k,), descending, and `labels` (k,).
    """

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[-2:]
        class_aware_nms = partial(_nms_by_offset, offset=height + width)
        (detections,) = self.model.postprocess(
            *self.model.predict(images), [(height, width)], nms=class_aware_nms
        )
        return detections["boxes"], detections["scores"], detections["labels"]


def _nms_by_offset(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """NMS within each class: boxes of different classes are moved apart by `offset` pixels.

    torchvision's `batched_nms` branches on the number of boxes, which exporters cannot follow.
    """
    # In float32: float16 has no pixels beyond 2048, and nothing beyond 65504.
    boxes, scores = boxes.float() + (labels * offset)[:, None], scores.float()
    # torch.export takes for granted that NMS keeps at least 2 boxes, and its program fails on an
    # image with fewer. So there are 2 more, with scores below all others. They have no area, so
    # that nothing overlaps with them and NMS keeps them.
    boxes, scores = F.pad(boxes, (0, 0, 0, 2), value=-1.0), F.pad(scores, (0, 2), value=-1.0)
    return nms(boxes, scores, iou_threshold)[:-2]
