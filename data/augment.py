"""What happens to a training sample: mosaic, scale and shift, flips, colour. Every number comes from the `rng` that is passed in.

Pictures are only cut, resized and pasted, never warped: scale and shift are part of where a tile is pasted, so that each source
pixel is touched once, and boxes follow the very same cut.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from utils.hyp import Hyp

GREY = 114  # fills what no picture covers
MIN_VISIBLE = 0.1  # a box of which less than this share is left after cutting is dropped

Labelled = tuple[Tensor, Tensor, Tensor]  # picture (3, h, w) uint8; boxes (n, 4) xyxy in its pixels; labels (n,)


class Canvas:
    """A grey square of `side` pixels to paste pictures on, and the boxes that came with them."""

    def __init__(self, side: int) -> None:
        self.image = torch.full((3, side, side), GREY, dtype=torch.uint8)
        self.side = side
        self.boxes: list[Tensor] = []
        self.labels: list[Tensor] = []

    def paste(self, sample: Labelled, scale: float, left: float, top: float, clip: tuple[int, int, int, int]) -> None:
        """Draw the picture at `scale` with its corner at (left, top), and of it only what lies within `clip` (xyxy, pixels)."""
        image, boxes, labels = sample
        height, width = image.shape[-2:]
        x = _overlap(left, scale * width, clip[0], clip[2], width)
        y = _overlap(top, scale * height, clip[1], clip[3], height)
        if x is None or y is None:
            return
        (x0, x1, from_x0, from_x1), (y0, y1, from_y0, from_y1) = x, y
        part = image[:, from_y0:from_y1, from_x0:from_x1]
        self.image[:, y0:y1, x0:x1] = F.resize(part, [y1 - y0, x1 - x0], antialias=True)
        if not len(boxes):
            return
        ratio = torch.tensor([(x1 - x0) / (from_x1 - from_x0), (y1 - y0) / (from_y1 - from_y0)]).repeat(2)
        moved = (boxes - torch.tensor([from_x0, from_y0]).repeat(2)) * ratio + torch.tensor([x0, y0]).repeat(2)
        cut = torch.stack((moved[:, 0::2].clamp(x0, x1), moved[:, 1::2].clamp(y0, y1)), dim=-1).flatten(1)
        keep = _areas(cut) > MIN_VISIBLE * _areas(moved)
        self.boxes.append(cut[keep])
        self.labels.append(labels[keep])

    def finish(self) -> Labelled:
        """The picture with all boxes that were pasted."""
        if not self.boxes:
            return self.image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
        return self.image, torch.cat(self.boxes), torch.cat(self.labels)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _overlap(start: float, length: float, low: int, high: int, source: int) -> tuple[int, int, int, int] | None:
    """Along one axis: the pixels to draw, and the source pixels to draw them from; None when nothing is left."""
    first, last = max(low, round(start)), min(high, round(start + length))
    if last <= first:
        return None
    from_first = min(source - 1, max(0, math.floor((first - start) / length * source)))
    from_last = min(source, max(from_first + 1, math.ceil((last - start) / length * source)))
    return first, last, from_first, from_last


def place(sample: Labelled, side: int, hyp: Hyp, rng: np.random.Generator) -> Labelled:
    """One picture, its longer side `side` pixels times a random scale, its middle shifted from the canvas's."""
    image = sample[0]
    height, width = image.shape[-2:]
    scale = side / max(height, width) * rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    x, y = rng.uniform(0.5 - hyp.translate, 0.5 + hyp.translate, 2) * side
    canvas = Canvas(side)
    canvas.paste(sample, scale, x - scale * width / 2, y - scale * height / 2, (0, 0, side, side))
    return canvas.finish()


def mosaic(samples: list[Labelled], side: int, hyp: Hyp, rng: np.random.Generator) -> Labelled:
    """Four pictures around a random point, one in each quarter, at one random scale (Bochkovskiy et al., arXiv 2004.10934)."""
    zoom = rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    reach = min(0.5 * zoom + hyp.translate, 0.5)
    x, y = (round(value) for value in rng.uniform(0.5 - reach, 0.5 + reach, 2) * side)
    canvas = Canvas(side)
    quarters = ((0, 0, x, y), (x, 0, side, y), (0, y, x, side), (x, y, side, side))
    for quarter, sample in zip(quarters, samples, strict=True):
        height, width = sample[0].shape[-2:]
        scale = side / max(height, width) * zoom
        left = x if quarter[0] == x else x - scale * width
        top = y if quarter[1] == y else y - scale * height
        canvas.paste(sample, scale, left, top, quarter)
    return canvas.finish()


def flip(sample: Labelled, hyp: Hyp, rng: np.random.Generator) -> Labelled:
    """Left to right, upside down, each with its probability."""
    image, boxes, labels = sample
    height, width = image.shape[-2:]
    across, down = rng.random(2) < (hyp.fliplr, hyp.flipud)
    if across:
        image = image.flip(-1)
        boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)
    if down:
        image = image.flip(-2)
        boxes = torch.stack((boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]), dim=1)
    return image, boxes, labels


def jitter(image: Tensor, hyp: Hyp, rng: np.random.Generator) -> Tensor:
    """Brightness, saturation and hue at once: all three are linear in RGB, so together they are one 3x3 matrix.

    Saturation blends with the grey of the same luma (ITU-R BT.601's weights, as torchvision's); hue is a rotation about the grey
    axis (Rodrigues' formula), which is cheaper than the way through HSV and differs little from it for small angles.
    """
    brightness, saturation = (rng.uniform(1 - r, 1 + r) for r in (hyp.brightness, hyp.saturation))
    angle = 2 * math.pi * rng.uniform(-hyp.hue, hyp.hue)
    if not (hyp.brightness or hyp.saturation or hyp.hue):
        return image
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    rotation = math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) / 3
    matrix = brightness * (saturation * np.eye(3) + (1 - saturation) * luma) @ rotation
    pixels = torch.from_numpy(matrix.astype(np.float32)) @ image.flatten(1).float()
    return pixels.add_(0.5).clamp_(0, 255).to(torch.uint8).view_as(image)
