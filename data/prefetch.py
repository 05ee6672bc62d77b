"""Batches on the training device, copied one ahead."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def prefetch(
    batches: Iterable[tuple[Tensor, T]], device: torch.device
) -> Iterator[tuple[Tensor, T]]:
    """Yield `batches`, of images and their targets, with the images on `device`.

    A GPU copies the next images, in a stream of its own, while it computes with the ones before.
    """
    if device.type != "cuda":
        for images, targets in batches:
            yield images.to(device, non_blocking=True), targets
        return
    stream = torch.cuda.Stream(device)
    waiting: list[tuple[Tensor, T, torch.cuda.Event]] = []
    for images, targets in batches:
        with torch.cuda.stream(stream):
            copy = images.to(device, non_blocking=True)
        waiting.append((copy, targets, stream.record_event()))
        if len(waiting) > 1:
            yield _when_copied(*waiting.pop(0))
    for batch in waiting:
        yield _when_copied(*batch)


def _when_copied(images: Tensor, targets: T, event: torch.cuda.Event) -> tuple[Tensor, T]:
    """Let the current stream wait for the copy; the caller does not wait."""
    current = torch.cuda.current_stream(images.device)
    current.wait_event(event)
    # Or else the memory would be given to the next copy while the current stream still reads it.
    images.record_stream(current)
    return images, targets
