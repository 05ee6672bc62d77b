"""The detection head: two separate branches on every level, one for where a box is, one for what it holds.

Anchor-free: every cell of every level predicts one box, as its distances to the four sides. A distance is the mean of a
distribution over `BINS` cells, as in generalized focal loss (Li et al., arXiv 2006.04388); the separate branches are YOLOX's
(arXiv 2107.08430).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.blocks import ConvNormAct

BINS = 16  # a side lies 0 to 15 cells away from the centre of its cell


class Predictions(NamedTuple):
    """What the head says, for B images and A cells of all levels together, always float32; the cells' grid is on the CPU."""

    sides: Tensor  # (B, A, 4, BINS): logits of the distances to left, top, right, bottom, in cells
    logits: Tensor  # (B, A, classes): before the sigmoid
    centers: Tensor  # (A, 2): x, y of each cell's centre, in pixels
    strides: Tensor  # (A,): the cell's size, in pixels


def decode_boxes(sides: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
    """Distances' logits (..., 4, BINS), centres (..., 2) and strides (...) to boxes (..., 4): xyxy, in pixels."""
    bins = torch.arange(BINS, device=sides.device, dtype=sides.dtype)
    distances = (sides.softmax(-1) * bins).sum(-1) * strides[..., None]
    return torch.cat((centers - distances[..., :2], centers + distances[..., 2:]), dim=-1)


@lru_cache(maxsize=64)
def cell_grid(levels: tuple[tuple[int, int, int], ...]) -> tuple[Tensor, Tensor]:
    """Centres (A, 2): x, y in pixels, and strides (A,) of the cells of all levels (height, width in cells, stride in pixels)."""
    centers, strides = [], []
    with torch.inference_mode(False):  # it is kept for training, too
        for height, width, stride in levels:
            y, x = (torch.arange(height) + 0.5) * stride, (torch.arange(width) + 0.5) * stride
            centers.append(torch.cartesian_prod(y, x).flip(-1))
            strides.append(torch.full((height * width,), float(stride)))
        return torch.cat(centers), torch.cat(strides)


def _branch(in_channels: int, width: int, out_channels: int, second_kernel: int) -> nn.Sequential:
    second = ConvNormAct(width, width, second_kernel)
    return nn.Sequential(
        ConvNormAct(in_channels, width, 3), second, nn.Conv2d(width, out_channels, 1)
    )


class Head(nn.Module):
    """Maps one feature map for each stride to `Predictions`.

    `in_channels[i]` is the width of the map at stride `strides[i]` pixels; `num_classes` >= 1.
    """

    def __init__(
        self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        box_width = max(16, in_channels[0] // 4, 4 * BINS)
        class_width = max(in_channels[0], min(num_classes, 100))
        self.box_branches = nn.ModuleList(_branch(c, box_width, 4 * BINS, 3) for c in in_channels)
        # What an object is needs less of its surroundings than where its sides are.
        self.class_branches = nn.ModuleList(
            _branch(c, class_width, num_classes, 1) for c in in_channels
        )
        for boxes, classes in zip(self.box_branches, self.class_branches, strict=True):
            # An object is a few cells wide on the level that fits it: start with sides about 2.5 cells away, not half of BINS.
            boxes[-1].bias.data = -torch.arange(BINS, dtype=torch.float32).repeat(4) / 3
            # The prior of focal loss (Lin et al., arXiv 1708.02002), so that the background does not drown the first steps.
            nn.init.constant_(classes[-1].bias, -math.log(99))

    def forward(self, features: Sequence[Tensor]) -> Predictions:
        sides, logits, levels = [], [], []
        for feature, stride, boxes, classes in zip(
            features, self.strides, self.box_branches, self.class_branches, strict=True
        ):
            count, _, height, width = feature.shape
            sides.append(boxes(feature).permute(0, 2, 3, 1).reshape(count, height * width, 4, BINS))
            logits.append(
                classes(feature)
                .permute(0, 2, 3, 1)
                .reshape(count, height * width, classes[-1].out_channels)
            )
            levels.append((height, width, stride))
        # What is exported may have sizes that are symbols, under which nothing can be kept.
        grid = cell_grid.__wrapped__ if torch.compiler.is_exporting() else cell_grid
        return Predictions(
            torch.cat(sides, dim=1).float(), torch.cat(logits, dim=1).float(), *grid(tuple(levels))
        )
