"""Samples out of annotations: `TrainSet` augments, `ValSet` letterboxes. What each gives depends on its key alone."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from data import augment
from data.formats import Annotations
from data.sampler import Key, sample_rng
from utils.errors import UserError
from utils.hyp import Hyp

Target = dict[str, Tensor]


def read_image(path: str) -> Tensor:
    """The picture as shown: (3, h, w) uint8 RGB, EXIF rotation applied, alpha dropped, the first frame of several.

    Raises UserError when it cannot be decoded.
    """
    try:
        try:
            image = decode_image(path, ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError:  # a format, such as BMP, or a colour space that torchvision does not decode
            with Image.open(path) as picture:
                image = F.pil_to_tensor(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be decoded: {error}") from None
    image = image[0] if image.ndim == 4 else image
    return image if image.dtype == torch.uint8 else F.to_dtype(image, torch.uint8, scale=True)


class _Samples(Dataset):
    def __init__(self, annotations: Annotations, imgsz: int) -> None:
        self.annotations, self.imgsz = annotations, imgsz

    def __len__(self) -> int:
        return len(self.annotations)

    def _labelled(self, index: int) -> tuple[augment.Labelled, np.ndarray]:
        """Picture `index` with its boxes in its own pixels and its labels, and which of them stand for a crowd."""
        a = self.annotations
        image = read_image(str(a.files[index]))
        rows = slice(a.offsets[index], a.offsets[index + 1])
        height, width = image.shape[-2:]
        boxes = torch.from_numpy(a.boxes[rows]) * torch.tensor([width, height, width, height])
        return (image, boxes, torch.from_numpy(a.labels[rows])), a.crowd[rows]


class TrainSet(_Samples):
    """Augmented samples (3, imgsz, imgsz) uint8; asked with a key (epoch, place in the epoch, index of the picture).

    From epoch `mosaic_until` on, pictures come one at a time.
    """

    def __init__(self, annotations: Annotations, imgsz: int, hyp: Hyp, seed: int, mosaic_until: int) -> None:
        super().__init__(annotations, imgsz)
        self.hyp, self.seed, self.mosaic_until = hyp, seed, mosaic_until

    def __getitem__(self, key: Key) -> tuple[Tensor, Target]:
        epoch, place, index = key
        rng = sample_rng(self.seed, epoch, place)
        if epoch < self.mosaic_until and rng.random() < self.hyp.mosaic:
            others = rng.integers(len(self), size=3)
            sample = augment.mosaic([self._trainable(i) for i in (index, *others)], self.imgsz, self.hyp, rng)
        else:
            sample = augment.place(self._trainable(index), self.imgsz, self.hyp, rng)
        image, boxes, labels = augment.flip(sample, self.hyp, rng)
        return augment.jitter(image, self.hyp, rng), {"boxes": boxes, "labels": labels}

    def _trainable(self, index: int) -> augment.Labelled:
        (image, boxes, labels), crowd = self._labelled(index)
        single = torch.from_numpy(~crowd)
        return image, boxes[single], labels[single]


class ValSet(_Samples):
    """Letterboxed pictures: the longer side `imgsz`, the rest grey; asked with an index.

    Every picture of a split comes in one `shape`, the smallest with sides divisible by `stride` that holds them all, so that a
    prediction does not depend on what else is in the batch. A target also has `image_id` and `scale` (2,): x and y pixels of the
    sample for each of the picture's own.
    """

    def __init__(self, annotations: Annotations, imgsz: int, stride: int) -> None:
        super().__init__(annotations, imgsz)
        sizes = annotations.sizes
        longest = np.ceil(sizes * (imgsz / sizes.max(1, keepdims=True))).max(0)
        width, height = (int(-(-side // stride) * stride) for side in longest)
        self.shape = height, width

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        (image, boxes, labels), _ = self._labelled(index)
        height, width = image.shape[-2:]
        ratio = self.imgsz / max(height, width)
        size = [min(self.shape[0], max(1, round(height * ratio))), min(self.shape[1], max(1, round(width * ratio)))]
        scale = torch.tensor([size[1] / width, size[0] / height])
        sample = torch.full((3, *self.shape), augment.GREY, dtype=torch.uint8)
        sample[:, : size[0], : size[1]] = F.resize(image, size, antialias=True)
        target = {"boxes": boxes * scale.repeat(2), "labels": labels, "scale": scale, "image_id": torch.tensor(index)}
        return sample, target


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """Samples of one size as a batch: pictures (B, 3, h, w) uint8 and their targets."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)
