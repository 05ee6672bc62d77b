"""export.py as a user starts it: what it writes gives what the model gives, on real pictures, in each format's own runtime."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import export
from data.augment import resize
from data.images import read_image
from models import load

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    """8 real ones, (1, 3, 128, 160), 0..1."""
    folder = ROOT.parent / "shared" / "datasets" / "bccd" / "images" / "val"
    if not folder.is_dir():
        pytest.skip(f"the real images are not at {folder}")
    return [
        resize(read_image(str(file)), 128, 160)[None] / 255 for file in sorted(folder.iterdir())[:8]
    ]


def copied(trained: Path, folder: Path) -> Path:
    target = folder / "best.pt"
    target.write_bytes((trained / "exp" / "weights" / "best.pt").read_bytes())
    return target


def largest(expected: list[torch.Tensor], found: list[torch.Tensor]) -> list[float]:
    assert [a.shape for a in expected] == [b.shape for b in found]
    differences = [
        (a.float() - torch.as_tensor(b).float()).abs() for a, b in zip(expected, found, strict=True)
    ]
    return [
        float(d.max()) if d.numel() else 0.0 for d in differences
    ]  # a picture may have no detection


@torch.no_grad()
def raw(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every cell's box and scores, by the distances' definition: the mean of the softmax over 0..15, in cells."""
    p = model.head(model.neck(model.backbone(images)))
    sides = (p.box_logits.softmax(-1) * torch.arange(16.0)).sum(-1) * p.strides[:, None]
    return torch.cat(
        (p.points - sides[..., :2], p.points + sides[..., 2:]), -1
    ), p.cls_logits.sigmoid()


def test_onnx_of_any_size(trained, pictures, tmp_path):
    weights = copied(trained, tmp_path)
    done = subprocess.run(
        [sys.executable, ROOT / "export.py", "--weights", weights, "--dynamic"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "best.onnx" in done.stdout and "px" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.onnx", "best.pt"]
    session = onnxruntime.InferenceSession(tmp_path / "best.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert (json.loads(facts["names"]), facts["stride"], json.loads(facts["imgsz"])) == (
        ["class0", "class1"],
        "32",
        [64, 64],
    )
    model = load(weights)
    for images in (*pictures, torch.cat(pictures[:3]), pictures[0][..., :64, :96]):
        boxes, scores = largest(raw(model, images), session.run(None, {"images": images.numpy()}))
        assert boxes < 0.01 and scores < 1e-4


def test_onnx_with_nms(trained, pictures, tmp_path):
    weights = copied(trained, tmp_path)
    command = ["--weights", weights, "--nms", "--imgsz", 64, "--conf", 0.02, "--iou", 0.6]
    assert export.main([*map(str, command)]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "best.onnx")
    model = load(weights)
    model.set_thresholds(0.02, 0.6)
    seen = 0
    own = sorted(
        (trained / "tiny" / "images" / "val").iterdir()
    )  # in which it finds what it has learned
    for images in [*pictures, *(read_image(str(file))[None] / 255 for file in own)]:
        images = resize(images[0], 64, 64)[None]
        with torch.no_grad():
            (expected,) = model(images)
        found = session.run(None, {"images": images.numpy()})
        boxes, scores, labels = largest(
            [expected[key] for key in ("boxes", "scores", "labels")], found
        )
        assert boxes < 0.01 and scores < 1e-4 and labels == 0
        seen += len(expected["boxes"])
    assert seen > 8


@pytest.mark.parametrize("kind", ["torchscript", "torch_export"])
def test_torchs_own_formats(kind, trained, pictures, tmp_path):
    weights = copied(trained, tmp_path)
    assert export.main(["--weights", str(weights), "--format", kind, "--imgsz", "128", "160"]) == 0
    facts = {"names": "", "stride": ""}
    if kind == "torchscript":
        run = torch.jit.load(tmp_path / "best.torchscript", _extra_files=facts)
    else:
        run = torch.export.load(tmp_path / "best.pt2", extra_files=facts).module()
    assert json.loads(facts["names"]) == ["class0", "class1"] and facts["stride"] in ("32", b"32")
    model = load(weights)
    for images in pictures:
        with torch.no_grad():
            boxes, scores = largest(raw(model, images), run(images))
        assert boxes < 0.01 and scores < 1e-4


def test_half(trained, pictures, tmp_path):
    weights = copied(trained, tmp_path)
    command = ["--weights", weights, "--half", "--imgsz", 128, 160, "--batch-size", 2]
    assert export.main([*map(str, command)]) == 0
    assert (tmp_path / "best.onnx").stat().st_size < 0.6 * weights.stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "best.onnx")
    images = torch.cat(pictures[:2])
    boxes, scores = largest(
        raw(load(weights), images), session.run(None, {"images": images.numpy().astype(np.float16)})
    )
    assert boxes < 2 and scores < 0.01  # three digits are all that a float16 has


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "torchscript", "--dynamic"], "--dynamic: torchscript has the sizes"),
        (["--nms", "--batch-size", "2"], "--batch-size 2: with --nms it is one picture"),
        (["--imgsz", "64", "64", "64"], "--imgsz 64 64 64: found 3 numbers"),
        (["--format", "tflite"], "--format: invalid choice: 'tflite'"),
        (["--weights", "nothing.pt"], "nothing.pt: cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(options, message, trained, tmp_path, capsys):
    weights = copied(trained, tmp_path)
    assert export.main(["--weights", str(weights), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("export.py: ")
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_what_is_missing_for_onnx_is_said(trained, tmp_path, capsys, monkeypatch):
    weights = copied(trained, tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.main(["--weights", str(weights)]) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]
