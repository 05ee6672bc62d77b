"""val.py as a user starts it: the figures are those of training, and its files say the same to other tools."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import read_results
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import val
from models import load
from utils.confusion import confusion_matrix

ROOT = Path(__file__).parents[1]


def coco_form(folder: Path) -> tuple[Path, Path]:
    """The pictures of val with a COCO json whose ids are no places, and a data.yaml for it.

    The ids are in the places' order, in which pycocotools takes pictures whose detections have the same score: bf16 gives many.
    """
    pictures = sorted((folder / "tiny" / "images" / "val").glob("*.png"))
    content = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "class0"}, {"id": 40, "name": "class1"}],
    }
    for i, picture in enumerate(pictures):
        width, height = Image.open(picture).size
        content["images"].append(
            {"id": 500 + 3 * i, "file_name": picture.name, "width": width, "height": height}
        )
        for line in (
            (folder / "tiny" / "labels" / "val" / f"{picture.stem}.txt").read_text().splitlines()
        ):
            label, cx, cy, w, h = map(float, line.split())
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            content["annotations"].append({
                "id": len(content["annotations"]) + 1, "image_id": 500 + 3 * i, "category_id": (7, 40)[int(label)],
                "bbox": box, "area": box[2] * box[3], "iscrowd": 0,
            })  # fmt: skip
    truth, data = folder / "val.json", folder / "coco.yaml"
    truth.write_text(json.dumps(content))
    source = {"annotations": "val.json", "images": "tiny/images/val"}
    data.write_text(yaml.safe_dump({"path": ".", "train": source, "val": source, "test": source}))
    return truth, data


def test_the_figures_are_those_of_training(trained):
    command = [sys.executable, ROOT / "val.py", "--weights", trained / "exp" / "weights" / "best.pt", "--device", "cpu",
               "--project", trained / "val"]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=trained)
    assert done.returncode == 0, done.stderr
    best = max(read_results(trained / "exp"), key=lambda row: float(row["metrics/mAP50-95"]))
    found = json.loads((trained / "val" / "exp" / "metrics.json").read_text())
    assert found["all"] == pytest.approx(
        {key: float(best[f"metrics/{key}"]) for key in found["all"]}, abs=1e-4
    )
    assert found["all"]["mAP50"] > 0.1
    assert [row["class"] for row in found["classes"]] == ["class0", "class1"]
    for word in ("class0", "class1", "preprocess", "inference", "NMS", str(Path("val") / "exp")):
        assert word in done.stdout
    for picture in ("PR_curve.png", "F1_curve.png", "confusion_matrix.png"):
        with Image.open(trained / "val" / "exp" / picture) as image:
            assert min(image.size) > 300
    assert not (trained / "val" / "exp" / "predictions.json").exists()


def test_the_predictions_are_worth_the_same_to_pycocotools(trained):
    truth, data = coco_form(trained)
    weights = trained / "exp" / "weights" / "best.pt"
    arguments = ["--weights", weights, "--data", data, "--split", "test", "--device", "cpu", "--save-json", "--noplots",
                 "--batch-size", 3, "--project", trained / "json", "--name", "mine"]  # fmt: skip
    assert val.main([*map(str, arguments)]) == 0
    folder = trained / "json" / "mine"
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.json", "predictions.json"]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(truth))
        evaluation = COCOeval(gt, gt.loadRes(str(folder / "predictions.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    found = json.loads((folder / "metrics.json").read_text())["all"]
    assert found["mAP50-95"] == pytest.approx(evaluation.stats[0], abs=1e-4)
    best = max(read_results(trained / "exp"), key=lambda row: float(row["metrics/mAP50-95"]))
    assert found["mAP50-95"] == pytest.approx(float(best["metrics/mAP50-95"]), abs=1e-4)


def test_higher_conf_leaves_fewer_predictions_and_lower_iou_too(trained):
    counts = []
    for i, options in enumerate(([], ["--conf", "0.3"], ["--iou", "0.1"])):
        arguments = [
            "--weights",
            str(trained / "exp" / "weights" / "best.pt"),
            "--device",
            "cpu",
            "--save-json",
            "--noplots",
        ]
        assert (
            val.main([*arguments, *options, "--project", str(trained / "conf"), "--name", f"{i}"])
            == 0
        )
        predictions = json.loads((trained / "conf" / f"{i}" / "predictions.json").read_text())
        counts.append(len(predictions))
        if options[:1] == ["--conf"]:
            assert all(row["score"] > 0.3 for row in predictions)
    assert counts[0] > counts[1] and counts[0] > counts[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--weights"),
        (["--weights", "no.pt"], "no.pt: cannot be read: No such file"),
        (["--weights", "BEST", "--conf", "1.5"], "--conf: found '1.5', need a number from 0 to 1"),
        (["--weights", "BEST", "--split", "test"], "test: the data file has no key 'test'"),
        (["--weights", "BEST", "--data", "shapes.yaml"], "has the classes ['disc', "),
        (["--weights", "HALF"], "holds no detector that this version can build"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_folder(
    options, message, trained, capsys, monkeypatch
):
    monkeypatch.chdir(trained)
    half = trained / "half.pt"
    state = torch.load(trained / "exp" / "weights" / "best.pt", weights_only=True)
    torch.save(state | {"average": {}}, half)
    paths = {"BEST": str(trained / "exp" / "weights" / "best.pt"), "HALF": str(half)}
    assert val.main([paths.get(option, option) for option in options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("val.py: ")
    assert not (trained / "runs").exists()


def test_a_model_in_three_lines(trained):
    model = load(trained / "exp" / "weights" / "best.pt")
    assert model.class_names == ("class0", "class1") and model.imgsz == 64 and not model.training
    picture = torch.from_numpy(
        np.array(Image.open(trained / "tiny" / "images" / "val" / "0.png"))
    ).permute(2, 0, 1)
    (found,) = model([picture])
    assert (
        found["boxes"].shape == (len(found["scores"]), 4)
        and len(found["scores"]) == len(found["labels"]) > 0
    )


def test_confusion_matrix():
    truth = {
        "images": [{"id": 0}, {"id": 1}],
        "categories": [{"id": 0}, {"id": 1}],
        "annotations": [
            {"image_id": 0, "category_id": 0, "bbox": [0, 0, 10, 10], "iscrowd": 0},
            {"image_id": 0, "category_id": 1, "bbox": [20, 0, 10, 10], "iscrowd": 0},
            {"image_id": 0, "category_id": 1, "bbox": [50, 50, 10, 10], "iscrowd": 0},
            {"image_id": 1, "category_id": 0, "bbox": [0, 0, 100, 100], "iscrowd": 1},
        ],
    }
    detections = np.array([
        [0, 0, 0, 10, 9, 0.9, 0],     # finds the first
        [0, 0, 0, 10, 10, 0.5, 1],    # overlaps it more, and is matched before: a 1 where a 0 is
        [0, 21, 0, 10, 10, 0.8, 0],   # takes the second for a 0
        [0, 50, 50, 10, 10, 0.2, 1],  # too low a score: the third is missed
        [0, 80, 80, 10, 10, 0.6, 1],  # nothing is there
        [1, 10, 10, 10, 10, 0.6, 1],  # within a crowd: not counted
    ])  # fmt: skip
    assert confusion_matrix(truth, detections).tolist() == [[0, 1, 1], [1, 0, 1], [0, 1, 0]]
    assert confusion_matrix(truth, detections[:0]).tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 0]]


def test_ctrl_c_ends_it_without_a_word(trained, tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(val, "detect", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        weights = trained / "exp" / "weights" / "best.pt"
        assert (
            val.main(
                ["--weights", str(weights), "--device", "cpu", "--project", str(tmp_path / "val")]
            )
            == 130
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr() == ("", "") and not (tmp_path / "val").exists()
