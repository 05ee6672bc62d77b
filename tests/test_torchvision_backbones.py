"""torchvision's classifiers as YOLO backbones: feature maps, pretrained weights, training."""

from pathlib import Path

import pytest
import torch
from conftest import write_tiny
from torchvision.models import get_model, get_model_weights

import detect
import export
import train
from models import build_model, load

ARGS = ["--imgsz", "64", "--batch-size", "4", "--epochs", "2", "--device", "cpu", "--noplots"]


def resnet_features(model, x):
    p8 = model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x))))))
    p16 = model.layer3(p8)
    return p8, p16, model.layer4(p16)


def sequential_features(end8, end16):
    """The features of a classifier whose children of `features` change the stride before these."""

    def features(model, x):
        p8 = model.features[:end8](x)
        p16 = model.features[end8:end16](p8)
        return p8, p16, model.features[end16:](p16)

    return features


REFERENCE = {
    "resnet18": resnet_features,
    "mobilenet_v3_small": sequential_features(4, 9),
    "convnext_tiny": sequential_features(4, 6),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_torchvision_backbone_feature_maps(name):
    torch.manual_seed(0)
    model = build_model("yolo-n", 3, f"torchvision/{name}").eval()
    classifier = get_model(name, weights=None).eval()
    classifier.load_state_dict(model.backbone.features.state_dict(), strict=False)
    images = torch.rand(2, 3, 96, 64)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # as torchvision documents
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    normalized = (images - mean) / std
    with torch.no_grad():
        features = [*model.backbone.features(normalized).values()]
        expected = REFERENCE[name](classifier, normalized)
        outputs = model.backbone(images)
        projected = [p(f) for p, f in zip(model.backbone.projections, features, strict=True)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(features, expected, strict=True))
    assert [tuple(o.shape) for o in outputs] == [(2, 64, 12, 8), (2, 128, 6, 4), (2, 256, 3, 2)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(projected, outputs, strict=True))


@pytest.mark.parametrize("ask", [["--weights", "DEFAULT"], ["--pretrained"]])
def test_torchvision_backbone_pretrained_training(ask, tmp_path, monkeypatch, capsys):
    """With random weights in torch's download cache instead of the published ones."""
    url = get_model_weights("mobilenet_v3_small").DEFAULT.url
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(7)
    saved = get_model("mobilenet_v3_small", weights=None).state_dict()
    torch.save(saved, tmp_path / "hub" / "checkpoints" / Path(url).name)
    data = write_tiny(tmp_path / "tiny")
    backbone = ["--backbone", "torchvision/mobilenet_v3_small", *ask]
    args = ["--data", str(data), *ARGS, *backbone, "--freeze", "backbone"]
    assert train.main([*args, "--project", str(tmp_path)]) == 0
    best = str(tmp_path / "exp" / "weights" / "best.pt")
    features = load(best).backbone.features.state_dict()
    count = sum(p.numel() for p in load(best).backbone.features.parameters())
    output = capsys.readouterr().out
    assert f"--weights DEFAULT: loaded {count:,} of the model's {count:,} parameters from" in output
    assert "hyperparameters for pretrained weights: hyp/finetune.yaml" in output
    assert all(torch.equal(value, saved[key]) for key, value in features.items())  # frozen
    images = str(data.parent / "images" / "val")
    args = ["--source", images, "--device", "cpu", "--project", str(tmp_path / "detect")]
    assert detect.main(["--weights", best, *args]) == 0
    assert export.main(["--weights", best, "--format", "torch_export", "--imgsz", "64"]) == 0


SSD = "torchvision/ssdlite320_mobilenet_v3_large"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--backbone", "torchvision/vit_b_16"],
            "--backbone torchvision/vit_b_16: has no feature maps at strides 8, 16 and 32",
        ),
        (
            ["--backbone", "torchvision/swin_t"],
            "--backbone torchvision/swin_t: has no feature maps",
        ),
        (
            ["--backbone", "resnet18"],
            "--backbone resnet18: unknown backbone (choose from timm/NAME, torchvision/alexnet",
        ),
        (
            ["--backbone", "torchvision/resnet18", "--model", SSD],
            f"--backbone torchvision/resnet18: {SSD} has its own backbone (allowed: yolo-n",
        ),
        (["--pretrained"], "--weights DEFAULT: requires --backbone timm/NAME or torchvision/NAME"),
    ],
)
def test_torchvision_backbone_error_messages(options, message, tmp_path, capsys):
    data = write_tiny(tmp_path / "tiny")
    args = ["--data", str(data), *ARGS, *options, "--project", str(tmp_path / "runs")]
    assert train.main(args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()
