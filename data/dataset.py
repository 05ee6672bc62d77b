"""Samples out of annotations: `TrainSet` augments, `ValSet` letterboxes. What each gives depends on its key alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data import augment
from data.formats import Annotations
from data.images import ImageStore
from data.sampler import SampleKey, sample_rng
from utils.distributed import DistributedContext
from utils.hyp import Hyp

Target = dict[str, Tensor]
MEMORY = (
    1_000_000_000  # bytes of decoded training pictures that a process keeps, its loaders together
)


class _Samples(Dataset):
    def __init__(self, annotations: Annotations, memory: int, cache: str | None) -> None:
        self.annotations = annotations
        self.images = ImageStore(annotations.files, memory, beside=cache == "disk")

    def __len__(self) -> int:
        return len(self.annotations)

    def _labelled(self, index: int) -> tuple[augment.Sample, np.ndarray]:
        """Picture `index` with its boxes in its own pixels and its labels, and which of them stand for a crowd."""
        a = self.annotations
        image = self.images[index]
        rows = slice(a.offsets[index], a.offsets[index + 1])
        height, width = image.shape[-2:]
        return (image, a.boxes[rows] * np.float32([width, height] * 2), a.labels[rows]), a.crowd[
            rows
        ]


class TrainSet(_Samples):
    """Augmented samples (3, side, side) uint8; asked with a key of `EpochBatchSampler`, or with a batch of them.

    A target has `boxes` (n, 4), `labels` (n,) and `color` (3, 3), the matrix for `augment.recolored`. From epoch `mosaic_until`
    on, pictures come one at a time. Of decoded pictures the first `MEMORY` bytes are kept; `cache` is None, or says that all are
    to be: in `ram` or on `disk`, beside them.
    """

    def __init__(
        self,
        annotations: Annotations,
        hyp: Hyp,
        seed: int,
        mosaic_until: int,
        cache: str | None = None,
    ) -> None:
        super().__init__(annotations, MEMORY, cache)
        self.hyp, self.seed, self.mosaic_until = hyp, seed, mosaic_until

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[tuple[Tensor, Target]]:
        """The samples of a batch. What several of them are made of is decoded once."""
        rngs = [sample_rng(self.seed, epoch, place) for epoch, place, *_ in keys]
        made_of = [
            indices if epoch < self.mosaic_until and rng.random() < self.hyp.mosaic else indices[:1]
            for (epoch, _, indices, _), rng in zip(keys, rngs, strict=True)
        ]
        wanted = sorted({index for indices in made_of for index in indices})
        pictures = {index: self._trainable(index) for index in wanted}
        return [
            self._sample([pictures[index] for index in indices], side, rng)
            for indices, rng, (*_, side) in zip(made_of, rngs, keys, strict=True)
        ]

    def _sample(
        self, tiles: list[augment.Sample], side: int, rng: np.random.Generator
    ) -> tuple[Tensor, Target]:
        many = len(tiles) > 1
        sample = (
            augment.mosaic(tiles, side, self.hyp, rng)
            if many
            else augment.random_scale_translate(tiles[0], side, self.hyp, rng)
        )
        image, boxes, labels = augment.flip(sample, self.hyp, rng)
        arrays = {"boxes": boxes, "labels": labels, "color": augment.color_matrix(self.hyp, rng)}
        return image, {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _trainable(self, index: int) -> augment.Sample:
        """Picture `index`, its boxes and labels but for crowds."""
        (image, boxes, labels), crowd = self._labelled(index)
        return image, boxes[~crowd], labels[~crowd]


class ValSet(_Samples):
    """Letterboxed pictures: the longer side `imgsz`, the rest grey; asked with an index.

    Every picture of a split comes in one `shape`, the smallest with sides divisible by `stride` that holds them all, so that a
    prediction does not depend on what else is in the batch. A target also has `image_id` and `scale` (2,): x and y pixels of the
    sample for each of the picture's own.
    """

    def __init__(
        self, annotations: Annotations, imgsz: int, stride: int, cache: str | None = None
    ) -> None:
        super().__init__(annotations, 0, cache)
        self.imgsz = imgsz
        sizes = annotations.sizes
        longest = np.ceil(sizes * (imgsz / sizes.max(1, keepdims=True))).max(0)
        width, height = (int(-(-side // stride) * stride) for side in longest)
        self.shape = height, width

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        (image, boxes, labels), _ = self._labelled(index)
        height, width = image.shape[-2:]
        ratio = self.imgsz / max(height, width)
        size = [
            min(self.shape[0], max(1, round(height * ratio))),
            min(self.shape[1], max(1, round(width * ratio))),
        ]
        scale = np.float32([size[1] / width, size[0] / height])
        sample = augment.Canvas(*self.shape).image
        sample[:, : size[0], : size[1]] = augment.resize(image, *size)
        target = {
            "boxes": boxes * np.tile(scale, 2),
            "labels": labels,
            "scale": scale,
            "image_id": np.asarray(index),
        }
        return sample, {name: torch.from_numpy(array) for name, array in target.items()}


class Targets(list[Target]):
    """A batch's targets, which travel from a loader's process in one piece: a tensor each would have a file each."""

    def __reduce__(self) -> tuple[object, ...]:
        return _unpacked, (
            [{name: tensor.numpy() for name, tensor in target.items()} for target in self],
        )


def _unpacked(targets: list[dict[str, np.ndarray]]) -> Targets:
    return Targets(
        {name: torch.from_numpy(array) for name, array in target.items()} for target in targets
    )


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, Targets]:
    """Samples of one size as a batch: pictures (B, 3, h, w) uint8, channels-last, and their targets."""
    images, targets = zip(*samples, strict=True)
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), Targets(
        targets
    )


def preload_images(sets: Sequence[_Samples], cache: str | None, processes: DistributedContext) -> None:
    """For the `cache` "ram" or "disk", decode the pictures of all `sets` now, as `Pictures.preload_images` does; for None nothing."""

    def load() -> None:
        for samples in sets:
            samples.images.preload(samples.annotations.sizes, processes.local_world_size)

    if cache == "disk":
        processes.on_main(load)  # the others find them there
    elif cache == "ram":
        load()
