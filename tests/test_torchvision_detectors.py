"""torchvision's detectors in our loop: they train, resume to the bit, validate and predict through the same scripts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import few_shapes, rows, same, weights
from torchvision.models import get_model, get_model_weights

import detect
import train
import val
from models import build_model, load
from models.torchvision_detectors import detector_names

ROOT = Path(__file__).parents[1]
QUICK = ["--imgsz", 64, "--batch-size", 2, "--workers", 0, "--device", "cpu", "--noplots"]


def run(*arguments: object) -> int:
    return train.main([*map(str, arguments)])


def test_which_there_are():
    names = detector_names()
    for name in (
        "fcos_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "fasterrcnn_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large",
    ):
        assert f"torchvision/{name}" in names
    assert not any("mask" in name or "keypoint" in name for name in names)


def test_it_is_torchvisions_with_labels_from_zero():
    torch.manual_seed(0)
    mine = build_model("torchvision/fcos_resnet50_fpn", 3)
    theirs = get_model("fcos_resnet50_fpn", weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=96,
                       score_thresh=0.001)  # fmt: skip
    theirs.load_state_dict(mine.detector.state_dict())
    images = torch.rand(2, 3, 64, 96)
    boxes = torch.tensor([[4.0, 4, 40, 50], [30, 10, 90, 60]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()},
    ]
    with pytest.raises(ValueError, match="targets"):
        mine(images)
    losses = mine.train()(images, targets)
    expected = theirs.train()([*images], [t | {"labels": t["labels"] + 1} for t in targets])
    assert losses.keys() == expected.keys()
    for key in losses:
        assert torch.allclose(losses[key], expected[key])
    with torch.no_grad():
        found, expected = mine.eval()(images), theirs.eval()([*images])
    for a, b in zip(found, expected, strict=True):
        b = {key: value[b["labels"] > 0] for key, value in b.items()}  # 0 is the background
        assert (
            len(a["boxes"])
            and torch.allclose(a["boxes"], b["boxes"])
            and torch.allclose(a["scores"], b["scores"])
        )
        assert torch.equal(a["labels"], b["labels"] - 1)
    grey = (images * 255).round().to(torch.uint8)
    with torch.no_grad():
        assert torch.allclose(mine(grey)[0]["boxes"], mine(grey / 255)[0]["boxes"])


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"])
def test_training_and_resuming_to_the_bit(name, tmp_path, monkeypatch):
    data = few_shapes(tmp_path, train=4, val=2)
    hyp = tmp_path / "h.yaml"  # Muon takes seconds for a step of a ResNet-50 on a processor
    hyp.write_text("optimizer: adamw\nweight_decay: 0.05\n")
    arguments = [
        "--model",
        f"torchvision/{name}",
        "--hyp",
        hyp,
        "--data",
        data,
        "--epochs",
        2,
        *QUICK,
    ]
    # Below 128 px the deepest map of FCOS is made of one cell by a convolution of stride 2: there oneDNN leaves most of that
    # filter's gradient in bf16 as the memory was.
    arguments += ["--imgsz", 128]
    assert run(*arguments, "--project", tmp_path, "--name", "whole") == 0

    seed, sent = train.seed_everything, []

    def seeded(*place):
        seed(*place)
        if place[1:3] == (1, 0) and not sent:  # stopped in the second epoch, after its first batch
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "seed_everything", seeded)
    assert run(*arguments, "--project", tmp_path, "--name", "cut") == 128 + signal.SIGTERM
    assert weights(tmp_path / "cut")["batch"] == 1
    assert run("--resume", tmp_path / "cut") == 0
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for key in a.keys() - {"args", "rows"}:
        assert same(a[key], b[key]), key
    strip = [
        [row | {"seconds": ""} for row in rows(tmp_path / folder)] for folder in ("whole", "cut")
    ]
    assert strip[0] == strip[1]
    assert any(key.startswith("train/") and float(value) > 0 for key, value in strip[0][0].items())

    best = tmp_path / "whole" / "weights" / "best.pt"
    assert load(best).names == ("disc", "square", "triangle", "star", "cross")
    assert (
        val.main(
            [
                "--weights",
                str(best),
                "--device",
                "cpu",
                "--noplots",
                "--project",
                str(tmp_path / "val"),
            ]
        )
        == 0
    )
    found = json.loads((tmp_path / "val" / "exp" / "metrics.json").read_text())["all"]
    row = max(rows(tmp_path / "whole"), key=lambda row: float(row["metrics/mAP50-95"]))
    assert found == pytest.approx({key: float(row[f"metrics/{key}"]) for key in found}, abs=1e-4)
    pictures = tmp_path / "val.txt"
    assert (
        detect.main(
            [
                *map(
                    str,
                    [
                        "--weights",
                        best,
                        "--source",
                        pictures,
                        "--device",
                        "cpu",
                        "--project",
                        tmp_path / "det",
                    ],
                )
            ]
        )
        == 0
    )
    assert len([*(tmp_path / "det" / "exp").iterdir()]) == 2


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn"]
)
def test_the_others_learn_and_detect(name):
    torch.manual_seed(0)
    model = build_model(f"torchvision/{name}", 2).train()
    images = torch.rand(2, 3, 64, 64)
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 50]]), "labels": torch.tensor([1])}] * 2
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images.to(torch.bfloat16), targets)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total) and any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()
    )
    model.set_thresholds(0.0, 0.5)
    with torch.no_grad():
        found = model.eval()(images)
    assert len(found) == 2 and all(set(f["labels"].tolist()) <= {0, 1} for f in found)


def test_torchvisions_own_weights(tmp_path, monkeypatch):
    """A file with random weights for 91 classes, where torch would have downloaded the trained ones."""
    url = get_model_weights("ssdlite320_mobilenet_v3_large").DEFAULT.url
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(5)
    saved = get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None
    ).state_dict()
    torch.save(saved, folder / Path(url).name)
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", 2)
    said = model.load_pretrained()
    mine = model.detector.state_dict()
    taken = [key for key, value in saved.items() if key in mine and torch.equal(mine[key], value)]
    assert f"{len(taken)} of the model's {len(mine)} tensors taken" in said
    left = [key for key in mine if key not in taken]
    assert 0 < len(left) < 30 and all("classification_head" in key for key in left)


def test_mistakes(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "code.pth").write_bytes(b"no tensors")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = get_model_weights("ssdlite320_mobilenet_v3_large").DEFAULT.url
    (folder / Path(url).name).write_bytes(b"no tensors")
    for options, message in (
        (
            ["--model", "torchvision/resnet18"],
            "--model torchvision/resnet18: unknown; known are torchvision/fasterrcnn",
        ),
        (["--model", "yolo-z"], "--model yolo-z: unknown; known are yolo-n, yolo-s"),
        (["--weights", "DEFAULT"], "--weights DEFAULT: is for --model torchvision/NAME"),
        (
            ["--model", "torchvision/ssdlite320_mobilenet_v3_large", "--weights", "DEFAULT"],
            "--weights DEFAULT: http",
        ),
    ):
        assert run("--data", tiny, *QUICK, "--project", tmp_path / "runs", *options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_start_without_them_does_not_import_them():
    code = "import sys, train; sys.exit('models.torchvision_detectors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
