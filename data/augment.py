"""Augmentation of training samples: mosaic, scale and translation, flips, color.

`train_transforms` lists the transforms in their order; to add one, write a class like
`HorizontalFlip` and add it to the list. Each transform draws from a random stream of its own
(`data.sampler.transform_rng`), so that adding or disabling one changes what none of the others do.

Images are only cut, resized and pasted, never warped: scale and translation are part of where an
image is pasted, so that each pixel is resampled once and boxes follow exactly. Color is a matrix
per image, applied to a whole batch on the training device.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.sampler import MOSAIC_SIZE
from utils.hyp import Hyp
from utils.letterbox import GRAY

IDENTITY = np.eye(3)
LUMA = np.tile([0.299, 0.587, 0.114], (3, 1))  # each row: the luma of a color, ITU-R BT.601
GRAY_AXIS_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # cross product
MIN_VISIBLE = 0.1  # a box is dropped if less than this fraction of its area is left after clipping


class Sample(NamedTuple):
    """An image and its boxes."""

    image: Tensor  # (channels, h, w) uint8
    boxes: np.ndarray  # (n, 4) float32, xyxy in pixels of the image
    labels: np.ndarray  # (n,) int64


class SampleContext(NamedTuple):
    """What a transform may need besides the sample."""

    epoch: int
    imgsz: int  # height and width of the finished sample, pixels
    neighbors: Sequence[Sample]  # next MOSAIC_SIZE - 1 images of the epoch, decoded when indexed


class Transform(Protocol):
    """A step of the augmentation.

    `name` is unique and sets the random stream `rng`. The images may be shared with other samples
    of the batch and with the cache: return a new `Sample`, never write into the old one's arrays.
    """

    name: str

    def __call__(
        self, sample: Sample, rng: np.random.Generator, context: SampleContext
    ) -> Sample: ...


def train_transforms(hyp: Hyp, mosaic_until: int) -> list[Transform]:
    """Return the transforms of a training sample, in the order in which they run.

    Before `MosaicOrSingle` a sample is an image as it was decoded, after it `imgsz` x `imgsz`
    pixels. Color comes last and is not in the list: `color_matrix` draws it for a sample, and
    `apply_color_matrix` applies it to a whole batch on the training device.
    """
    return [
        MosaicOrSingle(hyp, mosaic_until),
        HorizontalFlip(hyp.fliplr),
        VerticalFlip(hyp.flipud),
    ]


def mosaic_warning(hyp: Hyp, epochs: int) -> list[str]:
    """Return a list with a warning if a run of `epochs` ends before its mosaics begin, else []."""
    if hyp.mosaic == 0 or epochs > hyp.close_mosaic:
        return []
    return [
        f"--epochs {epochs}: no epoch has mosaics, because close_mosaic is {hyp.close_mosaic} "
        "(for mosaics set it below the number of epochs in the hyp file)"
    ]


class MosaicOrSingle:
    """Paste the image, or with probability `hyp.mosaic` four images, on a canvas.

    From epoch `mosaic_until` on there are no mosaics.
    """

    name = "mosaic"

    def __init__(self, hyp: Hyp, mosaic_until: int) -> None:
        self.hyp, self.mosaic_until = hyp, mosaic_until

    def __call__(self, sample: Sample, rng: np.random.Generator, context: SampleContext) -> Sample:
        """Return a sample of `context.imgsz` x `context.imgsz` pixels."""
        if rng.random() < self.hyp.mosaic and context.epoch < self.mosaic_until:
            samples = [sample, *(context.neighbors[i] for i in range(MOSAIC_SIZE - 1))]
            return mosaic(samples, context.imgsz, self.hyp, rng)
        return random_scale_translate(sample, context.imgsz, self.hyp, rng)


class HorizontalFlip:
    """Flip left to right with probability `p`."""

    name = "fliplr"

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator, context: SampleContext) -> Sample:
        """Return the sample or its mirror image."""
        if rng.random() >= self.p:
            return sample
        image, (x1, y1, x2, y2) = sample.image, sample.boxes.T
        width = image.shape[-1]
        boxes = np.stack((width - x2, y1, width - x1, y2), axis=1)
        return Sample(image.flip(-1), boxes, sample.labels)


class VerticalFlip:
    """Flip upside down with probability `p`."""

    name = "flipud"

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator, context: SampleContext) -> Sample:
        """Return the sample or its mirror image."""
        if rng.random() >= self.p:
            return sample
        image, (x1, y1, x2, y2) = sample.image, sample.boxes.T
        height = image.shape[-2]
        boxes = np.stack((x1, height - y2, x2, height - y1), axis=1)
        return Sample(image.flip(-2), boxes, sample.labels)


class Canvas:
    """A gray image of `height` x `width` pixels to paste samples on.

    The memory layout is channels-last, as decoders write and convolutions read it.
    """

    def __init__(self, height: int, width: int, channels: int = 3) -> None:
        pixels = torch.full((height, width, channels), GRAY, dtype=torch.uint8)
        self.image = pixels.permute(2, 0, 1)
        self._boxes = [np.zeros((0, 4), np.float32)]
        self._labels = [np.zeros(0, np.int64)]

    def paste(
        self, sample: Sample, scale: float, left: float, top: float, clip: tuple[int, int, int, int]
    ) -> None:
        """Paste a sample, resized by `scale`, with its corner at (left, top).

        Only what is within `clip` (xyxy, pixels of the canvas) is pasted, and boxes are clipped
        to it.
        """
        image, boxes, labels = sample
        height, width = image.shape[-2:]
        x = _overlap(left, scale * width, clip[0], clip[2], width)
        y = _overlap(top, scale * height, clip[1], clip[3], height)
        if x is None or y is None:
            return
        (x0, x1, src_x0, src_x1), (y0, y1, src_y0, src_y1) = x, y
        source = image[:, src_y0:src_y1, src_x0:src_x1]
        self.image[:, y0:y1, x0:x1] = resize(source, y1 - y0, x1 - x0)
        if not len(boxes):
            return
        zoom_x, zoom_y = (x1 - x0) / (src_x1 - src_x0), (y1 - y0) / (src_y1 - src_y0)
        boxes = boxes * np.float32([zoom_x, zoom_y, zoom_x, zoom_y])
        boxes += np.float32([x0 - src_x0 * zoom_x, y0 - src_y0 * zoom_y] * 2)
        low, high = np.float32([x0, y0, x0, y0]), np.float32([x1, y1, x1, y1])
        clipped = np.minimum(np.maximum(boxes, low), high)
        visible = _areas(clipped) > MIN_VISIBLE * _areas(boxes)
        self._boxes.append(clipped[visible])
        self._labels.append(labels[visible])

    def result(self) -> Sample:
        """Return the image with the boxes of all samples pasted so far."""
        return Sample(self.image, np.concatenate(self._boxes), np.concatenate(self._labels))


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize an image (channels, h, w) uint8, bilinear with antialiasing."""
    if image.shape[1:] == (height, width):
        return image
    # Contiguous and channels-last: interpolating a view takes twice as long.
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, (height, width), mode="bilinear", antialias=True)[0]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _overlap(
    start: float, length: float, low: int, high: int, source_length: int
) -> tuple[int, int, int, int] | None:
    """Intersect a source that covers [start, start + length) on one axis with [low, high).

    Returns the range of canvas pixels and the range of source pixels that fill it, or None if
    they do not overlap.
    """
    first, last = max(low, round(start)), min(high, round(start + length))
    if last <= first:
        return None
    source_first = math.floor((first - start) / length * source_length)
    source_first = min(source_length - 1, max(0, source_first))
    source_last = math.ceil((last - start) / length * source_length)
    source_last = min(source_length, max(source_first + 1, source_last))
    return first, last, source_first, source_last


