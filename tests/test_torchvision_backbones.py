"""torchvision's classifiers under our neck and head: the maps are theirs, their weights are taken, and such a model trains."""

from pathlib import Path

import pytest
import torch
from conftest import write_tiny
from torchvision.models import get_model, get_model_weights

import detect
import export
import train
from models import build_model, load

QUICK = ["--imgsz", "64", "--batch-size", "4", "--epochs", "2", "--device", "cpu", "--noplots"]
STAGES = {
    "resnet18": lambda m, x: (
        y8 := m.layer2(m.layer1(m.maxpool(m.relu(m.bn1(m.conv1(x)))))),
        y16 := m.layer3(y8),
        m.layer4(y16),
    ),
    "mobilenet_v3_small": lambda m, x: (
        y8 := m.features[:4](x),
        y16 := m.features[4:9](y8),
        m.features[9:](y16),
    ),
    "convnext_tiny": lambda m, x: (
        y8 := m.features[:4](x),
        y16 := m.features[4:6](y8),
        m.features[6:](y16),
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_maps_are_what_its_stages_give(name):
    torch.manual_seed(0)
    model = build_model("yolo-n", 3, f"torchvision/{name}").eval()
    classifier = get_model(name, weights=None).eval()
    classifier.load_state_dict(model.backbone.features.state_dict(), strict=False)
    images = torch.rand(2, 3, 96, 64)
    mean, deviation = (
        torch.tensor([0.485, 0.456, 0.406]),
        torch.tensor([0.229, 0.224, 0.225]),
    )  # as torchvision documents
    normal = (images - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        got, expected = model.backbone.features(normal), STAGES[name](classifier, normal)
        maps = model.backbone(images)
    for (_, a), b in zip(got.items(), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert [tuple(m.shape) for m in maps] == [(2, 64, 12, 8), (2, 128, 6, 4), (2, 256, 3, 2)]
    for convolve, (_, map_), out in zip(model.backbone.to_neck, got.items(), maps, strict=True):
        with torch.no_grad():
            assert torch.allclose(convolve(map_), out, atol=1e-5)


def test_training_with_pretrained_weights(tmp_path, monkeypatch, capsys):
    """A file with random weights where torch would have downloaded the trained ones."""
    url = get_model_weights("mobilenet_v3_small").DEFAULT.url
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(7)
    saved = get_model("mobilenet_v3_small", weights=None).state_dict()
    torch.save(saved, tmp_path / "hub" / "checkpoints" / Path(url).name)
    data = write_tiny(tmp_path / "tiny")
    options = [
        "--backbone",
        "torchvision/mobilenet_v3_small",
        "--pretrained",
        "--freeze",
        "backbone",
    ]
    assert train.main(["--data", str(data), *QUICK, *options, "--project", str(tmp_path)]) == 0
    model = load(tmp_path / "exp" / "weights" / "best.pt")
    mine = model.backbone.features.state_dict()
    assert (
        f"--pretrained: {len(mine)} of the model's {len(mine)} tensors taken"
        in capsys.readouterr().out
    )
    assert all(torch.equal(value, saved[key]) for key, value in mine.items())  # it was frozen
    pictures = [
        "--source",
        str(data.parent / "images" / "val"),
        "--device",
        "cpu",
        "--project",
        str(tmp_path / "found"),
    ]
    best = ["--weights", str(tmp_path / "exp" / "weights" / "best.pt")]
    assert detect.main([*best, *pictures]) == 0
    assert export.main([*best, "--format", "torch_export", "--imgsz", "64"]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--backbone", "torchvision/vit_b_16"],
            "--backbone torchvision/vit_b_16: has no feature maps at strides 8, 16 and 32",
        ),
        (
            ["--backbone", "torchvision/swin_t"],
            "--backbone torchvision/swin_t: has no feature maps",
        ),
        (["--backbone", "resnet18"], "--backbone resnet18: unknown; known are torchvision/alexnet"),
        (
            [
                "--backbone",
                "torchvision/resnet18",
                "--model",
                "torchvision/ssdlite320_mobilenet_v3_large",
            ],
            "has its own",
        ),
        (["--pretrained"], "--pretrained: is for --backbone torchvision/NAME"),
    ],
)
def test_mistakes(options, says, tmp_path, capsys):
    data = write_tiny(tmp_path / "tiny")
    assert (
        train.main(["--data", str(data), *QUICK, *options, "--project", str(tmp_path / "runs")])
        == 2
    )
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()
