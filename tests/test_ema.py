"""The average follows the weights by the rule in its docstring."""

import pytest
import torch
from torch import nn

from utils.ema import EMA


def test_the_average_of_a_sequence():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    ema = EMA(model, decay=0.5)
    expected = model[0].weight.item()
    for n in range(1, 12):
        with torch.no_grad():
            model[0].weight.fill_(float(n))
            model[1].running_mean.fill_(float(-n))
        model[1].num_batches_tracked.fill_(n)
        ema.update(model)
        decay = min(0.5, 1 - 9 / ((10 + n) * (1 + n / 1000)))
        expected = decay * expected + (1 - decay) * n
        assert float(ema.model[0].weight) == pytest.approx(expected, rel=1e-5)
        assert int(ema.model[1].num_batches_tracked) == n
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
