"""The exponential moving average of the weights: what is validated, saved as best, and used afterwards."""

import copy

import torch
from torch import nn


class EMA:
    """Keeps `model`, a copy whose parameters and buffers follow those of the trained one.

    After n updates the decay is min(decay, 1 - 9 / ((10 + n) * (1 + n / 1000))): the average reaches back over the last ninth of
    a short run, which still learns at its end, and over a greater share of a long one, which by then mostly moves about.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the state of `model` after an optimizer step; counts, which are whole numbers, are copied."""
        self.updates += 1
        decay = min(self.decay, 1 - 9 / ((10 + self.updates) * (1 + self.updates / 1000)))
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        torch._foreach_lerp_(
            [mine for mine, _ in pairs if mine.is_floating_point()],
            [new for mine, new in pairs if mine.is_floating_point()],
            1 - decay,
        )
        for mine, new in pairs:
            if not mine.is_floating_point():
                mine.copy_(new)

    @torch.no_grad()
    def restore_buffers(self, model: nn.Module) -> None:
        """Give `model` the average's buffers, where a batch may have spoiled its own: a norm's statistics keep a nan for ever."""
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            theirs.copy_(mine)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
