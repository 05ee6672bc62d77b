"""What happens to a training sample: mosaic, scale and shift, flips, colour. Every number comes from the `rng` that is passed in.

Pictures are only cut, resized and pasted, never warped: scale and shift are part of where a tile is pasted, so that each source
pixel is touched once, and boxes follow the very same cut. Colour is a matrix for each picture, applied to a whole batch on the
device that trains.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.hyp import Hyp

GRAY = 114  # fills what no picture covers
MIN_VISIBLE = 0.1  # a box of which less than this share is left after cutting is dropped

Sample = tuple[
    Tensor, np.ndarray, np.ndarray
]  # picture (3, h, w) uint8; boxes (n, 4) float32 xyxy in its pixels; labels (n,)


class Canvas:
    """A grey picture of `height` x `width` pixels to paste others on, and the boxes that came with them.

    Its pixels lie as a decoder writes them and a convolution reads them, colour by colour of each pixel (channels-last).
    """

    def __init__(self, height: int, width: int) -> None:
        self.image = torch.full((height, width, 3), GRAY, dtype=torch.uint8).permute(2, 0, 1)
        self.boxes = [np.zeros((0, 4), np.float32)]
        self.labels = [np.zeros(0, np.int64)]

    def paste(
        self, sample: Sample, scale: float, left: float, top: float, clip: tuple[int, int, int, int]
    ) -> None:
        """Draw the picture at `scale` with its corner at (left, top), and of it only what lies within `clip` (xyxy, pixels)."""
        image, boxes, labels = sample
        height, width = image.shape[-2:]
        x = _overlap(left, scale * width, clip[0], clip[2], width)
        y = _overlap(top, scale * height, clip[1], clip[3], height)
        if x is None or y is None:
            return
        (x0, x1, from_x0, from_x1), (y0, y1, from_y0, from_y1) = x, y
        self.image[:, y0:y1, x0:x1] = resize(
            image[:, from_y0:from_y1, from_x0:from_x1], y1 - y0, x1 - x0
        )
        if not len(boxes):
            return
        zoom_x, zoom_y = (x1 - x0) / (from_x1 - from_x0), (y1 - y0) / (from_y1 - from_y0)
        moved = boxes * np.float32([zoom_x, zoom_y, zoom_x, zoom_y])
        moved += np.float32([x0 - from_x0 * zoom_x, y0 - from_y0 * zoom_y] * 2)
        cut = np.minimum(
            np.maximum(moved, np.float32([x0, y0, x0, y0])), np.float32([x1, y1, x1, y1])
        )
        keep = _areas(cut) > MIN_VISIBLE * _areas(moved)
        self.boxes.append(cut[keep])
        self.labels.append(labels[keep])

    def finish(self) -> Sample:
        """The picture with all boxes that were pasted."""
        return self.image, np.concatenate(self.boxes), np.concatenate(self.labels)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """A picture (3, h, w) uint8, or a part of one, in another size; what gets smaller is averaged, not skipped."""
    if image.shape[1:] == (height, width):
        return image
    # In one piece, and the colours of a pixel side by side: resized from a view it takes twice as long.
    one = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(one, (height, width), mode="bilinear", antialias=True)[0]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _overlap(
    start: float, length: float, low: int, high: int, source: int
) -> tuple[int, int, int, int] | None:
    """Along one axis: the pixels to draw, and the source pixels to draw them from; None when nothing is left."""
    first, last = max(low, round(start)), min(high, round(start + length))
    if last <= first:
        return None
    from_first = min(source - 1, max(0, math.floor((first - start) / length * source)))
    from_last = min(source, max(from_first + 1, math.ceil((last - start) / length * source)))
    return first, last, from_first, from_last


def random_scale_translate(sample: Sample, side: int, hyp: Hyp, rng: np.random.Generator) -> Sample:
    """One picture, its longer side `side` pixels times a random scale, its middle shifted from the canvas's."""
    image = sample[0]
    height, width = image.shape[-2:]
    scale = side / max(height, width) * rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    x, y = rng.uniform(0.5 - hyp.translate, 0.5 + hyp.translate, 2) * side
    canvas = Canvas(side, side)
    canvas.paste(sample, scale, x - scale * width / 2, y - scale * height / 2, (0, 0, side, side))
    return canvas.finish()


def mosaic(samples: list[Sample], side: int, hyp: Hyp, rng: np.random.Generator) -> Sample:
    """Four pictures around a random point, one in each quarter, at one random scale (Bochkovskiy et al., arXiv 2004.10934)."""
    zoom = rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    reach = min(0.5 * zoom + hyp.translate, 0.5)
    x, y = (round(value) for value in rng.uniform(0.5 - reach, 0.5 + reach, 2) * side)
    canvas = Canvas(side, side)
    quarters = ((0, 0, x, y), (x, 0, side, y), (0, y, x, side), (x, y, side, side))
    for quarter, sample in zip(quarters, samples, strict=True):
        height, width = sample[0].shape[-2:]
        scale = side / max(height, width) * zoom
        left = x if quarter[0] == x else x - scale * width
        top = y if quarter[1] == y else y - scale * height
        canvas.paste(sample, scale, left, top, quarter)
    return canvas.finish()


def flip(sample: Sample, hyp: Hyp, rng: np.random.Generator) -> Sample:
    """Left to right, upside down, each with its probability."""
    image, boxes, labels = sample
    height, width = image.shape[-2:]
    across, down = rng.random(2) < (hyp.fliplr, hyp.flipud)
    if across:
        image = image.flip(-1)
        boxes = np.stack(
            (width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), axis=1
        )
    if down:
        image = image.flip(-2)
        boxes = np.stack(
            (boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]), axis=1
        )
    return image, boxes, labels


def color_matrix(hyp: Hyp, rng: np.random.Generator) -> np.ndarray:
    """Brightness, saturation and hue at once: all three are linear in RGB, so together they are one matrix (3, 3) float32.

    Saturation blends with the grey of the same luma (ITU-R BT.601's weights, as torchvision's); hue is a rotation about the grey
    axis (Rodrigues' formula), which is cheaper than the way through HSV and differs little from it for small angles.
    """
    brightness, saturation = (rng.uniform(1 - r, 1 + r) for r in (hyp.brightness, hyp.saturation))
    angle = 2 * math.pi * rng.uniform(-hyp.hue, hyp.hue)
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    rotation = math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) / 3
    return (brightness * (saturation * np.eye(3) + (1 - saturation) * luma) @ rotation).astype(
        np.float32
    )


def apply_color_matrix(images: Tensor, matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A batch (B, 3, h, w) uint8, each picture in the colours that its matrix (3, 3) makes of its own: `dtype`, 0..1.

    It is done after the copy to the device, for the whole batch, where it costs next to nothing.
    """
    matrix = torch.stack([*matrices]).to(images.device, non_blocking=True) / 255
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2).to(dtype)
    colored = torch.bmm(pixels, matrix.mT.to(dtype)).clamp_(0, 1)
    return colored.unflatten(1, images.shape[-2:]).permute(0, 3, 1, 2)
