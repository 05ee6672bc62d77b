"""`--batch-size auto`: the largest batch that a GPU has room for, from what a few small ones take."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from utils.errors import UserError

PROBE_SIZES = (1, 2, 4, 8, 16)  # pictures
MEMORY_FRACTION = 0.8  # of the GPU's memory: the optimizer, and pictures with more boxes than these, want some, too


def largest_batch(model: nn.Module, imgsz: int, device: torch.device, bf16: bool) -> int:
    """How many pictures of `imgsz` pixels fit into the memory of the GPU `device` when `model`, which stays as it is, learns.

    Raises UserError where that is not CUDA, or not even one picture fits.
    """
    if device.type != "cuda":
        raise UserError(
            f"--batch-size auto: measures the memory of a GPU, and this run is on {device}; give a number"
        )
    learner = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.5]]).repeat(20, 1) * imgsz
    target = {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long)}

    def peak(count: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        images = torch.rand(count, 3, imgsz, imgsz, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = learner(images, [target] * count)
        sum(losses.values()).backward()
        return torch.cuda.max_memory_allocated(device)

    with torch.random.fork_rng([device]):
        found = largest_fitting_batch(
            peak, MEMORY_FRACTION * torch.cuda.get_device_properties(device).total_memory
        )
    torch.cuda.empty_cache()
    return found


def largest_fitting_batch(peak: Callable[[int], int], room: float) -> int:
    """The largest batch whose bytes are not above `room`, by a line through what `peak` says of the small ones.

    Raises UserError when that is none.
    """
    taken: dict[int, int] = {}
    for count in PROBE_SIZES:
        try:
            taken[count] = peak(count)
        except torch.cuda.OutOfMemoryError:
            break
    if len(taken) < 2:
        found = len(taken)
    else:
        each, base = np.polyfit([*taken], [*taken.values()], 1)
        found = int((room - base) / max(each, 1.0))
    if found < 1:
        raise UserError("--batch-size auto: not even one picture fits into the GPU's memory")
    return found
