"""val.py as a user runs it: its metrics are those of training, its files suit other tools."""

import contextlib
import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import assert_one_line_error, read_results, run_train, write_tiny
from PIL import Image
from preloaded import run_python
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Subset

import val
from data.dataset import ValSet, collate
from data.formats import Annotations
from models import load
from utils.confusion import confusion_matrix, match_detections
from utils.ground_truth import GroundTruth
from utils.inference import run_inference
from utils.metrics import METRICS

ROOT = Path(__file__).parents[1]


def best_weights(trained_run: Path) -> Path:
    return trained_run / "exp" / "weights" / "best.pt"


def run_val(trained_run: Path, *options: object) -> None:
    command = ["--weights", best_weights(trained_run), "--device", "cpu", *options]
    assert val.main([str(word) for word in command]) == 0


def best_epoch(trained_run: Path) -> dict[str, str]:
    """Return the row of results.csv with the highest mAP50-95."""
    return max(read_results(trained_run / "exp"), key=lambda row: float(row["metrics/mAP50-95"]))


def write_coco(directory: Path) -> tuple[Path, Path]:
    """Write the val split as a COCO json whose ids are not indices, and a data.yaml for it.

    The ids are in the order of the files, because pycocotools breaks ties between scores by the
    order of the ids, and bf16 has many ties.
    """
    images = sorted((directory / "tiny" / "images" / "val").glob("*.png"))
    coco = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "class0"}, {"id": 40, "name": "class1"}],
    }
    for i, file in enumerate(images):
        width, height = Image.open(file).size
        image_id = 500 + 3 * i
        coco["images"].append(
            {"id": image_id, "file_name": file.name, "width": width, "height": height}
        )
        labels = directory / "tiny" / "labels" / "val" / f"{file.stem}.txt"
        for line in labels.read_text().splitlines():
            label, cx, cy, w, h = map(float, line.split())
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": (7, 40)[int(label)],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    annotations, data = directory / "val.json", directory / "coco.yaml"
    annotations.write_text(json.dumps(coco))
    source = {"annotations": "val.json", "images": "tiny/images/val"}
    data.write_text(yaml.safe_dump({"path": ".", "train": source, "val": source, "test": source}))
    return annotations, data


def test_val_metrics_match_training(trained_run):
    command = [ROOT / "val.py", "--weights", best_weights(trained_run)]
    command += ["--device", "cpu", "--project", trained_run / "val"]
    process = run_python(command, cwd=trained_run)
    assert process.returncode == 0, process.stderr
    best = best_epoch(trained_run)
    results = trained_run / "val" / "exp"
    metrics = json.loads((results / "metrics.json").read_text())
    expected = {key: float(best[f"metrics/{key}"]) for key in METRICS}
    assert {key: metrics["all"][key] for key in METRICS} == pytest.approx(expected, abs=1e-4)
    assert metrics["all"]["mAP-small"] > 0 and metrics["all"]["mAP-large"] is None
    (line,) = (line for line in process.stdout.splitlines() if line.startswith("all "))
    assert line.split()[-1] == "-"  # no large boxes in images of 80 x 64 pixels
    assert metrics["all"]["mAP50"] > 0.1
    assert [row["class"] for row in metrics["classes"]] == ["class0", "class1"]
    for word in ("class0", "class1", str(Path("val") / "exp")):
        assert word in process.stdout
    timing = next(line for line in process.stdout.splitlines() if line.startswith("ms/image"))
    for word in ("64 px", "batch size 16", "cpu", "preprocess", "inference", "NMS"):
        assert word in timing
    for name in ("PR_curve.png", "F1_curve.png", "confusion_matrix.png"):
        with Image.open(results / name) as plot:
            assert min(plot.size) > 300
    assert not (results / "predictions.json").exists()


