"""`--batch-size auto`: the largest batch for a GPU, from the memory that a few small ones need."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from utils.amp import autocast
from utils.distributed import DistributedContext
from utils.errors import UserError
from utils.log import info, plural

PROBE_SIZES = (1, 2, 4, 8, 16)  # images
# Of the GPU's free memory. The rest is for the optimizer, and for images with more boxes than here.
MEMORY_FRACTION = 0.8
MIN_STEPS = 100  # of an epoch: the learning rate is not adapted to the batch size


def auto_batch_size(
    model: nn.Module,
    imgsz: int,
    device: torch.device,
    dtype: torch.dtype,
    num_images: int,
    min_batch_size: int,
    dist: DistributedContext,
) -> int:
    """Return the global batch size for images of `imgsz` pixels, and print it.

    The main process measures `largest_batch`; `limit_batch` makes a batch size of it. Raises
    UserError as `largest_batch` does.
    """
    fitting = dist.on_main(largest_batch, model, imgsz, device, dtype)
    batch_size = limit_batch(fitting, num_images, min_batch_size, dist.world_size)
    images = plural(fitting, "image")
    info(f"--batch-size auto: {batch_size} (a GPU has memory for {images})")
    return batch_size


def largest_batch(model: nn.Module, imgsz: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return how many images of `imgsz` pixels fit into the GPU `device` in a training step.

    A copy of `model` is trained on random images of `model.channels`; `model` and the random state
    stay as they are. Raises UserError if `device` is not a CUDA device, or not even 1 image fits.
    """
    if device.type != "cuda":
        raise UserError(f"--batch-size auto: requires a CUDA device, not {device} (give a number)")
    probe_model = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.5]]).repeat(20, 1) * imgsz
    target = {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long)}

    def peak_memory(batch_size: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        images = torch.rand(batch_size, model.channels, imgsz, imgsz, device=device)
        with autocast(device, dtype):
            losses = probe_model(images, [target] * batch_size)
        sum(losses.values()).backward()
        return torch.cuda.max_memory_allocated(device)

    with torch.random.fork_rng([device]):
        batch_size = largest_fitting_batch(peak_memory, memory_budget(device))
    torch.cuda.empty_cache()
    return batch_size


def memory_budget(device: torch.device) -> float:
    """Return the bytes of the GPU `device` that a training step may use.

    That is `MEMORY_FRACTION` of what is free, other programs on the GPU considered, and of what
    this process already has.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return MEMORY_FRACTION * (free + torch.cuda.memory_reserved(device))


def limit_batch(batch_size: int, num_images: int, min_batch_size: int, world_size: int) -> int:
    """Return the global batch size for `batch_size` images on each of `world_size` GPUs.

    An epoch of `num_images` keeps `MIN_STEPS` steps, unless that needs a batch size below
    `min_batch_size`.
    """
    limit = max(num_images // MIN_STEPS, min_batch_size) // world_size
    return world_size * max(1, min(batch_size, limit))


def largest_fitting_batch(peak_memory: Callable[[int], int], budget: float) -> int:
    """Return the largest batch size that needs at most `budget` bytes.

    `peak_memory` measures the bytes of a batch size, for a few small ones; a line fitted through
    them gives the others. Raises UserError if not even 1 image fits.
    """
    memory_by_batch: dict[int, int] = {}
    for batch_size in PROBE_SIZES:
        try:
            memory_by_batch[batch_size] = peak_memory(batch_size)
        except torch.cuda.OutOfMemoryError:
            break
    if len(memory_by_batch) < 2:
        largest = len(memory_by_batch)
    else:
        per_image, constant = np.polyfit([*memory_by_batch], [*memory_by_batch.values()], 1)
        largest = int((budget - constant) / max(per_image, 1.0))
    if largest < 1:
        raise UserError("--batch-size auto: not even 1 image fits into the GPU (lower --imgsz)")
    return largest
