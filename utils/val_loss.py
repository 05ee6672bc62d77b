"""The losses of a validation set, from the sums over its batches."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class LossTotals:
    """Adds up the sums of losses over batches. They stay on the device until they are read."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._totals: Tensor | None = None  # of each name, and last of the divisors

    @torch.no_grad()
    def add(self, sums: Mapping[str, Tensor], divisor: Tensor | None) -> None:
        """Add the sums of a batch: scalars by name, always the same names, and their divisor.

        Without any sums, of a model that has no losses in evaluation mode, nothing is added.
        """
        if not sums:
            return
        batch = torch.stack([*sums.values(), divisor])
        if batch.device.type != "mps":  # which has no float64
            batch = batch.double()  # or the batches of a large dataset would get lost in the total
        self._names = tuple(sums)
        self._totals = batch if self._totals is None else self._totals + batch

    def read(self) -> tuple[dict[str, float], float]:
        """Return the total of each loss and of the divisors, {} and 0 if nothing was added.

        On a GPU this waits for the device.
        """
        if self._totals is None:
            return {}, 0.0
        *totals, divisor = self._totals.tolist()
        return dict(zip(self._names, totals, strict=True)), divisor


def mean_losses(shards: Iterable[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Return each loss of a dataset from the `LossTotals.read()` of all processes' shards of it.

    It is the total of the sums divided by the total of the divisors, at least 1, so that it does
    not depend on how the images were divided into shards and batches. {} if there are no losses.
    """
    totals: dict[str, float] = {}
    divisor = 0.0
    for losses, shard_divisor in shards:
        divisor += shard_divisor
        for name, loss in losses.items():
            totals[name] = totals.get(name, 0.0) + loss
    return {name: total / max(1.0, divisor) for name, total in totals.items()}
