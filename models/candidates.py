"""The candidates of the assignment: every pair of an object and an anchor point inside it.

An object covers few points of its image and none of the other images. So its pairs are enumerated,
level by level, instead of searched for in the full objects x points matrix.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.head import Level, anchor_points


class Candidates(NamedTuple):
    """P pairs of an anchor point and an object, of the N in a batch, that it is inside of.

    They are ordered by object, and within an object by anchor point.
    """

    gt_index: Tensor  # (P,): the object
    point_index: Tensor  # (P,): into the B * A anchor points of the batch
    point: Tensor  # (P, 2): x, y of the anchor point, in pixels
    stride: Tensor  # (P,): of the anchor point, in pixels
    box: Tensor  # (P, 4): the object's box, xyxy in pixels
    label: Tensor  # (P,): the object's class


def find_candidates(
    boxes: Tensor,
    labels: Tensor,
    image_index: Tensor,
    levels: tuple[Level, ...],
    device: torch.device,
) -> Candidates:
    """Return the candidates of a batch, as tensors on `device`.

    boxes (N, 4) float32, xyxy in pixels, labels (N,), and image_index (N,), the image of each
    object, are on the CPU. There the pairs are counted, so that nothing waits for the device, where
    they are made.
    """
    # A block of cells for each object and level: the cells whose anchor points are in the object.
    first, columns, rows, width = cell_blocks(boxes, levels)
    num_points = sum(level.height * level.width for level in levels)
    count = columns * rows
    start = count.flatten().cumsum(0).view_as(count) - count
    block = torch.stack((count, start, first + image_index[:, None] * num_points, columns, width))
    block = _to_device(block.flatten(1).T, device)
    gt = _to_device(torch.cat((boxes, labels[:, None]), dim=1), device)

    index = torch.arange(len(block), device=device)
    index = index.repeat_interleave(block[:, 0], output_size=int(count.sum()))
    _, start, first, columns, width = block[index].unbind(1)
    cell = torch.arange(len(index), device=device) - start
    gt_index = index // len(levels)
    point_index = first + cell // columns * width + cell % columns
    points, strides = anchor_points(levels, device)
    pair_gt, point = gt[gt_index], point_index % num_points
    return Candidates(
        gt_index, point_index, points[point], strides[point], pair_gt[:, :4], pair_gt[:, 4].long()
    )


def cell_blocks(boxes: Tensor, levels: Sequence[Level]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the block of cells of each level whose anchor points are inside each box.

    boxes (N, 4), xyxy in pixels. Returns four tensors (N, L): the index of the block's first anchor
    point among those of the image, its columns and its rows (0 if no point is inside), and the
    columns of the level. A box narrower or lower than the finest stride counts as that wide or
    high, so that even a single pixel has a candidate.
    """
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half_size = (boxes[:, 2:] - boxes[:, :2]) / 2
    half_size = half_size.clamp(min=min(level.stride for level in levels) / 2)
    left, top = (center - half_size).T.contiguous()
    right, bottom = (center + half_size).T.contiguous()
    blocks, level_start = [], 0
    for height, width, stride in levels:
        x, y = (torch.arange(width) + 0.5) * stride, (torch.arange(height) + 0.5) * stride
        first_column = torch.searchsorted(x, left)
        first_row = torch.searchsorted(y, top)
        columns = torch.searchsorted(x, right, right=True) - first_column
        rows = torch.searchsorted(y, bottom, right=True) - first_row
        first = level_start + first_row * width + first_column
        blocks.append((first, columns, rows, torch.full_like(first, width)))
        level_start += height * width
    first, columns, rows, widths = (
        torch.stack(tensors, dim=1) for tensors in zip(*blocks, strict=True)
    )
    return first, columns, rows, widths


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor on the CPU to `device` without waiting for it."""
    if device.type == "cuda":
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)
