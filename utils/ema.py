"""Exponential moving average (EMA) of the weights: validated, saved as best, used afterwards."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from utils.compat import foreach_copy_, foreach_lerp_


class EMA:
    """Keeps `model`, a copy whose parameters and buffers are averages of the trained model's.

    After n updates the decay is min(decay, 1 - 9 / ((10 + n) * (1 + n / 1000))): the average covers
    about the last ninth of a short run, which still learns at its end, and a larger fraction of a
    long one.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        self._pair_with(model)

    def _pair_with(self, model: nn.Module) -> None:
        self._source = model
        pairs = [*zip(_tensors(self.model), _tensors(model), strict=True)]
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._integers = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average after an optimizer step; integer buffers (counters) are copied.

        `model` must not be moved (`model.to()`) between updates: its tensors are looked up once, a
        walk through hundreds of modules at every step would cost more than the update.
        """
        self.updates += 1
        decay = min(self.decay, 1 - 9 / ((10 + self.updates) * (1 + self.updates / 1000)))
        if model is not self._source:
            self._pair_with(model)
        foreach_lerp_(*zip(*self._floats, strict=True), 1 - decay)
        if self._integers:
            foreach_copy_(*zip(*self._integers, strict=True))

    @torch.no_grad()
    def restore_buffers(self, model: nn.Module) -> None:
        """Overwrite the buffers of `model` with the EMA's, after a batch with non-finite numbers.

        BatchNorm's running statistics would never recover from a NaN.
        """
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            value.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
