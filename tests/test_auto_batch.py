"""`--batch-size auto`: the largest batch that fits, tested without a GPU by a simulated memory."""

import pytest
import torch
from conftest import load_state, read_results, resume_train, run_train, signal_at, write_tiny

import train
from utils import auto_batch
from utils.auto_batch import largest_fitting_batch, limit_batch, memory_budget
from utils.errors import UserError


def test_largest_fitting_batch_extrapolates_from_small_batches():
    assert largest_fitting_batch(lambda size: 500 + 70 * size, 500 + 70 * 123.5) == 123
    probed = []

    def memory_of_small_gpu(batch_size):
        probed.append(batch_size)
        if batch_size > 4:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return 1000 * batch_size

    assert largest_fitting_batch(memory_of_small_gpu, 6500) == 6 and probed == [1, 2, 4, 8]


def test_memory_budget_is_what_other_programs_leave(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50_000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10_000)
    assert memory_budget(torch.device("cuda")) == pytest.approx(0.8 * 60_000)


@pytest.mark.parametrize(
    ("fitting", "num_images", "world_size", "expected"),
    [
        (200, 118_287, 1, 200),  # all that fits
        (200, 5_000, 1, 50),  # 100 steps
        (200, 300, 1, 16),  # the default of the dataset
        (4, 300, 1, 4),
        (200, 5_000, 8, 48),
        (4, 300, 32, 32),
    ],
)
def test_limit_batch_leaves_100_steps(fitting, num_images, world_size, expected):
    assert limit_batch(fitting, num_images, 16, world_size) == expected


@pytest.mark.parametrize("budget", [0, 400])
def test_largest_fitting_batch_without_room_for_one_image(budget):
    with pytest.raises(UserError, match="--batch-size auto: not even 1 image fits"):
        largest_fitting_batch(lambda size: 500 + 70 * size, budget)


def test_auto_batch_requires_cuda(tmp_path, capsys):
    data = write_tiny(tmp_path / "tiny")
    args = ["--data", str(data), "--batch-size", "auto", "--imgsz", "64", "--device", "cpu"]
    assert train.main([*args, "--project", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == (
        "train.py: --batch-size auto: requires a CUDA device, not cpu (give a number)\n"
    )
    assert not (tmp_path / "runs").exists()


def test_auto_batch_of_a_resumed_run_is_the_one_it_was_started_with(tiny, tmp_path, monkeypatch):
    """The same command starts, resumes and reports a run; another free memory changes nothing."""
    sizes = iter([3, 5])  # images that fit, at the first start and at any other
    monkeypatch.setattr(auto_batch, "largest_batch", lambda *_: next(sizes))
    args = {"data": tiny, "noplots": True, "project": tmp_path, "batch_size": "auto", "epochs": 2}
    with signal_at("batch", epoch=1, batch=1):
        assert run_train(**args, resume="auto") == 143
    assert load_state(tmp_path / "exp")["args"]["batch_size"] == 3
    assert run_train(**args, resume="auto") == 0
    state = load_state(tmp_path / "exp")
    assert state["args"]["batch_size"] == 3 and state["ema"]["updates"] == 2 * 12 / 3
    assert run_train(**args, resume="auto") == 0  # finished
    assert resume_train(tmp_path / "exp", batch_size="auto", epochs=3) == 0
    assert len(read_results(tmp_path / "exp")) == 3
    assert next(sizes) == 5  # measured once
