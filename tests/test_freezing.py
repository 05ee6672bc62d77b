"""`--freeze`: frozen modules stay bitwise identical during training, and the others learn."""

import pytest
import torch
from conftest import load_state, write_tiny

import train
from models import build_model
from models.freezing import freeze

ARGS = ["--imgsz", "64", "--batch-size", "4", "--epochs", "2", "--device", "cpu", "--noplots"]
NORM_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(
    ("spec", "frozen"),
    [
        ("backbone", ["backbone."]),
        ("2", ["backbone.stem", "backbone.stage8"]),
        ("5", ["backbone.", "neck.up16."]),
    ],
)
def test_freeze_keeps_modules_unchanged_in_training(spec, frozen, tmp_path):
    data = write_tiny(tmp_path / "tiny")
    args = ["--data", str(data), *ARGS, "--project", str(tmp_path)]
    assert train.main([*args, "--name", "first"]) == 0
    start = load_state(tmp_path / "first", "best.pt")["ema"]["model"]
    best = str(tmp_path / "first" / "weights" / "best.pt")
    assert train.main([*args, "--name", "second", "--freeze", spec, "--weights", best]) == 0
    end = load_state(tmp_path / "second")
    for key, value in end["model"].items():
        is_frozen = key.startswith(tuple(frozen))
        if is_frozen or not key.endswith(NORM_STATISTICS):
            assert torch.equal(value, start[key]) == is_frozen, key
        if is_frozen:
            assert torch.equal(end["ema"]["model"][key], start[key]), key
    assert len(end["optimizer"]["state"]) < len(
        load_state(tmp_path / "first")["optimizer"]["state"]
    )


def test_freeze_modules_of_torchvision_models():
    model = build_model("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", 2)
    layers = [*model.detector.backbone.body.children()]
    assert freeze(model, "3") == layers[:3] and model.freezable_layers() == layers
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", 2)
    assert freeze(model, "backbone") == [model.detector.backbone]
    model = build_model("yolo-n", 2, "torchvision/resnet18")
    (features,) = freeze(model, "backbone")
    assert features is model.backbone.features
    assert not any(p.requires_grad for p in features.parameters())
    assert all(p.requires_grad for p in model.backbone.projections.parameters())
    assert model.freezable_layers()[:2] == [features.conv1, features.bn1]
    model = build_model("yolo-n", 2, "torchvision/mobilenet_v3_small")
    blocks = [*model.backbone.features.features.children()]
    assert freeze(model, "2") == blocks[:2]
    assert model.freezable_layers() == [*blocks, *model.neck.children()]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("99", "--freeze 99: the model has 10 layers before the head (allowed: backbone, or 1 to"),
        ("0", "--freeze 0: `--freeze N` freezes the first N layers, at least 1"),
        ("neck", "'neck'"),
    ],
)
def test_freeze_error_messages(spec, message, tmp_path, capsys):
    data = write_tiny(tmp_path / "tiny")
    args = ["--data", str(data), *ARGS, "--freeze", spec, "--project", str(tmp_path / "runs")]
    assert train.main(args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()
