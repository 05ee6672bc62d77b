"""Augmented samples for training, letterboxed images for validation, and batches of both.

What a dataset returns depends on the key alone, not on the worker that asks or on what was asked
before.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data import augment
from data.augment import Sample, SampleContext
from data.formats import Annotations
from data.images import ImageStore
from data.sampler import SampleKey, transform_rng
from utils.distributed import DistributedContext
from utils.hyp import Hyp
from utils.letterbox import letterbox_size, round_up
from utils.shared_memory import SharedArray, empty_batch

Target = dict[str, Tensor]
IMAGE_CACHE_BYTES = 1_000_000_000  # decoded training images of a process and its workers together


class _AnnotatedImages(Dataset):
    def __init__(self, annotations: Annotations, cache_bytes: int, cache: str | None) -> None:
        on_disk = cache == "disk"
        self.channels = annotations.channels
        self.images = ImageStore(
            annotations.files, annotations.sizes, cache_bytes, on_disk, self.channels
        )
        self._offsets = SharedArray(annotations.offsets)
        self._boxes = SharedArray(annotations.boxes)
        self._labels = SharedArray(annotations.labels)
        self._crowd = SharedArray(annotations.crowd)

    def __len__(self) -> int:
        return len(self.images)

    def _load(self, index: int) -> tuple[Sample, np.ndarray]:
        """Return an image with its boxes, and which of the boxes are crowds: (n,) bool."""
        image = self.images[index]
        rows = slice(*self._offsets.array[index : index + 2])
        height, width = image.shape[-2:]
        boxes = self._boxes.array[rows] * np.float32([width, height] * 2)
        return Sample(image, boxes, self._labels.array[rows]), self._crowd.array[rows]


class TrainSet(_AnnotatedImages):
    """Augmented samples (C, imgsz, imgsz) uint8 by key, or lists of keys, of `EpochBatchSampler`.

    C is the number of channels. A target has `boxes` (n, 4) xyxy in pixels, `labels` (n,) and
    `color` (C, C), the matrix for `augment.apply_color_matrix`. `transforms` are those of
    `augment.train_transforms`; from epoch `mosaic_until` on there are no mosaics. `cache` is "ram"
    or "disk" to keep all decoded images there, or None to keep the first `IMAGE_CACHE_BYTES` of
    them in memory.
    """

    def __init__(
        self,
        annotations: Annotations,
        hyp: Hyp,
        seed: int,
        mosaic_until: int,
        cache: str | None = None,
    ) -> None:
        super().__init__(annotations, IMAGE_CACHE_BYTES, cache)
        self.hyp, self.seed = hyp, seed
        self.transforms = augment.train_transforms(hyp, mosaic_until)
        names = [*(transform.name for transform in self.transforms), "color"]
        if len(set(names)) < len(names):
            raise ValueError(f"transforms would share a random stream: found the names {names}")

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[tuple[Tensor, Target]]:
        """Return the samples of a batch. An image that several samples use is loaded once."""
        load = functools.cache(self._load_without_crowds)
        return [self._augment(key, load) for key in keys]

    def _augment(self, key: SampleKey, load: Callable[[int], Sample]) -> tuple[Tensor, Target]:
        sample = load(key.indices[0])
        context = SampleContext(key.epoch, key.imgsz, _Neighbors(key.indices[1:], load))
        for transform in self.transforms:
            sample = transform(sample, self._rng(key, transform.name), context)
        color = augment.color_matrix(self.hyp, self._rng(key, "color"), self.channels)
        target = {"boxes": sample.boxes, "labels": sample.labels, "color": color}
        return sample.image, {name: torch.from_numpy(array) for name, array in target.items()}

    def _rng(self, key: SampleKey, name: str) -> np.random.Generator:
        return transform_rng(self.seed, key.epoch, key.position, name)

    def _load_without_crowds(self, index: int) -> Sample:
        (image, boxes, labels), crowd = self._load(index)
        return Sample(image, boxes[~crowd], labels[~crowd])


class _Neighbors(Sequence[Sample]):
    """The samples of `indices`, each loaded when it is indexed."""

    def __init__(self, indices: Sequence[int], load: Callable[[int], Sample]) -> None:
        self._indices, self._load = indices, load

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Sample:
        return self._load(self._indices[i])


class ValSet(_AnnotatedImages):
    """Letterboxed images by index: the longer side is `imgsz` pixels, the rest gray.

    All images of a split have the same `shape`, the smallest that holds each of them and is
    divisible by `stride`, so that predictions do not depend on the other images of a batch. A
    target has `boxes`, `labels`, `image_id`, `size` (2,): width and height of the original image,
    and `scale` (2,): x and y pixels of the sample per pixel of the original image.
    """

    def __init__(
        self, annotations: Annotations, imgsz: int, stride: int, cache: str | None = None
    ) -> None:
        super().__init__(annotations, 0, cache)
        self.imgsz = imgsz
        sizes = annotations.sizes.astype(np.int64)
        # Rounded up in integers: with floats, w * (imgsz / w) can be above imgsz.
        fitted = -(-sizes * imgsz // sizes.max(1, keepdims=True))
        width, height = (round_up(int(length), stride) for length in fitted.max(0))
        self.shape = height, width

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        (image, boxes, labels), _ = self._load(index)
        height, width = image.shape[-2:]
        # Not above `shape`, even if the file is another one now than when it was scanned.
        fitted = letterbox_size(height, width, self.imgsz)
        new_height, new_width = map(min, fitted, self.shape)
        scale = np.float32([new_width / width, new_height / height])
        sample = augment.Canvas(*self.shape, self.channels).image
        sample[:, :new_height, :new_width] = augment.resize(image, new_height, new_width)
        target = {
            "boxes": boxes * np.tile(scale, 2),
            "labels": labels,
            "size": np.array([width, height]),
            "scale": scale,
            "image_id": np.asarray(index),
        }
        return sample, {name: torch.from_numpy(array) for name, array in target.items()}


class Targets(list[Target]):
    """The targets of a batch, which a worker sends as one object.

    Tensors would be sent as a shared-memory file each.
    """

    def __reduce__(self) -> tuple[object, ...]:
        arrays = [{name: tensor.numpy() for name, tensor in target.items()} for target in self]
        return _unpickle_targets, (arrays,)


def _unpickle_targets(targets: list[dict[str, np.ndarray]]) -> Targets:
    return Targets(
        {name: torch.from_numpy(array) for name, array in target.items()} for target in targets
    )


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, Targets]:
    """Batch samples of one size: images (B, C, h, w) uint8, channels-last, and their targets."""
    images, targets = zip(*samples, strict=True)
    pixels = [image.permute(1, 2, 0) for image in images]
    batch = torch.stack(pixels, out=empty_batch((len(pixels), *pixels[0].shape)))
    return batch.permute(0, 3, 1, 2), Targets(targets)


def preload_images(
    datasets: Sequence[_AnnotatedImages], cache: str | None, context: DistributedContext
) -> None:
    """Decode all images of the datasets now, if `cache` is "ram" or "disk".

    Raises UserError as `ImageStore.preload` and `ImageStore.fill_disk` do.
    """

    num_processes = context.local_world_size
    for dataset in datasets:
        images = dataset.images
        if cache == "disk":  # each process its share of the files, which all of them read
            share = range(context.rank, len(images), context.world_size)
            context.on_each(images.fill_disk, share, num_processes)
        elif cache == "ram":
            context.on_each(images.preload, num_processes)
