"""The anchor-free YOLO, in the sizes n, s, m, l and x.

A CSP backbone, a path-aggregation neck (Liu et al., arXiv 1803.01534) and the head of `head.py` on strides 8, 16 and 32.
Widths and depths from stride 8 on are those that the YOLOv8 family made the field's yardstick, so that parameters and FLOPs can
be compared size by size.

The interface is torchvision's for detectors: `model(images, targets)` in training gives a dict of losses, `model(images)` in
evaluation a list with one dict of `boxes`, `scores` and `labels` for each picture.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from models.blocks import ConvNormAct, CSPStage, PyramidPooling
from models.head import Head, Predictions, decode_boxes
from models.loss import detection_loss
from models.torchvision_backbones import TorchvisionBackbone

GRAY = 114  # what the empty part of a letterboxed picture is filled with, of 255


class Size(NamedTuple):
    """How a size scales the network: bottlenecks by `depth`, channels by `width`, the deepest level's at most `max_channels`."""

    depth: float
    width: float
    max_channels: int

    def widths(self) -> list[int]:
        """The channels at strides 4, 8, 16 and 32."""
        return [
            int(min(channels, self.max_channels) * self.width) for channels in (128, 256, 512, 1024)
        ]


SIZES = {
    "n": Size(1 / 3, 0.25, 1024),
    "s": Size(1 / 3, 0.50, 1024),
    "m": Size(2 / 3, 0.75, 768),
    "l": Size(1.0, 1.00, 512),
    "x": Size(1.0, 1.25, 512),
}


