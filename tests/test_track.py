"""How far a command is, where there is no terminal, and output that nobody reads."""

import json
import os
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_train, without_short_run_warnings, write_tiny
from preloaded import run_python

from utils import log, track
from utils.cli import run_cli


@pytest.fixture
def clock(monkeypatch):
    """The clock of the log, in seconds; it stands still."""
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(log, "time", fake)
    monkeypatch.setattr(track, "time", fake)
    monkeypatch.setattr(log, "_last_output", 0.0)
    return clock


def test_without_a_terminal_there_is_a_line_a_minute(clock, capsys):
    for _ in track.Track(range(200), "epoch 0/1", 300, "batch", initial=100):
        clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "epoch 0/1: batch 160/300, 1 per second, 02:20 left",
        "epoch 0/1: batch 220/300, 1 per second, 01:20 left",
        "epoch 0/1: batch 280/300, 1 per second, 00:20 left",
    ]


def test_a_line_comes_a_minute_after_any_other_output(clock, capsys):
    for i in track.Track(range(100), "epoch 0/1", 100, "batch"):
        clock.now += 1
        if i == 50:
            log.info("something")
    assert capsys.readouterr().err == ""


def test_an_item_that_takes_longer_has_a_line_with_its_values(clock, capsys):
    progress = track.Track(range(2), "validation", 2, "batch")
    for _ in progress:
        clock.now += 90
        assert progress.is_due
        progress.show(box="1.250")
        assert not progress.is_due
    assert capsys.readouterr().err.splitlines() == [
        "validation: batch 0/2, box 1.250",
        "validation: batch 1/2, 0.00556 per second, 03:00 left, box 1.250",
    ]


def test_a_command_in_a_long_lived_process_begins_a_minute(clock, capsys):
    """A notebook printed nothing for an hour, then runs a command."""
    clock.now = 3600.0
    assert run_cli("train.py", lambda: [*track.Track(range(3), "reading labels", 3, "image")]) == 0
    assert capsys.readouterr().err == ""


def test_other_processes_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setattr(log, "_is_main", False)
    for _ in track.Track(range(3), "epoch 0/1", 3, "batch"):
        clock.now += 100
    assert capsys.readouterr() == ("", "")


def test_every_part_of_a_run_has_lines_and_the_end_names_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(track, "INTERVAL", 0.0)
    data, runs = write_tiny(tmp_path, train=4, val=2), tmp_path / "runs"
    assert run_train(data=data, epochs=1, imgsz=32, cache="ram", project=runs) == 0
    stdout, stderr = capsys.readouterr()
    lines = without_short_run_warnings(stderr)
    assert "\r" not in stderr and "%|" not in stderr
    for start in (
        "reading labels: image 4/4, ",
        "reading image headers: image 4/4, ",
        "decoding: image 4/4, ",
        "epoch 0/0: batch 0/1, box ",
        "validation: batch 1/1, ",
    ):
        assert any(line.startswith(start) for line in lines.splitlines()), (start, stderr)
    report = runs / "exp" / "report.html"
    assert stdout.splitlines()[-1] == f"report: {report}"
    assert report.exists()


IN_A_CHILD = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import data.convert, data.describe, detect, export, train, val, utils.from_yolov5, utils.plan
for module, *arguments in json.loads(sys.argv[1]):
    pid = os.fork()
    if pid == 0:
        sys.exit(eval(module).main(arguments))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(module, status, file=sys.stderr, flush=True)
"""


def test_output_that_nobody_reads_ends_quietly(trained_run, tmp_path):
    data = write_tiny(tmp_path / "tiny", train=2, val=1)
    best = trained_run / "exp" / "weights" / "best.pt"
    (tmp_path / "yolov5.yaml").write_text("lr0: 0.01\nlrf: 0.1\nwarmup_epochs: 3.0\n")
    to = ["--project", tmp_path / "runs", "--name"]
    small = ["--imgsz", 32, "--epochs", 1, "--device", "cpu", "--noplots"]
    weights = tmp_path / "best.pt"
    weights.write_bytes(best.read_bytes())
    commands = [
        ["utils.plan"],
        ["utils.from_yolov5", tmp_path / "yolov5.yaml"],
        ["data.describe", data],
        ["data.convert", "coco", data, tmp_path / "coco"],
        ["train", "--help"],
        ["train", "--data", data, *small, *to, "train"],
        ["val", "--weights", best, "--device", "cpu", "--noplots", *to, "val"],
        ["detect", "--weights", best, "--source", tmp_path / "tiny/images/val", *to, "detect"],
        ["export", "--weights", weights, "--format", "torchscript"],
    ]
    commands = [[str(word) for word in command] for command in commands]
    reader, writer = os.pipe()
    os.close(reader)
    done = run_python(["-c", IN_A_CHILD, json.dumps(commands)], cwd=ROOT, stdout=writer)
    os.close(writer)
    stderr = without_short_run_warnings(done.stderr)
    assert stderr.splitlines() == [f"{command[0]} 0" for command in commands]
    for result in ("coco/data.yaml", "runs/train/weights/last.pt", "runs/val/metrics.json"):
        assert (tmp_path / result).exists(), result
    assert (tmp_path / "runs" / "detect" / "0.png").exists()
    assert (tmp_path / "best.torchscript").exists()


def test_an_error_that_nobody_reads_has_its_status():
    reader, writer = os.pipe()
    os.close(reader)
    command = ["-m", "utils.plan", "--hyp", "no.yaml"]
    done = run_python(command, cwd=ROOT, stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 2
