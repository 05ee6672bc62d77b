"""A loss or gradient that is not finite: no step is taken on it, and nothing of it stays."""

import copy

import numpy as np
import pytest
import torch
from conftest import rows, same, weights

import train
from utils.interrupt import Interrupted

QUICK = ["--imgsz", 64, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--noplots"]


def status(*arguments: object) -> int:
    return train.main([*map(str, arguments)])


@pytest.fixture
def poisoned(monkeypatch):
    """A set to be filled with the (epoch, batch) whose pictures are to be nan."""
    places, now = set(), []
    seed, color = train.seed_everything, train.apply_color_matrix
    monkeypatch.setattr(
        train,
        "seed_everything",
        lambda *place: (now.__setitem__(slice(None), place[1:3]), seed(*place)),
    )

    def recolored(images, *options):
        found = color(images, *options)
        return found * torch.nan if tuple(now) in places else found

    monkeypatch.setattr(train, "apply_color_matrix", recolored)
    return places


def test_no_step_is_taken_and_nothing_of_it_stays(poisoned, tiny, tmp_path, capsys, monkeypatch):
    """An epoch of bad batches leaves the weights, the optimizer and the average as they were, and the norms' statistics good."""
    poisoned |= {(1, 0), (1, 1), (1, 2)}
    states = []
    monkeypatch.setattr(
        train.RunDir, "save", lambda self, state, _=False: states.append(copy.deepcopy(state))
    )
    assert status("--data", tiny, "--epochs", 3, *QUICK, "--project", tmp_path / "runs") == 0
    before, after, end = (next(s for s in states if s["epoch"] == epoch) for epoch in (1, 2, 3))
    learned = {
        name
        for name in before["model"]
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    assert all(torch.equal(before["model"][name], after["model"][name]) for name in learned)
    assert same(before["optimizer"]["state"], after["optimizer"]["state"]) and same(
        before["average"], after["average"]
    )
    assert all(
        torch.equal(before["average"][name], after["model"][name])
        for name in after["model"].keys() - learned
    )
    assert not same(after["model"], end["model"])
    assert all(tensor.isfinite().all() for tensor in end["model"].values())
    assert (before["skipped"], after["skipped"], end["skipped"]) == ((0, 0), (3, 3), (3, 0))
    said = [line for line in capsys.readouterr().err.splitlines() if "not finite" in line]
    assert [line.partition(":")[0] for line in said[:3]] == [
        "epoch 1, batch 0",
        "epoch 1, batch 1",
        "epoch 1, batch 2",
    ]
    assert said[3:] == [
        "steps of this run that were skipped, for their loss or gradient was not finite: 3"
    ]
    assert "skipped, 3 so far" in said[2]
    order = np.random.default_rng((0, 1, 0)).permutation(
        12
    )  # the first batch is 4 of this order, and 3 more in its mosaics
    names = sorted(f"{i}.png" for i in range(12))
    assert said[0].partition("with ")[2] == ", ".join(names[i] for i in sorted(order[:7]))
    assert all(
        float(row[f"train/{name}"]) >= 0
        for row in states[-1]["rows"]
        for name in ("box", "cls", "dfl")
    )


def test_a_skipped_step_is_the_same_in_a_resumed_run(poisoned, tiny, tmp_path, monkeypatch):
    poisoned |= {(1, 1), (2, 0)}
    arguments = ["--data", tiny, "--epochs", 4, *QUICK]
    assert status(*arguments, "--project", tmp_path / "whole") == 0
    update = train.EMA.update

    def stopped(self, model):
        update(self, model)
        if self.updates == 4:  # after the first batch of epoch 1 and the one that is left out
            raise Interrupted(15, "")

    with monkeypatch.context() as patch:
        patch.setattr(train.EMA, "update", stopped)
        assert status(*arguments, "--save-every", "1e-9", "--project", tmp_path / "cut") == 128 + 15
    assert status("--resume", tmp_path / "cut" / "exp") == 0
    one, other = (weights(tmp_path / name / "exp") for name in ("whole", "cut"))
    assert all(
        same(one[key], other[key])
        for key in ("model", "average", "optimizer", "scheduler", "skipped", "best")
    )
    assert [r["train/box"] for r in rows(tmp_path / "whole/exp")] == [
        r["train/box"] for r in rows(tmp_path / "cut/exp")
    ]


def test_a_run_in_which_nothing_is_finite_any_more_stops(poisoned, tiny, tmp_path, capsys):
    poisoned |= {(epoch, batch) for epoch in range(2, 9) for batch in range(3)}
    poisoned -= {(2, 0)}
    assert (
        status("--data", tiny, "--epochs", 9, *QUICK, "--save-every", "1e-9", "--project", tmp_path)
        == 2
    )
    errors = capsys.readouterr().err.splitlines()
    assert (
        len(errors) == 11
        and "10 steps in a row were not finite, up to epoch 5, batch 1" in errors[-1]
    )
    state = weights(tmp_path / "exp")
    assert all(
        tensor.isfinite().all() for part in ("model", "average") for tensor in state[part].values()
    )
    poisoned.clear()
    assert status("--resume", tmp_path / "exp") == 0
    assert len(rows(tmp_path / "exp")) == 9


def test_a_rate_that_tears_the_weights_apart(tiny, tmp_path, capsys):
    (tmp_path / "h.yaml").write_text(
        "optimizer: sgd\nlr0: 1.0\ngrad_clip: 0\nbox: 1000\nscheduler: {warmup_epoch: 0}\n"
    )
    assert (
        status(
            "--hyp",
            tmp_path / "h.yaml",
            "--data",
            tiny,
            "--epochs",
            20,
            *QUICK,
            "--project",
            tmp_path,
        )
        == 2
    )
    assert "steps in a row were not finite" in capsys.readouterr().err


def test_detect_anomaly_names_the_layer(poisoned, tiny, tmp_path, capsys, monkeypatch):
    arguments = ["--data", tiny, "--epochs", 1, *QUICK, "--detect-anomaly", "--project", tmp_path]
    assert status(*arguments) == 0
    forward = train.nn.SiLU.forward
    calls = []

    def spoilt(self, x):
        calls.append(1)
        return forward(self, x) / (0 if len(calls) == 3 else 1)

    monkeypatch.setattr(train.nn.SiLU, "forward", spoilt)
    assert status(*arguments) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("train.py: --detect-anomaly: backbone.")
        and "(SiLU)" in error
        and "its input was finite" in error
    )
    assert error.count("\n") == 1
