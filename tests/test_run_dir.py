"""Which folder a run gets, which one is the newest, and what stays in it when the disk is full."""

import os

import pytest
import torch

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.run_dir import RunDir, latest_checkpoint, new_run_dir


def state_of(epoch):
    weights = {"w": torch.full((3,), float(epoch))}
    return {"args": {}, "hyp": {}, "names": ["a"], "epoch": epoch, "best": 0.1 * epoch, "average": weights, "detections": weights,
            "rows": [{"epoch": e, "lr": 0.1} for e in range(epoch)]}  # fmt: skip


def test_a_taken_name_gets_a_number(tmp_path):
    assert [new_run_dir(tmp_path / "runs", "exp", False).name for _ in range(3)] == [
        "exp",
        "exp2",
        "exp3",
    ]
    assert new_run_dir(tmp_path / "runs", "exp", True).name == "exp"
    (tmp_path / "runs" / "exp" / "weights" / "last.pt").write_text("of a run before")
    assert new_run_dir(tmp_path / "runs", "exp", True).name == "exp"
    assert not list((tmp_path / "runs" / "exp").rglob("*.pt"))
    (tmp_path / "runs" / "a file").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        new_run_dir(tmp_path / "runs", "a file", True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--project"):
        new_run_dir(tmp_path / "file", "exp", False)


def test_the_newest_run_is_found(tmp_path):
    with pytest.raises(UserError, match="--resume"):
        latest_checkpoint(tmp_path)
    for i, name in enumerate(("exp", "exp3", "exp2")):
        (tmp_path / name / "weights").mkdir(parents=True)
        save_checkpoint({"epoch": i}, tmp_path / name / "weights" / "last.pt")
        os.utime(tmp_path / name / "weights" / "last.pt", (1000 + i, 1000 + i))
    assert latest_checkpoint(tmp_path) == tmp_path / "exp2" / "weights" / "last.pt"


def test_what_cannot_be_written_waits_for_the_next_time(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    run = RunDir(tmp_path)
    assert run.save(state_of(1), improved=True) is None

    def full(state, path):
        raise OSError(28, "No space left on device")

    second = state_of(2)
    monkeypatch.setattr("utils.run_dir.save_checkpoint", full)
    assert (
        run.save(second, improved=True)
        == f"{tmp_path / 'weights' / 'best.pt'}: cannot be written: No space left on device"
    )
    assert all(
        load_checkpoint(tmp_path / "weights" / name)["epoch"] == 1
        for name in ("best.pt", "last.pt")
    )
    monkeypatch.undo()
    second["average"]["w"] += 5  # training goes on, in the same tensors
    assert run.save(state_of(3)) is None
    best, last = (load_checkpoint(tmp_path / "weights" / name) for name in ("best.pt", "last.pt"))
    assert (best["epoch"], best["average"]["w"].tolist(), best["best"]) == (2, [2.0] * 3, 0.2)
    assert last["epoch"] == 3 and "rows" not in best
    assert (tmp_path / "results.csv").read_text().splitlines() == [
        "epoch,lr",
        "0,0.1",
        "1,0.1",
        "2,0.1",
    ]
    assert not list(tmp_path.rglob("*.tmp"))
