"""The benchmarks that need no dataset and no GPU run to their end, in small."""

import pytest
from conftest import ROOT
from preloaded import run_python

SMALL = ["--models", "yolo-n", "--device", "cpu", "--batch-size", "2", "--imgsz", "64"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("checkpoint", ["--optimizer", "muon", "--images", "4", "--rounds", "1"]),
        ("deterministic", ["--steps", "1", "--rounds", "1"]),
    ],
)
def test_benchmark_of_training_steps_runs(name, options, tmp_path):
    script = ROOT / "benchmarks" / f"{name}.py"
    done = run_python([script, *SMALL, *options], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "yolo-n" in done.stdout
