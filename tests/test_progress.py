"""The numbers of a run that are not weights: means, history, best result, and their state."""

import math

import pytest
import torch

from utils.metrics import METRICS, Result
from utils.progress import Progress, RunningMeans, summary_line


def test_running_means_are_arithmetic_means():
    means = RunningMeans()
    values = [0.25, 1.5, -3.0, 7.0]
    for i, value in enumerate(values, 1):
        means.update(box=torch.tensor(value), cls=torch.tensor(2 * value))
        expected = sum(values[:i]) / i
        assert means.values() == pytest.approx({"box": expected, "cls": 2 * expected})


def test_running_means_of_different_cadence_do_not_mix():
    means = RunningMeans()
    for i in range(4):
        means.update(box=torch.tensor(float(i)))
        if i % 2:
            means.update(grad_norm=torch.tensor(10.0 * i))
    assert means.values() == {"box": 1.5, "grad_norm": 20.0}


def test_running_means_survive_a_non_finite_value():
    means = RunningMeans()
    for value in (1.0, math.nan, math.inf, 1.0):
        means.update(box=torch.tensor(value))
    assert means.values() == {"box": 1.0}


def test_running_means_continue_bitwise_from_their_state():
    values = torch.rand(20, generator=torch.Generator().manual_seed(0))
    whole, first, second = RunningMeans(), RunningMeans(), RunningMeans()
    for value in values:
        whole.update(box=value)
    for value in values[:7]:
        first.update(box=value)
    second.load_state_dict(first.state_dict())
    for value in values[7:]:
        second.update(box=value)
    assert second.state_dict() == whole.state_dict()


def result_of(value: float) -> Result:
    return Result(dict.fromkeys(METRICS, value), [])


def test_progress_keeps_the_best_result_only():
    progress = Progress()
    for epoch, value in enumerate((0.2, 0.5, 0.5, 0.4)):
        progress.epoch = epoch
        improved = progress.record_result(result_of(value), torch.full((1, 7), float(epoch)))
        assert improved == (epoch < 2)
    assert (progress.best_epoch, progress.best_map) == (1, 0.5)
    assert progress.best_detections[0, 0] == 1


def test_progress_restores_every_field():
    progress = Progress(epoch=3, batch=2, skipped_steps=4, consecutive_skips=1)
    progress.start_timer()
    progress.means.update(box=torch.tensor(2.0))
    progress.record_result(result_of(0.5), torch.rand(3, 7))
    progress.record_epoch({}, {}, [0.1])
    before = progress.state_dict()
    restored = Progress()
    restored.load_state_dict(before)
    restored.start_timer()
    after = restored.state_dict()
    assert torch.equal(before.pop("best_detections"), after.pop("best_detections"))
    assert 0 < before.pop("elapsed") <= after.pop("elapsed")
    assert before == after


def test_progress_names_missing_and_unknown_fields():
    state = Progress().state_dict()
    with pytest.raises(ValueError, match="best_map"):
        Progress().load_state_dict({key: state[key] for key in state.keys() - {"best_map"}})
    with pytest.raises(ValueError, match="curriculum"):
        Progress().load_state_dict(state | {"curriculum": 1})


def test_summary_line_has_losses_metrics_and_the_rate():
    progress = Progress(epoch=7)
    progress.start_timer()
    progress.means.update(box=torch.tensor(2.0))
    row = progress.record_epoch({"box": 3.0}, dict.fromkeys(METRICS, 0.5), [0.001, 0.002])
    assert row["val/box"] == 3.0
    assert summary_line(row).startswith("epoch 7  box 2.000  precision 0.500  recall 0.500")
    assert summary_line(row).endswith("lr 1.00e-03")
    row = progress.record_epoch({}, {}, [0.001])
    assert summary_line(row) == "epoch 7  box 2.000  lr 1.00e-03"
