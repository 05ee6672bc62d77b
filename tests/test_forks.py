"""The edits that CONTRIBUTING.md shows, each applied to a copy of the repository.

Every fork trains, is killed in the middle of an epoch, resumes, and must end bitwise identical to
its own uninterrupted run.
"""

import math
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, assert_same_run, load_state, read_results, write_tiny
from preloaded import run_python

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EDITS = dict(re.findall(r"^### \(([a-z])\).*?\n.*?^```diff\n(.*?)^```", CONTRIBUTING, re.M | re.S))
EPOCHS = 3

# Starts train.py's main and kills the process when it comes to batch 2 of epoch 1.
KILLED = """
import logging, os, signal, sys
import train
from utils.log import logger

class Kill(logging.Handler):
    def emit(self, record):
        if record.msg == "batch" and record.details == {"epoch": 1, "batch": 2}:
            os.kill(os.getpid(), signal.SIGKILL)

logger.setLevel(logging.DEBUG)
logger.addHandler(Kill())
sys.exit(train.main())
"""


class Fork:
    """A copy of the repository with one edit."""

    def __init__(self, edit: str, path: Path) -> None:
        ignored = shutil.ignore_patterns("runs", "datasets", "__pycache__", "docs", "tests", ".*")
        self.path = shutil.copytree(ROOT, path / "fork", ignore=ignored)
        self.run_python("-c", "")
        apply = ["git", "apply", "--recount", "--whitespace=nowarn", "-"]
        done = subprocess.run(apply, input=edit, text=True, cwd=self.path, capture_output=True)
        assert done.returncode == 0, done.stderr
        self.data = write_tiny(path / "tiny", train=18)

    def run_python(self, *words: object, status: int = 0) -> str:
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.path)}
        done = run_python(words, cwd=self.path, env=env)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def train_and_kill(self, hyp: str, *options: object, noplots: bool = True) -> tuple[Path, Path]:
        """Train without interruption, and with a kill and a resume; return both run directories."""
        (self.path / "fork.yaml").write_text(hyp)
        arguments = [
            *("--hyp", "fork.yaml", "--data", self.data, "--imgsz", 64, "--batch-size", 4),
            *("--epochs", EPOCHS, "--device", "cpu", *options, *(["--noplots"] if noplots else [])),
            *("--project", "runs", "--name"),
        ]
        self.run_python("train.py", *arguments, "whole")
        every_step = ["--save-every", 1e-6]
        self.run_python("-c", KILLED, *arguments, "killed", *every_step, status=-signal.SIGKILL)
        killed = self.path / "runs" / "killed"
        progress = load_state(killed)["progress"]
        assert (progress["epoch"], progress["batch"]) == (1, 2)
        self.run_python("train.py", "--resume", killed)
        return self.path / "runs" / "whole", killed


@pytest.fixture
def fork(request, tmp_path) -> Fork:
    return Fork(EDITS[request.param], tmp_path)


def for_edit(letter: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fork", [letter], indirect=True, ids=[f"edit_{letter}"])


def test_every_edit_is_tested():
    tested = re.findall(r'^@for_edit\("([a-z])"\)', Path(__file__).read_text(), re.M)
    assert tested == [*EDITS] == [*"abcdef"]


@for_edit("a")
def test_loss_term(fork):
    whole, resumed = fork.train_and_kill("optimizer: sgd\nobj: 0.5\n")
    assert_same_run(whole, resumed)
    for row in read_results(whole):
        assert float(row["train/obj"]) > 0 and float(row["val/obj"]) > 0
    fork.run_python("train.py", "--hyp", "fork.yaml", "--data", "x.yaml", status=2)


@for_edit("b")
def test_copy_paste_augmentation(fork):
    whole, resumed = fork.train_and_kill("optimizer: sgd\ncopy_paste: 1.0\n", "--workers", 2)
    assert_same_run(whole, resumed)


@for_edit("c")
def test_one_cycle_schedule(fork):
    """Per batch, by the formula written out here; with more epochs, that of the longer run."""
    whole, resumed = fork.train_and_kill(
        "optimizer: sgd\nscheduler: {name: onecycle, pct_start: 0.4}\n"
    )
    assert_same_run(whole, resumed)
    epochs = EPOCHS + 2
    fork.run_python("train.py", "--resume", resumed, "--epochs", epochs)

    def one_cycle(position: float, length: float) -> float:
        x = position / length
        if x < 0.4:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * x / 0.4)) / 2
        return (1 + math.cos(math.pi * (x - 0.4) / 0.6)) / 2

    num_batches = math.ceil(18 / 4)
    last_batch = [epoch + (num_batches - 1) / num_batches for epoch in range(epochs)]
    lengths = [EPOCHS] * EPOCHS + [epochs] * 2
    expected = [0.002 * one_cycle(x, n) for x, n in zip(last_batch, lengths, strict=True)]
    lrs = [float(row["lr/0"]) for row in read_results(resumed)]
    assert lrs == pytest.approx(expected, rel=1e-12)


@for_edit("d")
def test_second_average(fork):
    whole, resumed = fork.train_and_kill("optimizer: sgd\n")
    assert_same_run(whole, resumed)
    num_steps = EPOCHS * math.ceil(18 / 4)
    assert int(load_state(resumed)["swa"]["n_averaged"]) == num_steps


@for_edit("e")
def test_model_family(fork):
    options = ["--model", "tiny-fcos"]
    whole, resumed = fork.train_and_kill("optimizer: adamw\n", *options)
    assert_same_run(whole, resumed)
    weights = whole / "weights" / "best.pt"
    assert "class1" in fork.run_python("val.py", "--weights", weights)
    images = fork.data.parent / "images" / "val"
    fork.run_python("detect.py", "--weights", weights, "--source", images, "--conf", 0)
    assert len([*(fork.path / "runs" / "detect" / "exp").glob("*.png")]) == len([*images.iterdir()])
    fork.run_python("export.py", "--weights", weights, "--format", "torch_export")
    assert weights.with_suffix(".pt2").stat().st_size > 0


@for_edit("f")
def test_new_columns(fork):
    """In results.csv, TensorBoard and the report."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole, resumed = fork.train_and_kill("optimizer: sgd\n", "--tensorboard", noplots=False)
    assert_same_run(whole, resumed)
    columns = {"train/grad_norm", "metrics/mAP90"}
    for row in read_results(whole):
        assert columns <= row.keys() and float(row["train/grad_norm"]) > 0
    events = EventAccumulator(str(whole))
    events.Reload()
    assert columns <= {*events.Tags()["scalars"]}
    report = (whole / "report.html").read_text()
    assert "mAP90" in report
