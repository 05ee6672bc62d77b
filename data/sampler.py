"""The order of training samples: a function of (seed, epoch) that can be entered at any batch."""

import hashlib
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from torch.utils.data import Sampler

from utils.errors import UserError
from utils.letterbox import round_imgsz
from utils.log import plural

MOSAIC_SIZE = 4  # images in a mosaic, and indices in a key


class SampleKey(NamedTuple):
    """What a training sample depends on, besides the seed and the hyperparameters."""

    epoch: int
    position: int  # of the sample in the epoch's order
    indices: tuple[int, ...]  # of the image there and of those at the next positions
    imgsz: int  # height and width of the sample, pixels


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Yields the batches of one epoch: all images, in an order set by (seed, epoch).

    An epoch has ceil(num_samples / batch_size) batches of one size, so that kernels are selected
    and compiled for one shape, and no gradient is that of a small last batch. `batch_size` becomes
    the smallest size with which they hold all images. Where they hold more, by less than one image
    a batch, the order begins again at the end. Set `epoch`, and `start_batch` to begin in the
    middle of it, before iterating.

    `imgsz` is the smallest and largest sample size in pixels, multiples of `stride`; each batch
    gets one of the multiples in between. In the first `small_epochs` epochs it is `small_imgsz`,
    except for the very first batch: one that does not fit into memory is to fail at once.

    With several processes, each gets its fraction of every batch; together they are the batches
    of a single process. Raises UserError if a batch is too small to be divided.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        imgsz: tuple[int, int],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        stride: int = 32,
        small_epochs: int = 0,
        small_imgsz: tuple[int, int] = (32, 32),
    ) -> None:
        self.num_samples = num_samples
        self.num_batches = math.ceil(num_samples / batch_size)
        self.batch_size = math.ceil(num_samples / self.num_batches)
        self.imgsz, self.stride, self.seed = imgsz, stride, seed
        self.rank, self.world_size = rank, world_size
        self.small_epochs, self.small_imgsz = small_epochs, small_imgsz
        self.epoch = 0
        self.start_batch = 0
        if self.batch_size < world_size:
            raise UserError(
                f"--batch-size {batch_size}: {plural(num_samples, 'training image')} in batches of "
                f"{self.batch_size} (need one in each batch for each of the {world_size} "
                "processes: start fewer)"
            )

    def __len__(self) -> int:
        return self.num_batches

    @property
    def min_imgsz(self) -> int:
        """The smallest sample size in pixels."""
        return self.small_imgsz[0] if self.small_epochs else self.imgsz[0]

    def small_message(self) -> list[str]:
        """Return a list with a message about the small epochs if there are any, else []."""
        if not self.small_epochs or self.small_imgsz == self.imgsz:
            return []
        low, high = self.small_imgsz
        size = round_imgsz(f"{low}-{high}", self.stride)
        return [f"first {plural(self.small_epochs, 'epoch')} at {size} px (small_epochs)"]

    def source_images(self, first_batch: int, last_batch: int) -> list[int]:
        """Return the sorted indices of the images that these batches of the epoch may use.

        The batches `first_batch` to `last_batch`, inclusive, of all processes together.
        """
        batches = EpochBatchSampler(
            self.num_samples, self.batch_size, self.imgsz, self.seed, stride=self.stride
        )
        batches.epoch, batches.start_batch = self.epoch, first_batch
        keys = (key for batch in islice(batches, last_batch + 1 - first_batch) for key in batch)
        return sorted({index for key in keys for index in key.indices})

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Random streams: (seed, epoch, 0) is the order's, (seed, epoch, 0, i + 1) the image size's
        # of batch i. The samples' are those of `transform_rng`.
        order = np.random.default_rng((self.seed, self.epoch, 0)).permutation(self.num_samples)
        for batch in range(self.start_batch, len(self)):
            first, size = batch * self.batch_size, self.batch_size
            start = first + size * self.rank // self.world_size
            end = first + size * (self.rank + 1) // self.world_size
            # A mosaic takes the next images in this order: every image is in equally many mosaics,
            # and a batch decodes few images besides its own. Only this batch's part of the order
            # becomes Python numbers: for a million images that takes seconds and a lot of memory.
            images = order.take(np.arange(start, end + MOSAIC_SIZE - 1), mode="wrap").tolist()
            imgsz = self._batch_imgsz(batch)
            yield [
                SampleKey(self.epoch, start + i, tuple(images[i : i + MOSAIC_SIZE]), imgsz)
                for i in range(end - start)
            ]

    def _batch_imgsz(self, batch: int) -> int:
        is_small = 0 < self.epoch * len(self) + batch < self.small_epochs * len(self)
        bounds = self.small_imgsz if is_small else self.imgsz
        low, high = (size // self.stride for size in bounds)
        rng = np.random.default_rng((self.seed, self.epoch, 0, batch + 1))
        return self.stride * int(rng.integers(low, high + 1))


class _HashedSeed(ISeedSequence):
    """Seeds a bit generator with a hash of `key`, in a tenth of `np.random.SeedSequence`'s time."""

    def __init__(self, key: tuple[int | str, ...]) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        little_endian = np.dtype(dtype).newbyteorder("<")  # the same numbers on every machine
        num_bytes = n_words * little_endian.itemsize
        digest = hashlib.blake2b(repr(self._key).encode(), digest_size=num_bytes).digest()
        return np.frombuffer(digest, little_endian).astype(dtype)


def transform_rng(seed: int, epoch: int, position: int, name: str) -> np.random.Generator:
    """Return the random stream of the transform `name` for the sample at `position` of `epoch`.

    It depends on nothing else: neither on the process, nor on what other transforms draw.
    """
    return np.random.Generator(np.random.PCG64(_HashedSeed((seed, epoch, position, name))))
