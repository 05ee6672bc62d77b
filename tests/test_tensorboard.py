"""`--tensorboard`: what TensorBoard reads is what results.csv says, also of a run that was cut off."""

import os
import signal
import sys

import pytest
from conftest import rows, write_tiny

import train

QUICK = ["--imgsz", "64", "--batch-size", "4", "--epochs", "3", "--device", "cpu"]


def test_it_shows_what_results_csv_holds(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = write_tiny(tmp_path / "tiny")
    seed, sent = train.seed_everything, []

    def seeded(*place):
        seed(*place)
        if place[1:3] == (1, 1) and not sent:  # stopped in the second epoch
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "seed_everything", seeded)
    assert (
        train.main(["--data", str(data), *QUICK, "--tensorboard", "--project", str(tmp_path)])
        == 128 + signal.SIGTERM
    )
    assert train.main(["--resume", str(tmp_path / "exp")]) == 0
    board = accumulator.EventAccumulator(str(tmp_path / "exp"))
    board.Reload()
    table = rows(tmp_path / "exp")
    assert set(board.Tags()["scalars"]) == set(table[0]) - {"epoch"}
    for name in board.Tags()["scalars"]:
        found = board.Scalars(name)
        assert [event.step for event in found] == [0, 1, 2]
        assert [event.value for event in found] == pytest.approx(
            [float(row[name]) for row in table], rel=1e-6
        )
    assert set(board.Tags()["images"]) == {"lr", "results", "train_batch", "val_batch"}


def test_where_it_is_not_installed(tmp_path, monkeypatch, capsys):
    data = write_tiny(tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert (
        train.main(
            ["--data", str(data), *QUICK, "--tensorboard", "--project", str(tmp_path / "runs")]
        )
        == 2
    )
    assert (
        capsys.readouterr().err
        == "train.py: --tensorboard: is not installed; pip install tensorboard\n"
    )
    assert not (tmp_path / "runs").exists()