class Backbone(nn.Module):
    """Pictures (B, 3, H, W) to feature maps at strides 8, 16 and 32; `channels` holds their widths."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        c = size.widths()
        d = [max(1, round(depth * size.depth)) for depth in (3, 6, 6, 3)]
        # Straight to stride 4, and plain convolutions there: on maps that large norms and activations cost more than they do.
        self.stem = nn.Sequential(
            ConvNormAct(3, c[0], 6, 4), *(ConvNormAct(c[0], c[0], 3) for _ in range(d[0]))
        )
        self.stage8 = nn.Sequential(
            ConvNormAct(c[0], c[1], 3, 2), CSPStage(c[1], c[1], d[1], shortcut=True)
        )
        self.stage16 = nn.Sequential(
            ConvNormAct(c[1], c[2], 3, 2), CSPStage(c[2], c[2], d[2], shortcut=True)
        )
        self.stage32 = nn.Sequential(
            ConvNormAct(c[2], c[3], 3, 2),
            CSPStage(c[3], c[3], d[3], shortcut=True),
            PyramidPooling(c[3], c[3]),
        )
        self.channels = tuple(c[1:])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p8 = self.stage8(self.stem(x))
        p16 = self.stage16(p8)
        return p8, p16, self.stage32(p16)


class Neck(nn.Module):
    """Carries the deep levels' meaning up to the fine ones and the fine levels' detail back down; widths stay as they are."""

    def __init__(self, channels: Sequence[int], depth: int) -> None:
        super().__init__()
        c8, c16, c32 = channels
        self.up16 = CSPStage(c32 + c16, c16, depth, shortcut=False)
        self.up8 = CSPStage(c16 + c8, c8, depth, shortcut=False)
        self.shrink8 = ConvNormAct(c8, c8, 3, 2)
        self.down16 = CSPStage(c8 + c16, c16, depth, shortcut=False)
        self.shrink16 = ConvNormAct(c16, c16, 3, 2)
        self.down32 = CSPStage(c16 + c32, c32, depth, shortcut=False)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        p8, p16, p32 = features
        p16 = self.up16(torch.cat((F.interpolate(p32, scale_factor=2.0), p16), dim=1))
        n8 = self.up8(torch.cat((F.interpolate(p16, scale_factor=2.0), p8), dim=1))
        n16 = self.down16(torch.cat((self.shrink8(n8), p16), dim=1))
        n32 = self.down32(torch.cat((self.shrink16(n16), p32), dim=1))
        return n8, n16, n32


class YOLO(nn.Module):
    """The detector.

    `num_classes` >= 1, labels 0-based. In evaluation a picture gives at most `detections_per_img` boxes with a score above
    `score_thresh`, out of its `topk_candidates` best, after non-maximum suppression at IoU `nms_thresh` within each class.
    `backbone` names a classifier of torchvision that takes the place of our own backbone. Raises KeyError for a size that is not
    in `SIZES`, UserError for a classifier that has no maps for the neck.
    """

    stride = 32

    def __init__(
        self,
        size: str = "n",
        num_classes: int = 80,
        gains: tuple[float, float, float] = (7.5, 0.5, 1.5),
        score_thresh: float = 0.001,
        nms_thresh: float = 0.7,
        detections_per_img: int = 300,
        topk_candidates: int = 1000,
        backbone: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = (
            TorchvisionBackbone(backbone, SIZES[size].widths()[1:])
            if backbone
            else Backbone(SIZES[size])
        )
        self.neck = Neck(self.backbone.channels, max(1, round(3 * SIZES[size].depth)))
        self.head = Head(self.backbone.channels, (8, 16, 32), num_classes)
        self.gains = dict(zip(("box", "cls", "dfl"), gains, strict=True))
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_img, self.topk_candidates = detections_per_img, topk_candidates

    def set_thresholds(self, score: float | None = None, iou: float | None = None) -> None:
        """The lowest score of a detection, and the overlap above which the one with the lower score is dropped."""
        self.score_thresh = self.score_thresh if score is None else score
        self.nms_thresh = self.nms_thresh if iou is None else iou

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters: `matrices` (hidden convolutions), `weights`, `no_decay`."""
        hidden = {m.weight for m in self.modules() if isinstance(m, nn.Conv2d) and m.bias is None and m.groups == 1}
        groups: dict[str, list[nn.Parameter]] = {"matrices": [], "weights": [], "no_decay": []}
        for p in self.parameters():
            if p.requires_grad:
                groups["no_decay" if p.ndim <= 1 else "matrices" if p in hidden else "weights"].append(p)
        return groups

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        images: (B, 3, H, W), or B pictures (3, h, w) of any sizes; uint8 in 0..255 or float in 0..1.
        targets (training only): for each picture `boxes` (n, 4) xyxy in pixels and `labels` (n,) int64.
        Returns the dict of losses, gains included (`box`, `cls`, `dfl`: their sum is what to minimise), or for each picture
        `boxes` (k, 4) xyxy in pixels within the picture, `scores` (k,) in 0..1, descending, and `labels` (k,).
        Raises ValueError in training without targets.
        """
        sizes = [tuple(image.shape[-2:]) for image in images]
        predictions = self.head(self.neck(self.backbone(self._batch(images, sizes))))
        if not self.training:
            return self._detections(predictions, sizes)
        if targets is None:
            raise ValueError("in training mode the model needs targets")
        return {
            name: loss * self.gains[name]
            for name, loss in detection_loss(predictions, targets).items()
        }

    def _batch(self, images: Tensor | Sequence[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """One float batch whose sides are multiples of the stride, pictures at the top left, the rest grey."""
        height = -(-max(h for h, _ in sizes) // self.stride) * self.stride
        width = -(-max(w for _, w in sizes) // self.stride) * self.stride
        if not (isinstance(images, Tensor) and images.shape[-2:] == (height, width)):
            grey = GRAY / 255 if images[0].is_floating_point() else GRAY
            images = torch.stack(
                [
                    F.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2]), value=grey)
                    for i in images
                ]
            )
        images = images.to(memory_format=torch.channels_last)
        return images if images.is_floating_point() else images.float() / 255

    def _detections(
        self, predictions: Predictions, sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        centers, strides = (
            grid.to(predictions.sides.device) for grid in (predictions.centers, predictions.strides)
        )
        boxes = decode_boxes(predictions.sides, centers, strides)
        scores = predictions.logits.sigmoid()
        classes, results = scores.shape[-1], []
        for box, score, size in zip(boxes, scores, sizes, strict=True):
            # Every class of a cell stands for itself, as the COCO metrics want it.
            score, index = score.flatten().topk(min(self.topk_candidates, score.numel()))
            index = index[score > self.score_thresh]
            score, label = score[: len(index)], index % classes
            box = clip_boxes_to_image(box[index // classes], size)
            keep = batched_nms(box, score, label, self.nms_thresh)[: self.detections_per_img]
            results.append({"boxes": box[keep], "scores": score[keep], "labels": label[keep]})
        return results
