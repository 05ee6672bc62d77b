"""`--tensorboard`: TensorBoard reads what results.csv says, also of an interrupted run."""

import os
import signal
import sys

import pytest
from conftest import ROOT, read_results, write_tiny
from preloaded import run_python

import train
from utils.tensorboard import TensorBoardLogger

QUICK = ["--imgsz", "64", "--batch-size", "4", "--epochs", "3", "--device", "cpu"]


def read_events(path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(path))
    events.Reload()
    return events


def test_tensorboard_agrees_with_results_csv_after_an_interruption(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    data = write_tiny(tmp_path / "tiny")
    seed, signals = train.seed_everything, []

    def seed_and_interrupt(*key):
        seed(*key)
        if key[1:3] == (1, 1) and not signals:  # in the second epoch
            signals.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "seed_everything", seed_and_interrupt)
    args = ["--data", str(data), *QUICK, "--tensorboard", "--project", str(tmp_path)]
    assert train.main(args) == 128 + signal.SIGTERM
    assert train.main(["--resume", str(tmp_path / "exp")]) == 0
    events = read_events(tmp_path / "exp")
    table = read_results(tmp_path / "exp")
    assert set(events.Tags()["scalars"]) == set(table[0]) - {"epoch"}
    for name in events.Tags()["scalars"]:
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == [0, 1, 2]
        expected = [float(row[name]) for row in table]
        assert [event.value for event in scalars] == pytest.approx(expected, rel=1e-6)
    assert set(events.Tags()["images"]) == {"lr", "results", "train_batch", "val_batch"}


def test_tensorboard_logs_a_column_that_appears_later(tmp_path):
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(True)
    logger.open(tmp_path, 0)
    logger.log_epoch({"epoch": 0, "train/box": 1.0, "metrics/mAP50": None})
    logger.log_epoch({"epoch": 1, "train/box": 0.5, "train/obj": 0.25})
    logger.close(tmp_path, 1)
    events = read_events(tmp_path)
    assert set(events.Tags()["scalars"]) == {"train/box", "train/obj"}
    assert [(event.step, event.value) for event in events.Scalars("train/obj")] == [(1, 0.25)]


def test_tensorboard_on_a_full_disk_does_not_end_the_run(tmp_path):
    """No file may grow beyond 2 kB, which is less than these events need."""
    pytest.importorskip("tensorboard")
    program = f"""
import resource
from pathlib import Path
from utils.tensorboard import TensorBoardLogger
logger = TensorBoardLogger(True)
logger.open(Path({str(tmp_path)!r}), 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for epoch in range(100):
    logger.log_epoch({{"epoch": epoch, "train/box": 1.0}})
logger.close(Path({str(tmp_path)!r}), 99)
print("complete")
"""
    done = run_python(["-c", program], cwd=ROOT)
    assert done.returncode == 0 and done.stdout == "complete\n", done.stderr
    assert done.stderr.count("TensorBoard: cannot be written: File too large") == 1


def test_tensorboard_disabled_does_nothing(tmp_path):
    logger = TensorBoardLogger(False)
    logger.open(tmp_path, 0)
    logger.log_epoch({"epoch": 0, "train/box": 1.0})
    logger.close(tmp_path, 0)
    assert [*tmp_path.iterdir()] == []


def test_tensorboard_not_installed(tmp_path, monkeypatch, capsys):
    data = write_tiny(tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    args = ["--data", str(data), *QUICK, "--tensorboard", "--project", str(tmp_path / "runs")]
    assert train.main(args) == 2
    expected = "train.py: --tensorboard: not installed (pip install tensorboard)\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "runs").exists()
