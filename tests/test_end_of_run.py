"""The end of a run: no name, plot or disk turns a finished training into an error."""

import errno
import html
import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from conftest import (
    bitwise_equal,
    load_state,
    resume_train,
    run_train,
    without_short_run_warnings,
    write_tiny,
)

import utils.report
import utils.run_plots
import val
from utils.errors import UserError

PICTURES = ("lr.png", "train_batch.jpg", "results.png", "val_batch.jpg", "report.html")
NAMES = [
    "$10_$20",
    "$\\nothing{$",
    "x_^{",
    "<b>&amp;'\"",
    "_hidden",
    "a\nb\tc",
    "C:\\new\\table",
    "x" * 300,
    "100% {x!r:%s}",
    "\u202eabc\u2028d",
    "\x01\x7f",
    "кошка",
    "قطة",
    "חתול",
    "e\u0301\u20dd",
]


def stderr_lines(capsys: pytest.CaptureFixture) -> list[str]:
    return without_short_run_warnings(capsys.readouterr().err).splitlines()


def test_class_names_of_any_characters(tmp_path, capsys, recwarn):
    data = write_tiny(tmp_path / "tiny")
    for i, file in enumerate(sorted((tmp_path / "tiny" / "labels").glob("*/*.txt"))):
        file.write_text(f"{i % len(NAMES)} .5 .5 .5 .5\n{(i + 1) % len(NAMES)} .3 .3 .2 .2\n")
    data.write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": NAMES}))
    assert run_train(data=data, epochs=1, project=tmp_path) == 0
    run_dir = tmp_path / "exp"
    command = ["--weights", run_dir / "weights" / "best.pt", "--device", "cpu"]
    command += ["--project", tmp_path / "val"]
    assert val.main([*map(str, command)]) == 0
    assert stderr_lines(capsys) == []
    assert [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)] == []
    assert all((run_dir / name).stat().st_size for name in PICTURES)
    report = (run_dir / "report.html").read_text(encoding="utf-8")
    assert all(html.escape(name) in report for name in NAMES)
    assert load_state(run_dir)["progress"]["finished"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8")
def test_image_name_that_is_not_utf8(tmp_path, capsys):
    data = write_tiny(tmp_path / "tiny")
    for kind, suffix in (("images", ".png"), ("labels", ".txt")):
        folder = tmp_path / "tiny" / kind / "val"
        (folder / f"0{suffix}").rename(folder / (os.fsdecode(b"caf\xe9 <#'%>") + suffix))
    assert run_train(data=data, epochs=1, project=tmp_path) == 0
    report = (tmp_path / "exp" / "report.html").read_text(encoding="utf-8")
    assert r"caf\udce9 &lt;#&#x27;%&gt;.png" in report
    assert resume_train(tmp_path / "exp") == 2
    assert "this run finished after 1 epoch" in capsys.readouterr().err


def test_data_directory_and_run_name_of_any_characters(tmp_path):
    folder = tmp_path / "a $b_$ <i> #1%20 'c'"
    data = write_tiny(folder, train=4, val=2)
    assert run_train(data=data, epochs=1, project=folder, name="$x_$ <run> é") == 0
    run_dir = folder / "$x_$ <run> é"
    assert "<title>$x_$ &lt;run&gt; é</title>" in (run_dir / "report.html").read_text("utf-8")
    assert load_state(run_dir)["progress"]["finished"]


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory) -> Path:
    """A dataset `tiny` and a run `exp` on it with all plots."""
    folder = tmp_path_factory.mktemp("complete")
    data = write_tiny(folder / "tiny", train=4, val=2)
    assert run_train(data=data, epochs=1, project=folder) == 0
    return folder


@pytest.mark.parametrize(
    ("function", "file", "error", "reason"),
    [
        ("draw_results", "results.png", ValueError("a bug"), "ValueError: a bug ("),
        ("draw_plan", "lr.png", MemoryError(), "out of memory"),
        (
            "draw_predictions",
            "val_batch.jpg",
            OSError(errno.ENOSPC, "No space left on device", "val_batch.jpg"),
            "val_batch.jpg: No space left on device",
        ),
        ("write_report", "report.html", UserError("0.png: cannot be read"), "0.png: cannot be"),
    ],
)
def test_a_picture_that_fails_is_a_warning_and_made_at_resume(
    function, file, error, reason, complete_run, tmp_path, monkeypatch, capsys
):
    def fail(*_: object) -> None:
        raise error

    run_dir = tmp_path / "exp"
    with monkeypatch.context() as patch:
        patch.setattr(utils.run_plots, function, fail)
        data = complete_run / "tiny" / "data.yaml"
        assert run_train(data=data, epochs=1, project=tmp_path) == 0
    warning, *rest = stderr_lines(capsys)
    assert warning.startswith(f"{run_dir / file}: cannot be made: {reason}")
    assert ("test_end_of_run.py, line " in warning) == isinstance(error, ValueError)
    state = load_state(run_dir)
    assert bitwise_equal(state["ema"], load_state(complete_run / "exp")["ema"])
    if function == "draw_plan":  # drawn before the training
        assert state["progress"]["finished"] and rest == []
        return
    assert not state["progress"]["finished"] and not (run_dir / file).exists()
    assert rest == [f"{run_dir}: training finished; --resume makes only what is missing"]
    assert resume_train(run_dir) == 0
    assert load_state(run_dir)["progress"]["finished"] and (run_dir / file).exists()
    assert bitwise_equal(load_state(run_dir)["ema"], state["ema"])


def test_a_section_that_fails_costs_only_itself(complete_run, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(utils.report, "draw_confusion", fail)
    assert run_train(data=complete_run / "tiny" / "data.yaml", epochs=1, project=tmp_path) == 0
    path = tmp_path / "exp" / "report.html"
    warning = stderr_lines(capsys)[0]
    assert warning.startswith(f"{path}: Confusion matrix (confidence > 0.25): cannot be made: Zero")
    report = path.read_text("utf-8")
    assert "Confusion matrix" not in report and "Hyperparameters" in report


def test_metrics_json_of_a_class_without_boxes_is_json(tmp_path):
    data = write_tiny(tmp_path / "tiny", train=4, val=2)
    data.write_text(data.read_text().replace("'class1'", "'class1', 'never'"))
    assert run_train(data=data, epochs=1, noplots=True, project=tmp_path) == 0
    command = ["--weights", tmp_path / "exp" / "weights" / "best.pt", "--device", "cpu"]
    assert val.main([*map(str, command), "--project", str(tmp_path / "val")]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "val" / "exp" / "metrics.json").read_text()
    rows = json.loads(text, parse_constant=refuse)["classes"]
    assert rows[2]["class"] == "never" and rows[2]["mAP50"] is None
