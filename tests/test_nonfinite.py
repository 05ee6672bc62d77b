"""A loss or gradient that is not finite: its optimizer step is skipped and leaves no trace."""

import copy
import logging
import signal

import numpy as np
import pytest
import torch
from conftest import (
    assert_one_line_error,
    assert_same_run,
    bitwise_equal,
    fail_at,
    load_state,
    read_results,
    resume_train,
    run_train,
    signal_at,
    without_short_run_warnings,
    write_hyp,
)
from torch import nn

from models.yolo import YOLO
from utils.log import logger
from utils.run_dir import RunDir

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm


class CurrentBatch(logging.Handler):
    """Knows which batch a run is at: `position` is (epoch, batch)."""

    position = (-1, -1)

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "batch":
            self.position = (record.details["epoch"], record.details["batch"])


@pytest.fixture
def nan_batches(monkeypatch):
    """A set to fill with (epoch, batch): the images of these training batches become NaN."""
    nan_batches, current, losses = set(), CurrentBatch(), YOLO.losses

    def losses_of_nan(self, images, targets):
        factor = torch.nan if current.position in nan_batches else 1
        return losses(self, images * factor, targets)

    monkeypatch.setattr(YOLO, "losses", losses_of_nan)
    logger.setLevel(logging.DEBUG)
    logger.addHandler(current)
    yield nan_batches
    logger.removeHandler(current)


def test_nonfinite_step_is_skipped_and_leaves_no_trace(
    nan_batches, tiny, tmp_path, capsys, monkeypatch
):
    """A bad epoch changes neither weights, optimizer nor EMA, and BatchNorm recovers."""
    nan_batches |= {(1, 0), (1, 1), (1, 2)}
    saved = []

    def save(self, checkpoint, *_):
        saved.append(copy.deepcopy(checkpoint))

    monkeypatch.setattr(RunDir, "save", save)
    options = {"data": tiny, "hyp": None, "epochs": 3, "noplots": True}  # Muon
    assert run_train(**options, project=tmp_path / "runs") == 0
    before, after, end = (
        next(state for state in saved if state["progress"]["epoch"] == epoch) for epoch in (1, 2, 3)
    )
    learned = {name for name in before["model"] if not name.endswith(BUFFERS)}
    buffers = before["model"].keys() - learned
    assert all(torch.equal(before["model"][name], after["model"][name]) for name in learned)
    assert bitwise_equal(before["optimizer"]["state"], after["optimizer"]["state"])
    assert bitwise_equal(before["ema"], after["ema"])
    assert all(torch.equal(before["ema"]["model"][name], after["model"][name]) for name in buffers)
    assert not bitwise_equal(after["model"], end["model"])
    assert all(tensor.isfinite().all() for tensor in end["model"].values())
    counts = [
        (state["progress"]["skipped_steps"], state["progress"]["consecutive_skips"])
        for state in (before, after, end)
    ]
    assert counts == [(0, 0), (3, 3), (3, 0)]
    for row in saved[-1]["progress"]["history"]:
        assert all(row[f"train/{name}"] >= 0 for name in ("box", "cls", "dfl"))

    *skipped, total = without_short_run_warnings(capsys.readouterr().err).splitlines()
    assert [line.partition(":")[0] for line in skipped] == [
        "epoch 1, batch 0",
        "epoch 1, batch 1",
        "epoch 1, batch 2",
    ]
    assert all("is not finite: skipped the optimizer step" in line for line in skipped)
    assert "(3 so far)" in skipped[2]
    assert total == "skipped 3 optimizer steps with a non-finite loss or gradient"
    # The first batch has the first 4 images of this order, and the next 3 in its mosaics.
    order = np.random.default_rng((0, 1, 0)).permutation(12)
    names = sorted(f"{i}.png" for i in range(12))
    assert skipped[0].partition("images: ")[2] == ", ".join(names[i] for i in sorted(order[:7]))


def test_nonfinite_step_is_the_same_in_a_resumed_run(nan_batches, tiny, tmp_path):
    nan_batches |= {(1, 1), (2, 0)}
    args = {"data": tiny, "hyp": None, "epochs": 4, "noplots": True}  # Muon
    assert run_train(**args, project=tmp_path / "whole") == 0
    run_dir = tmp_path / "resumed" / "exp"
    # After the skipped step nothing is saved: the run comes to it once more.
    with fail_at("batch", epoch=1, batch=2), pytest.raises(ZeroDivisionError):
        run_train(**args, save_every=1e-9, project=tmp_path / "resumed")
    progress = load_state(run_dir)["progress"]
    assert (progress["epoch"], progress["batch"], progress["skipped_steps"]) == (1, 1, 0)
    # A signal saves all the same.
    with signal_at("batch", epoch=2, batch=0):
        assert resume_train(run_dir) == 128 + signal.SIGTERM
    progress = load_state(run_dir)["progress"]
    assert (progress["epoch"], progress["batch"], progress["skipped_steps"]) == (2, 1, 2)
    assert progress["consecutive_skips"] == 1
    assert resume_train(run_dir) == 0
    assert_same_run(tmp_path / "whole" / "exp", run_dir)


def test_nonfinite_steps_in_a_row_end_the_run(nan_batches, tiny, tmp_path, capsys):
    nan_batches |= {(epoch, batch) for epoch in range(2, 9) for batch in range(3)}
    nan_batches -= {(2, 0)}
    args = {"data": tiny, "epochs": 9, "noplots": True, "save_every": 1e-9, "project": tmp_path}
    assert run_train(**args) == 2
    *warnings, error = without_short_run_warnings(capsys.readouterr().err).splitlines()
    assert len(warnings) == 10
    message = "10 consecutive steps were not finite, up to epoch 5, batch 1"
    assert error.startswith(f"train.py: {tmp_path / 'exp'}: {message}")
    state = load_state(tmp_path / "exp")
    for tensors in (state["model"], state["ema"]["model"]):
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    nan_batches.clear()
    assert resume_train(tmp_path / "exp") == 0
    assert len(read_results(tmp_path / "exp")) == 9


def test_nonfinite_weights_end_the_run(tiny, tmp_path, capsys):
    """With a learning rate at which the weights diverge."""
    text = "optimizer: sgd\nlr0: 1.0\ngrad_clip: 0\nbox: 1000\nscheduler: {warmup_epoch: 0}\n"
    args = {"hyp": write_hyp(tmp_path, text), "data": tiny, "epochs": 20, "noplots": True}
    assert run_train(**args, project=tmp_path) == 2
    assert "10 consecutive steps were not finite" in capsys.readouterr().err


def test_detect_anomaly_names_the_layer(tiny, tmp_path, capsys, monkeypatch):
    args = {"data": tiny, "epochs": 1, "noplots": True, "detect_anomaly": True}
    assert run_train(**args, project=tmp_path) == 0
    capsys.readouterr()
    forward, calls = nn.SiLU.forward, []

    def divide_third_output_by_zero(self, x):
        calls.append(1)
        return forward(self, x) / (0 if len(calls) == 3 else 1)

    monkeypatch.setattr(nn.SiLU, "forward", divide_third_output_by_zero)
    assert run_train(**args, project=tmp_path) == 2
    error = without_short_run_warnings(capsys.readouterr().err)
    assert error.startswith("train.py: --detect-anomaly: backbone.")
    assert_one_line_error(error, "(SiLU)", "its input was finite")
