"""The README's commands as they stand there, in a fresh copy of the repository: train, val, detect, export, and the others."""

import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from conftest import ROOT, weights, write_tiny

README = (ROOT / "README.md").read_text(encoding="utf-8")


def command(start: str) -> list[str]:
    """The README's first indented command that begins with `start`, else its first quoted one, for this interpreter."""
    lines = [
        line.partition("&& ")[2] or line for line in README.splitlines() if line.startswith("    ")
    ]
    quoted = [
        text
        for paragraph in README.split("\n\n")
        for text in paragraph.replace("\n", " ").split("`")[1::2]
    ]
    found = [text.strip() for text in (*lines, *quoted) if text.strip().startswith(start)]
    words = shlex.split(found[0])
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What a clone has, and nothing that was made since."""
    folder = tmp_path_factory.mktemp("clone") / "repository"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # a checkout without git
        ignored = shutil.ignore_patterns("runs", "datasets", "__pycache__", ".*")
        shutil.copytree(ROOT, folder, ignore=ignored)
    for file in filter(None, listed.stdout.split("\0")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


def run(clone: Path, words: list[str]) -> str:
    done = subprocess.run(words, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def test_train_val_detect_export(clone):
    """Some minutes: the first command of all, which makes the built-in data, and learns from it."""
    said = run(clone, command("python train.py --hyp hyp.yaml"))
    folder = clone / "runs" / "train" / "exp"
    assert weights(folder)["best"] >= 0.70
    table = said[said.index("\nclass ") :].split("\n\n")[0].strip()

    assert table in run(clone, command("python val.py"))
    found = json.loads((clone / "runs/val/exp/metrics.json").read_text())["all"]
    with (folder / "results.csv").open() as file:
        best = max(csv.DictReader(file), key=lambda row: float(row["metrics/mAP50-95"]))
    assert found == pytest.approx({key: float(best[f"metrics/{key}"]) for key in found}, abs=1e-4)

    run(clone, command("python detect.py"))
    drawn = {path.name for path in (clone / "runs/detect/exp").iterdir()}
    assert drawn == {path.name for path in (clone / "datasets/shapes/images/val").iterdir()}

    run(clone, command("python export.py"))
    graph = onnx.load(folder / "weights" / "best.onnx")
    assert {entry.key: entry.value for entry in graph.metadata_props}["stride"] == "32"

    example = README[README.index("    from models import load") :].split("\n\n")[0]
    code = "import torch\npicture = torch.zeros(3, 90, 120)\n" + "\n".join(
        line[4:] for line in example.splitlines()
    )
    assert run(
        clone, [sys.executable, "-c", code + "\nprint(model.class_names, found['boxes'].shape)"]
    ).startswith("('disc', 'square'")
    hub = "torch.hub.load('.', 'custom', 'runs/train/exp/weights/best.pt', source='local')"
    assert "disc" in run(clone, [sys.executable, "-c", f"import torch; print({hub}.class_names)"])


def test_describe_and_convert(clone):
    tiny = write_tiny(clone / "mine", train=4, val=2)
    assert "train: 4 pictures" in run(clone, command("python -m data.describe"))
    assert (clone / "page.jpg").stat().st_size > 0
    words = command("python -m data.convert voc|coco|yolo mine/data.yaml new")
    run(clone, [word.replace("voc|coco|yolo", "coco") for word in words])
    assert (clone / "new" / "data.yaml").exists() and tiny.exists()
