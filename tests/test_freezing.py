"""`--freeze`: what is frozen ends as it began, to the bit, and the rest learns."""

import pytest
import torch
from conftest import weights, write_tiny

import train
from models import build_model
from models.freezing import freeze, layers

QUICK = ["--imgsz", "64", "--batch-size", "4", "--epochs", "2", "--device", "cpu", "--noplots"]


@pytest.mark.parametrize(
    ("what", "frozen"),
    [
        ("backbone", ["backbone."]),
        ("2", ["backbone.stem", "backbone.stage8"]),
        ("5", ["backbone.", "neck.up16."]),
    ],
)
def test_what_is_frozen_stays(what, frozen, tmp_path):
    data = write_tiny(tmp_path / "tiny")
    arguments = ["--data", str(data), *QUICK, "--project", str(tmp_path)]
    assert train.main([*arguments, "--name", "first"]) == 0
    start = weights(tmp_path / "first", "best.pt")["average"]
    assert (
        train.main(
            [
                *arguments,
                "--name",
                "second",
                "--freeze",
                what,
                "--weights",
                str(tmp_path / "first/weights/best.pt"),
            ]
        )
        == 0
    )
    end = weights(tmp_path / "second")
    for key, value in end["model"].items():
        still = key.startswith(tuple(frozen))
        if still or not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(value, start[key]) == still, key
        if still:
            assert torch.equal(end["average"][key], start[key]), key
    assert len(end["optimizer"]["state"]) < len(weights(tmp_path / "first")["optimizer"]["state"])


def test_the_layers_of_other_models():
    model = build_model("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", 2)
    assert freeze(model, "3") == layers(model)[:3] == [*model.detector.backbone.body.children()][:3]
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", 2)
    assert freeze(model, "backbone") == [model.detector.backbone]
    model = build_model("yolo-n", 2, "torchvision/resnet18")
    (part,) = freeze(model, "backbone")
    assert part is model.backbone.features and not any(p.requires_grad for p in part.parameters())
    assert all(p.requires_grad for p in model.backbone.to_neck.parameters())
    assert layers(model)[:2] == [part.conv1, part.bn1]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("99", "--freeze 99: allowed are backbone, or 1 to 10"),
        ("0", "found '0'"),
        ("neck", "'neck'"),
    ],
)
def test_mistakes(what, says, tmp_path, capsys):
    data = write_tiny(tmp_path / "tiny")
    assert (
        train.main(
            ["--data", str(data), *QUICK, "--freeze", what, "--project", str(tmp_path / "runs")]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()
