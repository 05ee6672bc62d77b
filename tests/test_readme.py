"""The README's commands, run as written in a fresh copy of the repository."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from conftest import ROOT, load_state, write_tiny
from PIL import Image
from preloaded import run_python

from utils.metrics import METRICS

README = (ROOT / "README.md").read_text(encoding="utf-8")
README_ZH = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


def readme_command(start: str) -> list[str]:
    """Return the README's first command that begins with `start`, for this interpreter.

    Indented lines come before commands in backticks.
    """
    indented = [line for line in README.splitlines() if line.startswith("    ")]
    indented = [line.partition("&& ")[2] or line for line in indented]
    paragraphs = [paragraph.replace("\n", " ") for paragraph in README.split("\n\n")]
    quoted = [text for paragraph in paragraphs for text in paragraph.split("`")[1::2]]
    commands = [text.strip() for text in (*indented, *quoted)]
    words = shlex.split(next(text for text in commands if text.startswith(start)))
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


def readme_snippet(readme: str) -> str:
    """Return the code block that loads a detector, as it stands."""
    start = readme.index("    from hubconf import load\n")
    lines = []
    for line in readme[start:].splitlines():
        if line and not line.startswith("    "):
            break
        lines.append(line.removeprefix("    "))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What a git clone has, without what was made since."""
    directory = tmp_path_factory.mktemp("clone") / "repository"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # a checkout without git
        ignored = shutil.ignore_patterns("runs", "datasets", "__pycache__", ".*")
        shutil.copytree(ROOT, directory, ignore=ignored)
    for file in filter(None, listed.stdout.split("\0")):
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, directory / file)
    return directory


def run_in(clone: Path, words: list[str], preloaded: bool = False) -> str:
    """Run a command in `clone`, if `preloaded` in a process that has imported torch already."""
    if preloaded:
        done = run_python(words[1:], cwd=clone)
    else:
        done = subprocess.run(words, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_readme_train_val_detect_export(clone):
    """Takes minutes: the first command draws the built-in dataset and trains on it."""
    output = run_in(clone, readme_command("python train.py --hyp hyp.yaml"))
    run_dir = clone / "runs" / "train" / "exp"
    assert load_state(run_dir)["progress"]["best_map"] >= 0.80
    table = output[output.index("\nclass ") :].partition("\nreport: ")[0].strip()

    assert table in run_in(clone, readme_command("python val.py"))
    metrics = json.loads((clone / "runs/val/exp/metrics.json").read_text())["all"]
    with (run_dir / "results.csv").open() as file:
        best = max(csv.DictReader(file), key=lambda row: float(row["metrics/mAP50-95"]))
    expected = {name: float(best[f"metrics/{name}"]) for name in METRICS}
    assert {name: metrics[name] for name in METRICS} == pytest.approx(expected, abs=1e-4)

    run_in(clone, readme_command("python detect.py"))
    detected = {path.name for path in (clone / "runs/detect/exp").iterdir()}
    assert detected == {path.name for path in (clone / "datasets/shapes/images/val").iterdir()}

    run_in(clone, readme_command("python export.py"))
    graph = onnx.load(run_dir / "weights" / "best.onnx")
    assert {entry.key: entry.value for entry in graph.metadata_props}["stride"] == "32"

    output = run_in(clone, [sys.executable, "-c", readme_snippet(README)], preloaded=True)
    assert output.split()[0] in ("disc", "square", "triangle", "star", "cross")
    model = "torch.hub.load('.', 'custom', 'runs/train/exp/weights/best.pt', source='local')"
    code = f"import torch; print({model}.names)"
    assert "disc" in run_in(clone, [sys.executable, "-c", code], preloaded=True)


def test_readme_describe_and_convert(clone):
    write_tiny(clone / "mine", train=4, val=2)
    assert "train: 4 images" in run_in(
        clone, readme_command("python -m data.describe"), preloaded=True
    )
    assert (clone / "page.jpg").stat().st_size > 0
    words = readme_command("python -m data.convert voc|coco|yolo mine/data.yaml new")
    run_in(clone, [word.replace("voc|coco|yolo", "coco") for word in words], preloaded=True)
    assert (clone / "new" / "data.yaml").exists()


@pytest.mark.parametrize("readme", [README, README_ZH], ids=["en", "zh"])
def test_readme_snippet_with_another_run(readme, trained_run, tmp_path):
    """The same as in the long test above, with a small run at the paths that the README names."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "train").symlink_to(trained_run)
    image = tmp_path / "datasets" / "shapes" / "images" / "val" / "0000.jpg"
    image.parent.mkdir(parents=True)
    source = trained_run / "tiny" / "images" / "val" / "0.png"
    with Image.open(source) as original:
        original.save(image, quality=95)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_python(["-c", readme_snippet(readme)], cwd=tmp_path, env=env)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    name, score, *box = done.stdout.splitlines()[0].split()
    assert name in ("class0", "class1") and float(score) > 0.25 and len(box) == 4
