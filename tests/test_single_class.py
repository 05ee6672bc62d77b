"""`--single-cls` trains all classes as one, and val.py and `--resume` know that the run did."""

import json
import signal

import numpy as np
import pytest
from conftest import (
    assert_one_line_error,
    assert_same_run,
    load_state,
    resume_train,
    run_train,
    signal_at,
)

import val
from data.config import read_data_config
from data.formats import read_split
from predictor import load


@pytest.fixture
def one_class(tiny):
    """The same dataset with the class 0 in all label files."""
    for file in (tiny.parent / "labels").rglob("*.txt"):
        lines = file.read_text().splitlines()
        file.write_text("".join(f"0 {line.split(maxsplit=1)[1]}\n" for line in lines))
    data = tiny.with_name("one.yaml")
    data.write_text("train: images/train\nval: images/val\nnames: [object]\n")
    return data


def test_single_class_run_equals_a_dataset_of_one_class(tiny, tmp_path, capsys, request):
    options = {"epochs": 2, "noplots": True, "batch_size": 6, "project": tmp_path}
    with signal_at("batch", epoch=1):
        status = run_train(**options, data=tiny, single_cls=True, name="single")
    assert status == 128 + signal.SIGTERM
    assert resume_train(tmp_path / "single") == 0
    weights = tmp_path / "single" / "weights" / "best.pt"
    assert load(weights, device="cpu").names == ("object",)
    command = ["--weights", weights, "--device", "cpu", "--noplots", "--project", tmp_path / "val"]
    assert val.main([*map(str, command)]) == 0
    metrics = json.loads((tmp_path / "val" / "exp" / "metrics.json").read_text())
    assert [row["class"] for row in metrics["classes"]] == ["object"]
    best = load_state(tmp_path / "single", "best.pt")["progress"]["best_map"]
    assert metrics["all"]["mAP50-95"] == pytest.approx(best, abs=1e-6)

    one_class = request.getfixturevalue("one_class")
    assert run_train(**options, data=one_class, name="one") == 0
    assert_same_run(tmp_path / "single", tmp_path / "one")

    capsys.readouterr()
    assert resume_train(tmp_path / "one", single_cls=True) == 2
    assert_one_line_error(
        capsys.readouterr().err, "--single-cls: conflicts with", "started without it"
    )


def test_single_class_leaves_one_of_boxes_that_differ_in_class(tiny):
    label = sorted((tiny.parent / "labels" / "train").iterdir())[0]
    label.write_text("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n1 0.25 0.5 0.2 0.2\n")
    data = read_split(read_data_config(tiny), "train")
    single = data.as_single_class()
    assert single.class_names == ("object",) and not single.labels.any()
    assert len(single.boxes) == len(data.boxes) - 1
    assert np.diff(single.offsets)[0] == 2 and np.diff(data.offsets)[0] == 3
    assert (single.boxes[:2] == data.boxes[[0, 2]]).all()
    assert single.files == data.files and single.offsets[-1] == len(single.boxes)
