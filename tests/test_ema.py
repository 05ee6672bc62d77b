"""The EMA follows the weights by the rule in its docstring."""

import pytest
import torch
from torch import nn

from utils.ema import EMA


def test_ema_of_a_sequence():
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


def test_ema_continues_from_its_state():
    models = [nn.Linear(2, 2) for _ in range(3)]
    whole, first = EMA(models[0], decay=0.9), EMA(models[0], decay=0.9)
    whole.update(models[1])
    first.update(models[1])
    second = EMA(models[2], decay=0.9)
    second.load_state_dict(first.state_dict())
    for ema in (whole, second):
        ema.update(models[2])
    assert whole.updates == second.updates == 2
    assert all(map(torch.equal, whole.model.parameters(), second.model.parameters()))


def test_restore_buffers_replaces_spoiled_statistics():
    model = nn.BatchNorm1d(1)
    ema = EMA(model, decay=0.9)
    model.running_mean.fill_(float("nan"))
    ema.restore_buffers(model)
    assert model.running_mean.tolist() == [0.0]
