"""torchvision's detectors in our loop: training, exact resume, validation and detection."""

import json
import signal
from pathlib import Path

import pytest
import torch
from conftest import assert_same_run, few_shapes, load_state, read_results, signal_at
from torchvision.models import get_model, get_model_weights

import detect
import train
import val
from models import build_model, load
from models.torchvision_detectors import detector_names
from utils.metrics import METRICS

ARGS = ["--imgsz", 64, "--batch-size", 2, "--workers", 0, "--device", "cpu", "--noplots"]


def run(*arguments: object) -> int:
    return train.main([*map(str, arguments)])


def test_detector_names_omits_masks_and_keypoints():
    names = detector_names()
    for name in (
        "fcos_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "fasterrcnn_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large",
    ):
        assert f"torchvision/{name}" in names
    assert not any("mask" in name or "keypoint" in name for name in names)


def test_torchvision_detector_equals_torchvision_with_labels_from_zero():
    torch.manual_seed(0)
    model = build_model("torchvision/fcos_resnet50_fpn", 3)
    reference = get_model(
        "fcos_resnet50_fpn",
        weights=None,
        weights_backbone=None,
        num_classes=4,
        min_size=64,
        max_size=96,
        score_thresh=0.001,
    )
    reference.load_state_dict(model.detector.state_dict())
    images = torch.rand(2, 3, 64, 96)
    boxes = torch.tensor([[4.0, 4, 40, 50], [30, 10, 90, 60]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([0, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()},
    ]
    with pytest.raises(ValueError, match="targets"):
        model(images)
    losses = model.train()(images, targets)
    expected = reference.train()([*images], [t | {"labels": t["labels"] + 1} for t in targets])
    assert losses.keys() == expected.keys()
    for key in losses:
        assert torch.allclose(losses[key], expected[key])
    with torch.no_grad():
        detections, expected = model.eval()(images), reference.eval()([*images])
    for a, b in zip(detections, expected, strict=True):
        b = {key: value[b["labels"] > 0] for key, value in b.items()}  # 0 is the background
        assert len(a["boxes"])
        assert torch.allclose(a["boxes"], b["boxes"])
        assert torch.allclose(a["scores"], b["scores"])
        assert torch.equal(a["labels"], b["labels"] - 1)
    images_uint8 = (images * 255).round().to(torch.uint8)
    with torch.no_grad():
        assert torch.allclose(
            model(images_uint8)[0]["boxes"], model(images_uint8 / 255)[0]["boxes"]
        )


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"])
def test_torchvision_detector_training_and_exact_resume(name, tmp_path):
    data = few_shapes(tmp_path, train=4, val=2)
    hyp = tmp_path / "h.yaml"  # on a CPU, a step of Muon takes seconds with a ResNet-50
    hyp.write_text("optimizer: adamw\nweight_decay: 0.05\n")
    model_args = ["--model", f"torchvision/{name}", "--hyp", hyp, "--data", data]
    # Below 128 px a convolution with stride 2 makes the deepest map of FCOS from a single cell, and
    # there oneDNN leaves most of that kernel's bf16 gradient uninitialized.
    args = [*model_args, "--epochs", 2, *ARGS, "--imgsz", 128, "--project", tmp_path]
    assert run(*args, "--name", "whole") == 0

    with signal_at("batch", epoch=1, batch=0):  # answered after the batch
        assert run(*args, "--name", "cut") == 128 + signal.SIGTERM
    assert load_state(tmp_path / "cut")["progress"]["batch"] == 1
    assert run("--resume", tmp_path / "cut") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    results = read_results(tmp_path / "whole")
    assert any(key.startswith("train/") and float(loss) > 0 for key, loss in results[0].items())
    assert not any(key.startswith("val/") for key in results[0])  # losses in training mode only

    best = tmp_path / "whole" / "weights" / "best.pt"
    assert load(best).class_names == ("disc", "square", "triangle", "star", "cross")
    command = ["--weights", str(best), "--device", "cpu"]
    assert val.main([*command, "--noplots", "--project", str(tmp_path / "val")]) == 0
    metrics = json.loads((tmp_path / "val" / "exp" / "metrics.json").read_text())["all"]
    row = max(read_results(tmp_path / "whole"), key=lambda row: float(row["metrics/mAP50-95"]))
    expected = {key: float(row[f"metrics/{key}"]) for key in METRICS}
    assert {key: metrics[key] for key in METRICS} == pytest.approx(expected, abs=1e-4)
    source = ["--source", str(tmp_path / "val.txt"), "--project", str(tmp_path / "det")]
    assert detect.main([*command, *source]) == 0
    assert len([*(tmp_path / "det" / "exp").iterdir()]) == 2


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn"]
)
def test_torchvision_detector_losses_and_detections(name):
    torch.manual_seed(0)
    model = build_model(f"torchvision/{name}", 2).train()
    images = torch.rand(2, 3, 64, 64)
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 50]]), "labels": torch.tensor([1])}] * 2
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images.to(torch.bfloat16), targets)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.set_thresholds(0.0, 0.5)
    with torch.no_grad():
        detections = model.eval()(images)
    assert len(detections) == 2
    assert all(set(d["labels"].tolist()) <= {0, 1} for d in detections)


