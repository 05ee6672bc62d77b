"""The order of the samples: a function of (seed, epoch) alone, which can be entered at any batch."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

from utils.errors import UserError

SampleKey = tuple[
    int, int, tuple[int, ...], int
]  # epoch, place in it, indices of the picture there and at the next 3 places, side
MOSAIC_SIZE = 4  # pictures of a mosaic


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of keys for one epoch, every picture once, in the order that (seed, epoch) gives.

    There are ceil(samples / batch_size) batches in an epoch, as even as can be (sizes differ by at most one), so that the last
    one is never a handful whose gradient would count as much as a full one's; `sizes` holds the samples of each. Set `epoch`, and
    `start` to begin at a later batch, before iterating.

    `imgsz` is the side of the samples in pixels, from the lowest to the highest in steps of 32, a batch has one of them.

    With several `processes` each takes its share of every batch: those of all ranks together are what one process has. Raises
    UserError when a batch would be too small for everyone to have one.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        imgsz: tuple[int, int],
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.samples, self.batch_size, self.imgsz, self.seed = samples, batch_size, imgsz, seed
        self.rank, self.processes = rank, processes
        self.epoch = 0
        self.start = 0
        self.bounds = np.linspace(0, samples, len(self) + 1).round().astype(int)
        self.sizes: list[int] = np.diff(self.bounds).tolist()
        if min(self.sizes) < processes:
            raise UserError(
                f"--batch-size {batch_size}: gives a batch of {min(self.sizes)}, fewer than the {processes} processes"
            )

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def images(self, first: int, last: int) -> list[int]:
        """The pictures that batches `first` to `last` of this epoch are made of, as all processes together see them, sorted."""
        every = EpochBatchSampler(self.samples, self.batch_size, self.imgsz, self.seed)
        every.epoch, every.start = self.epoch, first
        return sorted(
            {
                index
                for batch in islice(every, last + 1 - first)
                for _, _, indices, _ in batch
                for index in indices
            }
        )

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # 0 in third place is the order's own random stream, with a fourth number that of a batch's side; the samples' begin at 1
        # (see `sample_rng`).
        order = np.random.default_rng((self.seed, self.epoch, 0)).permutation(self.samples)
        # A mosaic is made of neighbours in this order: each picture is in as many, and a batch decodes little more than its own.
        tiles = np.stack([np.roll(order, -i) for i in range(MOSAIC_SIZE)], axis=1).tolist()
        low, high = self.imgsz
        for i in range(self.start, len(self)):
            first, size = self.bounds[i], self.sizes[i]
            side = 32 * int(
                np.random.default_rng((self.seed, self.epoch, 0, i + 1)).integers(
                    low // 32, high // 32 + 1
                )
            )
            share = range(
                first + size * self.rank // self.processes,
                first + size * (self.rank + 1) // self.processes,
            )
            yield [(self.epoch, place, tuple(tiles[place]), side) for place in share]


def sample_rng(seed: int, epoch: int, place: int) -> np.random.Generator:
    """The random numbers of the sample at `place` of `epoch`: the same whichever process draws them, and after whatever."""
    return np.random.default_rng((seed, epoch, place + 1))
