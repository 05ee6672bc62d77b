"""The YOLO detection head: anchor-free, with separate box and class branches on every level.

An anchor point is the center of one cell of a feature map, in pixels of the input image. The head
predicts one box for each anchor point, as the distances from the point to the box's four sides. A
distance is the mean of a distribution over `REG_MAX` bins, as in generalized focal loss (Li et al.,
arXiv 2006.04388); the separate branches are those of YOLOX (arXiv 2107.08430).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.blocks import ConvNormAct

REG_MAX = 16  # bins of a distance: 0 to 15 times the stride of the anchor point
MAX_CELLS = 8192  # height and width of the largest feature map of an exported model


class Level(NamedTuple):
    """The size of a feature map in cells, and the size of a cell in pixels."""

    height: int
    width: int
    stride: int


class Predictions(NamedTuple):
    """The head's output for B images and the A anchor points of all levels, always float32."""

    box_logits: Tensor  # (B, A, 4, REG_MAX): of the distances to left, top, right, bottom
    cls_logits: Tensor  # (B, A, num_classes): before the sigmoid
    levels: tuple[Level, ...]  # whose cells are the anchor points, in this order, row by row


def decode_boxes(
    box_logits: Tensor, points: Tensor, strides: Tensor, bins: Tensor | None = None
) -> Tensor:
    """Decode box logits (..., 4, REG_MAX) to boxes (..., 4), xyxy in pixels.

    points (..., 2) and strides (...) are those of the anchor points that predicted them; bins, 0
    to REG_MAX - 1, are made here if they are None.
    """
    if bins is None:
        bins = torch.arange(REG_MAX, device=box_logits.device, dtype=box_logits.dtype)
    distances = (box_logits.softmax(-1) * bins).sum(-1) * strides[..., None]
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def make_anchor_points(levels: Sequence[Level], cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `anchor_points` does, on the device of `cells`, the integers from 0."""
    points, strides = [], []
    with torch.inference_mode(False):  # the cached tensors are used in training, too
        for height, width, stride in levels:
            y, x = (cells[:height] + 0.5) * stride, (cells[:width] + 0.5) * stride
            points.append(torch.cartesian_prod(y, x).flip(-1))
            strides.append(torch.full_like(points[-1][:, 0], float(stride)))
        return torch.cat(points), torch.cat(strides)


@lru_cache(maxsize=64)
def anchor_points(levels: tuple[Level, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the anchor points (A, 2) of all levels, x, y in pixels, and their strides (A,)."""
    cells = torch.arange(max(max(height, width) for height, width, _ in levels), device=device)
    return make_anchor_points(levels, cells)


def _branch(in_channels: int, width: int, out_channels: int, second_kernel: int) -> nn.Sequential:
    second = ConvNormAct(width, width, second_kernel)  # built first: a seed's weights depend on it
    return nn.Sequential(
        ConvNormAct(in_channels, width, 3), second, nn.Conv2d(width, out_channels, 1)
    )


class Head(nn.Module):
    """Map one feature map per level, from fine to coarse, to `Predictions`.

    in_channels, strides: the channels and the stride in pixels of each level; `num_classes` >= 1.
    """

    def __init__(
        self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.register_buffer("cells", None)  # see `prepare_export`
        box_width = max(16, in_channels[0] // 4, 4 * REG_MAX)
        # Independent of the number of classes, so that for other classes all but the last
        # convolutions of a trained model can be kept.
        cls_width = in_channels[0]
        self.box_branches = nn.ModuleList(
            _branch(c, box_width, 4 * REG_MAX, second_kernel=3) for c in in_channels
        )
        # Classification needs a smaller receptive field than box regression.
        self.cls_branches = nn.ModuleList(
            _branch(c, cls_width, num_classes, second_kernel=1) for c in in_channels
        )
        for box_branch, cls_branch in zip(self.box_branches, self.cls_branches, strict=True):
            # An object is a few cells wide on the level that fits it: start with distances of about
            # 2.5 cells instead of half of REG_MAX.
            box_branch[-1].bias.data = -torch.arange(REG_MAX, dtype=torch.float32).repeat(4) / 3
            # The prior of focal loss (Lin et al., arXiv 1708.02002): a score of 0.01, or else the
            # loss of the background would dominate the first steps.
            nn.init.constant_(cls_branch[-1].bias, -math.log(99))

    def forward(self, features: Sequence[Tensor]) -> Predictions:
        box_logits, cls_logits, levels = [], [], []
        for feature, stride, box_branch, cls_branch in zip(
            features, self.strides, self.box_branches, self.cls_branches, strict=True
        ):
            batch_size, _, height, width = feature.shape
            boxes = box_branch(feature).permute(0, 2, 3, 1)
            classes = cls_branch(feature).permute(0, 2, 3, 1)
            box_logits.append(boxes.reshape(batch_size, height * width, 4, REG_MAX))
            cls_logits.append(classes.reshape(batch_size, height * width, classes.shape[-1]))
            levels.append(Level(height, width, stride))
        return Predictions(
            torch.cat(box_logits, dim=1).float(),
            torch.cat(cls_logits, dim=1).float(),
            tuple(levels),
        )

    def levels(self, images: Tensor) -> tuple[Level, ...]:
        """Return the levels that a batch of images (B, 3, H, W) has."""
        height, width = images.shape[-2:]
        return tuple(Level(height // stride, width // stride, stride) for stride in self.strides)

    def decode(self, predictions: Predictions) -> Tensor:
        """Return the boxes (B, A, 4), xyxy in pixels, of what `forward` returned."""
        box_logits, _, levels = predictions
        if self.cells is None:
            return decode_boxes(box_logits, *anchor_points(levels, box_logits.device))
        # Height and width may be symbols, which cannot be cache keys.
        points, strides = make_anchor_points(levels, self.cells)
        return decode_boxes(box_logits, points, strides, self.cells[:REG_MAX])

    def prepare_export(self) -> None:
        """Compute anchor points and bins from a buffer from now on.

        A traced torch.arange keeps the device that it was traced on. A buffer is moved to another
        device with the exported model.
        """
        self.cells = torch.arange(MAX_CELLS, dtype=torch.int32)  # exact after .half(), too