def random_scale_translate(
    sample: Sample, imgsz: int, hyp: Hyp, rng: np.random.Generator
) -> Sample:
    """Paste a sample on a canvas of `imgsz` x `imgsz`, randomly scaled and shifted.

    Its longer side becomes `imgsz` times a random factor, and its center is shifted from the
    center of the canvas.
    """
    channels, height, width = sample.image.shape
    scale = imgsz / max(height, width) * rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    x, y = rng.uniform(0.5 - hyp.translate, 0.5 + hyp.translate, 2) * imgsz
    canvas = Canvas(imgsz, imgsz, channels)
    left, top = x - scale * width / 2, y - scale * height / 2
    canvas.paste(sample, scale, left, top, (0, 0, imgsz, imgsz))
    return canvas.result()


def mosaic(samples: Sequence[Sample], imgsz: int, hyp: Hyp, rng: np.random.Generator) -> Sample:
    """Paste four samples around a random point, one in each quarter, at one random scale.

    Bochkovskiy et al., "YOLOv4", arXiv 2004.10934.
    """
    zoom = rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    reach = min(0.5 * zoom + hyp.translate, 0.5)
    x, y = (round(value) for value in rng.uniform(0.5 - reach, 0.5 + reach, 2) * imgsz)
    canvas = Canvas(imgsz, imgsz, len(samples[0].image))
    quarters = ((0, 0, x, y), (x, 0, imgsz, y), (0, y, x, imgsz), (x, y, imgsz, imgsz))
    for quarter, sample in zip(quarters, samples, strict=True):
        height, width = sample.image.shape[-2:]
        scale = imgsz / max(height, width) * zoom
        left = x if quarter[0] == x else x - scale * width
        top = y if quarter[1] == y else y - scale * height
        canvas.paste(sample, scale, left, top, quarter)
    return canvas.result()


def color_matrix(hyp: Hyp, rng: np.random.Generator, channels: int = 3) -> np.ndarray:
    """Return a random change of brightness, saturation and hue as one matrix (3, 3) float32.

    Images of another number of channels have no color: the matrix (channels, channels) changes the
    brightness only, of all channels alike.

    All three are linear in RGB. Saturation blends with the gray of the same luma (the weights of
    ITU-R BT.601, as in torchvision). Hue is a rotation around the gray axis (Rodrigues' formula),
    which is cheaper than a conversion to HSV and differs little from it for small angles.
    """
    brightness, saturation = (
        rng.uniform(1 - strength, 1 + strength) for strength in (hyp.brightness, hyp.saturation)
    )
    if channels != 3:
        return (brightness * np.eye(channels)).astype(np.float32)
    angle = 2 * math.pi * rng.uniform(-hyp.hue, hyp.hue)
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = cos * IDENTITY + sin * GRAY_AXIS_CROSS + (1 - cos) / 3
    saturate = saturation * IDENTITY + (1 - saturation) * LUMA
    return (brightness * saturate @ rotation).astype(np.float32)


def apply_color_matrix(images: Tensor, matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Multiply the pixels of each image by its matrix (C, C), C being the number of channels.

    `images` (B, C, h, w) uint8 become `dtype` in 0..1. Done after the copy to the training
    device, for the whole batch, where it takes next to no time.
    """
    matrix = torch.stack([*matrices]).to(images.device, non_blocking=True) / 255
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2).to(dtype)
    colored = torch.bmm(pixels, matrix.mT.to(dtype)).clamp_(0, 1)
    return colored.unflatten(1, images.shape[-2:]).permute(0, 3, 1, 2)
