"""The directory of a run: its name, the newest one, and what stays in it on a full disk."""

import os
from pathlib import Path

import pytest
import torch

from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.run_dir import RunDir, latest_checkpoint, new_run_dir


def checkpoint_of(epoch: int) -> dict:
    weights = {"w": torch.full((3,), float(epoch))}
    progress = {"epoch": epoch, "history": [{"epoch": e, "lr": 0.1} for e in range(epoch)]}
    return {
        "args": {},
        "hyp": {},
        "class_names": ["a"],
        "ema": {"model": weights},
        "optimizer": {},
        "progress": progress,
    }


def test_new_run_dir_numbers_names_that_exist(tmp_path):
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
    with pytest.raises(UserError, match="not a directory"):
        new_run_dir(tmp_path / "runs", "a file", True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--project"):
        new_run_dir(tmp_path / "file", "exp", False)


def test_latest_checkpoint_is_the_newest(tmp_path):
    with pytest.raises(UserError, match="--resume"):
        latest_checkpoint(tmp_path)
    for i, name in enumerate(("exp", "exp3", "exp2")):
        (tmp_path / name / "weights").mkdir(parents=True)
        save_checkpoint({"epoch": i}, tmp_path / name / "weights" / "last.pt")
        os.utime(tmp_path / name / "weights" / "last.pt", (1000 + i, 1000 + i))
    assert latest_checkpoint(tmp_path) == tmp_path / "exp2" / "weights" / "last.pt"


def test_run_dir_writes_a_failed_best_checkpoint_next_time(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    run = RunDir(tmp_path)
    assert run.save(checkpoint_of(1), improved=True) is None

    def full(state, path):
        raise OSError(28, "No space left on device")

    second = checkpoint_of(2)
    monkeypatch.setattr("utils.run_dir.save_checkpoint", full)
    assert (
        run.save(second, improved=True)
        == f"{tmp_path / 'weights' / 'best.pt'}: cannot be written: No space left on device"
    )
    assert all(
        load_checkpoint(tmp_path / "weights" / name)["progress"]["epoch"] == 1
        for name in ("best.pt", "last.pt")
    )
    monkeypatch.undo()
    second["ema"]["model"]["w"] += 5  # training continues, in the same tensors
    assert run.save(checkpoint_of(3)) is None
    best, last = (load_checkpoint(tmp_path / "weights" / name) for name in ("best.pt", "last.pt"))
    assert best["progress"]["epoch"] == 2
    assert best["ema"]["model"]["w"].tolist() == [2.0] * 3
    assert last["progress"]["epoch"] == 3
    assert "optimizer" in last and "optimizer" not in best
    assert (tmp_path / "results.csv").read_text().splitlines() == [
        "epoch,lr",
        "0,0.1",
        "1,0.1",
        "2,0.1",
    ]
    assert not list(tmp_path.rglob("*.tmp"))


def test_results_csv_has_the_columns_of_all_rows(tmp_path):
    """A fork adds a column to a run and resumes it: the rows before have none of it."""
    (tmp_path / "weights").mkdir()
    checkpoint = checkpoint_of(2)
    checkpoint["progress"]["history"][1]["train/obj"] = 0.5
    assert RunDir(tmp_path).save(checkpoint) is None
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines == ["epoch,lr,train/obj", "0,0.1,", "1,0.1,0.5"]


def test_results_csv_that_another_program_has_open_costs_a_warning(tmp_path, monkeypatch, capsys):
    """Windows refuses to replace it; the checkpoint is written all the same."""
    (tmp_path / "weights").mkdir()
    results, replace = tmp_path / "results.csv", Path.replace

    def refuse(source, target):
        if target == results:
            raise PermissionError(13, "The file is in use")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    run = RunDir(tmp_path)
    assert run.save(checkpoint_of(2), improved=True) is None
    message = (
        f"{results}: cannot be written: The file is in use (the next checkpoint tries again)\n"
    )
    assert capsys.readouterr().err == message
    for name in ("best.pt", "last.pt"):
        assert load_checkpoint(tmp_path / "weights" / name)["progress"]["epoch"] == 2
    monkeypatch.undo()
    assert run.save(checkpoint_of(3)) is None
    assert len(results.read_text().splitlines()) == 4


def test_results_csv_has_no_rows_that_last_pt_lacks(tmp_path, monkeypatch):
    """A process that is killed between the two files repeats the epoch, and its row."""
    (tmp_path / "weights").mkdir()
    run = RunDir(tmp_path)
    assert run.save(checkpoint_of(1)) is None
    monkeypatch.setattr("utils.run_dir.save_checkpoint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.save(checkpoint_of(2))
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2