def test_val_predictions_match_pycocotools(trained_run):
    annotations, data = write_coco(trained_run)
    run_val(
        trained_run,
        *("--data", data, "--split", "test", "--save-json", "--noplots", "--batch-size", 3),
        *("--project", trained_run / "json", "--name", "mine"),
    )
    results = trained_run / "json" / "mine"
    assert sorted(p.name for p in results.iterdir()) == ["metrics.json", "predictions.json"]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(annotations))
        evaluation = COCOeval(gt, gt.loadRes(str(results / "predictions.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = json.loads((results / "metrics.json").read_text())["all"]
    assert metrics["mAP50-95"] == pytest.approx(evaluation.stats[0], abs=1e-4)
    trained_map = float(best_epoch(trained_run)["metrics/mAP50-95"])
    assert metrics["mAP50-95"] == pytest.approx(trained_map, abs=1e-4)


def test_val_conf_and_iou_change_number_of_predictions(trained_run):
    counts = []
    for i, options in enumerate(([], ["--conf", "0.3"], ["--iou", "0.1"])):
        project = trained_run / "conf"
        run_val(
            trained_run, "--save-json", "--noplots", *options, "--project", project, "--name", i
        )
        predictions = json.loads((project / f"{i}" / "predictions.json").read_text())
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
        (["--weights", "BEST", "--split", "test"], "data.yaml: key 'test' is missing or empty"),
        (["--weights", "BEST", "--data", "shapes.yaml"], "has the classes ['disc', "),
        (["--weights", "EMPTY"], "holds no detector that this version can build"),
    ],
)
def test_val_error_is_one_line_and_creates_no_directory(
    options, message, trained_run, capsys, monkeypatch
):
    monkeypatch.chdir(trained_run)
    best, empty = best_weights(trained_run), trained_run / "empty.pt"
    state = torch.load(best, weights_only=True)
    torch.save({"format": state["format"]}, empty)
    paths = {"BEST": str(best), "EMPTY": str(empty)}
    assert val.main([paths.get(option, option) for option in options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("val.py: ")
    assert not (trained_run / "runs").exists()


def test_val_names_both_class_lists_if_they_differ(trained_run, tmp_path, capsys):
    data = tmp_path / "other.yaml"
    data.write_text(
        f"path: {trained_run}/tiny\ntrain: images/train\nval: images/val\nnames: [a, b]\n"
    )
    weights = best_weights(trained_run)
    assert val.main(["--weights", str(weights), "--data", str(data)]) == 2
    assert capsys.readouterr().err == (
        f"val.py: {data}: has the classes ['a', 'b'], but {weights} was trained on "
        "['class0', 'class1'] (they must be the same, in the same order)\n"
    )


def test_load_returns_detector_for_inference(trained_run):
    model = load(best_weights(trained_run))
    assert model.class_names == ("class0", "class1") and model.imgsz == 64 and not model.training
    file = trained_run / "tiny" / "images" / "val" / "0.png"
    image = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    (detections,) = model([image])
    k = len(detections["scores"])
    assert detections["boxes"].shape == (k, 4) and len(detections["labels"]) == k > 0


def test_confusion_matrix():
    xywh = np.float64([[0, 0, 10, 10], [20, 0, 10, 10], [50, 50, 10, 10], [0, 0, 100, 100]])
    crowd = np.array([False, False, False, True])
    labels, offsets = np.array([0, 1, 1, 0]), np.array([0, 3, 4])
    ground_truth = GroundTruth(("a", "b"), offsets, xywh, labels, crowd)
    detections = np.array(
        [
            [0, 0, 0, 10, 9, 0.9, 0],  # matches the first box, with IoU 0.9
            [0, 0, 0, 10, 10, 0.5, 1],  # IoU 1, so matched first: class 1 instead of 0
            [0, 21, 0, 10, 10, 0.8, 0],  # class 0 instead of 1
            [0, 50, 50, 10, 10, 0.2, 1],  # below the score threshold: the third box is missed
            [0, 80, 80, 10, 10, 0.6, 1],  # background
            [1, 10, 10, 10, 10, 0.6, 1],  # within a crowd: not counted
        ]
    )
    counts = confusion_matrix(match_detections(ground_truth, detections), 2)
    assert counts.tolist() == [[0, 1, 1], [1, 0, 1], [0, 1, 0]]
    counts = confusion_matrix(match_detections(ground_truth, detections[:0]), 2)
    assert counts.tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 0]]


class FixedDetector(nn.Module):
    """Returns the same detections for every image."""

    def __init__(self, boxes, scores):
        super().__init__()
        self.detections = {
            "boxes": boxes,
            "scores": scores,
            "labels": torch.zeros(len(boxes)).long(),
        }

    def forward(self, images, sizes):
        return [self.detections for _ in images]


def test_run_inference_clips_boxes_to_the_image_and_not_to_the_gray_around_it(tmp_path):
    """A sample of 128 x 128 pixels has the image, 100 x 50, enlarged to 128 x 64, at its top."""
    Image.new("RGB", (100, 50)).save(tmp_path / "0.png")
    sizes, no_boxes = np.array([[100, 50], [50, 100]]), np.zeros((0, 4), np.float32)
    data = Annotations(
        files=np.array([str(tmp_path / "0.png")] * 2),
        sizes=sizes,
        offsets=np.zeros(3, int),
        boxes=no_boxes,
        labels=np.zeros(0, int),
        crowd=np.zeros(0, bool),
        class_names=("a",),
        errors=(),
        notes=(),
    )
    loader = DataLoader(Subset(ValSet(data, 128, 32), [0]), collate_fn=collate)
    boxes = torch.tensor([[-9.0, 32, 64, 128], [96, 32, 140, 60]])
    model = FixedDetector(boxes, torch.tensor([0.75, 0.5]))
    rows = run_inference(model, loader, torch.device("cpu"), dtype=torch.float32)
    expected = [[0, 0, 25, 50, 25, 0.75, 0], [0, 75, 25, 25, 21.875, 0.5, 0]]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_run_inference_keeps_the_100_best_detections_of_an_image():
    scores = torch.linspace(1, 0, 150)
    target = {"image_id": torch.tensor(3), "size": torch.tensor([50, 50]), "scale": torch.ones(2)}
    model = FixedDetector(torch.rand(150, 4), scores)
    batch = torch.zeros(2, 3, 64, 64), [target, target | {"image_id": torch.tensor(4)}]
    rows = run_inference(model, [batch], torch.device("cpu"), dtype=torch.float32)
    assert rows[:, 0].tolist() == [3] * 100 + [4] * 100
    assert rows[:, 5].tolist() == scores[:100].double().tolist() * 2


class DeviceReads(TorchFunctionMode):
    """Counts the operations that wait for a GPU to copy its tensor."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        read = (torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__float__)
        self.count += func in read
        return func(*args, **(kwargs or {}))


def test_run_inference_copies_the_detections_of_a_batch_at_once():
    target = {"image_id": torch.tensor(3), "size": torch.tensor([50, 50]), "scale": torch.ones(2)}
    batch = torch.zeros(8, 3, 64, 64), [target] * 8
    model = FixedDetector(torch.rand(5, 4), torch.rand(5))
    with DeviceReads() as reads:
        run_inference(model, [batch, batch], torch.device("cpu"), dtype=torch.float32)
    assert reads.count == 2


def test_a_model_validated_on_400_objects_in_an_image_gives_as_many_detections(tmp_path, capsys):
    """In validation, and in detect.py and an export, which load it from the checkpoint."""
    data = write_tiny(tmp_path / "tiny", val=1)
    grid = [(x, y) for x in range(20) for y in range(20)]
    lines = [f"0 {(x + 0.5) / 20} {(y + 0.5) / 20} 0.04 0.04\n" for x, y in grid]
    (tmp_path / "tiny" / "labels" / "val" / "0.txt").write_text("".join(lines))
    assert run_train(data=data, epochs=1, noplots=True, project=tmp_path / "runs") == 0
    assert "so the 400 best detections of each image are evaluated" in capsys.readouterr().out
    for name in ("best.pt", "last.pt"):
        model = load(tmp_path / "runs" / "exp" / "weights" / name)
        assert (model.detections_per_img, model.topk_candidates) == (400, 4000)
    model.set_thresholds(0, 1)  # all are kept
    assert len(model(torch.zeros(1, 3, 96, 96))[0]["boxes"]) == 189 * 2  # of 2 classes
    assert len(model(torch.zeros(1, 3, 128, 128))[0]["boxes"]) == 400


def test_a_checkpoint_without_a_limit_has_that_of_the_model(trained_run, tmp_path):
    state = torch.load(best_weights(trained_run), weights_only=True)
    del state["detection_limit"]
    torch.save(state, tmp_path / "old.pt")
    assert load(tmp_path / "old.pt").detections_per_img == 300


def test_val_ctrl_c_exits_130_without_output(trained_run, tmp_path, monkeypatch, capsys):
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    original = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(val, "run_inference", interrupt)
        command = ["--weights", best_weights(trained_run), "--device", "cpu"]
        command += ["--project", tmp_path / "val"]
        assert val.main([str(word) for word in command]) == 130
    finally:
        signal.signal(signal.SIGINT, original)
    assert capsys.readouterr() == ("", "") and not [*(tmp_path / "val" / "exp").iterdir()]


def test_val_finds_out_at_the_start_that_it_cannot_write(
    trained_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(val, "run_inference", lambda *_: pytest.fail("has evaluated"))
    (tmp_path / "file").touch()
    command = ["--weights", best_weights(trained_run), "--device", "cpu"]
    command += ["--project", tmp_path / "file" / "val"]
    assert val.main([str(word) for word in command]) == 2
    message = f"--project {tmp_path / 'file' / 'val'}: cannot create"
    assert_one_line_error(capsys.readouterr().err, message, command="val.py")