@pytest.mark.parametrize(
    "name",
    [
        "fcos_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "ssdlite320_mobilenet_v3_large",
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_boxes_are_float32_under_autocast(name, training):
    """As bfloat16, all coordinates above 256 would be multiples of 2 pixels."""
    torch.manual_seed(0)
    model = build_model(f"torchvision/{name}", 2).train(training)
    model.set_thresholds(0.0)
    generator = getattr(model.detector, "rpn", model.detector).anchor_generator
    calls = []
    generator.register_forward_hook(lambda module, args, output: calls.append((*args, output)))
    dtypes = set()
    modules = model.detector.backbone.modules()
    convolution = next(module for module in modules if isinstance(module, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    count = 2 if training else 1  # of a single one some maps are too small for BatchNorm
    images = torch.rand(count, 3, 32, 448, dtype=torch.bfloat16)
    targets = [{"boxes": torch.tensor([[320.0, 4, 401, 30]]), "labels": torch.tensor([1])}] * count
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        outputs = model(images, targets) if training else model(images)[0]
    assert dtypes == {torch.bfloat16}
    [(image_list, features, anchors)] = calls
    exact = generator.forward(image_list, [torch.zeros(f.shape) for f in features])
    assert anchors[0].dtype == torch.float32 and torch.equal(anchors[0], exact[0])
    if training:
        assert {loss.dtype for loss in outputs.values()} == {torch.float32}
        return
    boxes, scores = outputs["boxes"], outputs["scores"]
    assert boxes.dtype == scores.dtype == torch.float32
    large = boxes[(boxes > 256) & (boxes < 448)]
    assert (large.bfloat16().float() != large).sum() > 10


def test_torchvision_detector_load_pretrained(tmp_path, monkeypatch):
    """With random weights for 91 classes in torch's download cache, not the published ones."""
    url = get_model_weights("ssdlite320_mobilenet_v3_large").DEFAULT.url
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(5)
    saved = get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None
    ).state_dict()
    torch.save(saved, cache / Path(url).name)
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", 2)
    message = model.load_pretrained()
    current = model.detector.state_dict()
    loaded = [
        key for key, value in saved.items() if key in current and torch.equal(current[key], value)
    ]
    sizes = {name: p.numel() for name, p in model.detector.named_parameters()}
    count = sum(size for name, size in sizes.items() if name in loaded)
    assert f"loaded {count:,} of the model's {sum(sizes.values()):,} parameters" in message
    others = current.keys() - set(loaded)
    assert 0 < len(others) < 30 and all("classification_head" in key for key in others)


def test_torchvision_detector_error_messages(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    cache = tmp_path / "home" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    url = get_model_weights("ssdlite320_mobilenet_v3_large").DEFAULT.url
    (cache / Path(url).name).write_bytes(b"no tensors")
    for options, message in (
        (
            ["--model", "torchvision/resnet18"],
            "--model torchvision/resnet18: unknown model (choose from torchvision/fasterrcnn",
        ),
        (["--model", "yolo-z"], "--model yolo-z: unknown model (choose from yolo-n, yolo-s"),
        (["--weights", "DEFAULT"], "--weights DEFAULT: requires --backbone timm/NAME or"),
        (
            ["--model", "torchvision/ssdlite320_mobilenet_v3_large", "--weights", "DEFAULT"],
            "--weights DEFAULT: failed to load http",
        ),
    ):
        assert run("--data", tiny, *ARGS, "--project", tmp_path / "runs", *options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
