"""The DataLoaders of a run."""

import math
from argparse import Namespace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from data.augment import apply_color_matrix
from data.dataset import TrainSet, ValSet, collate, preload_images
from data.formats import Annotations
from data.sampler import EpochBatchSampler
from utils.device import default_workers
from utils.distributed import DistributedContext
from utils.hyp import Hyp
from utils.interrupt import start_forkserver, worker_init
from utils.letterbox import imgsz_bounds, small_bounds
from utils.shared_memory import check_shared_memory


class Loaders(NamedTuple):
    """What yields the batches of a run, each process's own fraction of them."""

    train_set: TrainSet
    sampler: EpochBatchSampler  # of the training batches; its `epoch` and `start_batch` are set
    train: DataLoader
    val: DataLoader

    def next_train_batch(self, dtype: torch.dtype) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Return the next training batch as the model gets it, images (B, C, h, w) in `dtype`."""
        samples = self.train_set.__getitems__(next(iter(self.sampler)))
        images, targets = collate(samples)
        return apply_color_matrix(images, [t["color"] for t in targets], dtype), targets


def build_loaders(
    train_data: Annotations,
    val_data: Annotations,
    args: Namespace,
    hyp: Hyp,
    stride: int,
    min_size: int,
    device: torch.device,
    dist: DistributedContext,
) -> Loaders:
    """Build the loaders that the arguments of `train.py` ask for.

    `args.imgsz` is in multiples of the model's `stride`, and no sample is smaller than its
    `min_size`; `args.batch_size` is that of all processes together. Raises UserError when images
    cannot be cached as `args.cache` says, a batch cannot be divided among the processes, or the
    workers' batches do not fit into shared memory.
    """
    imgsz = imgsz_bounds(args.imgsz, stride)
    workers = args.workers
    if workers is None:
        workers = default_workers(device, dist.local_world_size)
    if workers:
        start_forkserver()
    batch_size = min(args.batch_size, max(len(train_data), len(val_data)))
    process_batch_size = math.ceil(batch_size / dist.world_size)
    sample_bytes = train_data.channels * imgsz[1] ** 2
    check_shared_memory(process_batch_size * sample_bytes, workers, dist.local_world_size)
    mosaic_until = args.epochs - hyp.close_mosaic
    train_set = TrainSet(train_data, hyp, args.seed, mosaic_until, args.cache)
    val_set = ValSet(val_data, imgsz[1], stride, args.cache)
    preload_images([train_set, val_set], args.cache, dist)
    sampler = EpochBatchSampler(
        len(train_set),
        args.batch_size,
        imgsz,
        args.seed,
        dist.rank,
        dist.world_size,
        stride,
        hyp.num_small_epochs(args.epochs),
        small_bounds(imgsz, stride, min_size),
    )
    options = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": worker_init,
        "collate_fn": collate,
        "pin_memory": device.type == "cuda",
    }
    val_shard = Subset(val_set, range(dist.rank, len(val_set), dist.world_size))
    return Loaders(
        train_set,
        sampler,
        DataLoader(train_set, batch_sampler=sampler, **options),
        DataLoader(val_shard, process_batch_size, **options),
    )
