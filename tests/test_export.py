"""export.py as a user runs it: in its own runtime each format returns what the model returns."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

import export
from data.augment import resize
from data.images import read_image
from models import build_model, load
from models.export_wrappers import _nms_by_offset

ROOT = Path(__file__).parents[1]
VERSION = onnxruntime.__version__


@pytest.fixture(scope="module")
def real_images() -> list[Tensor]:
    """Return 8 real images (1, 3, 128, 160) in 0..1."""
    directory = ROOT.parent / "shared" / "datasets" / "bccd" / "images" / "val"
    if not directory.is_dir():
        pytest.skip(f"the real images are not at {directory}")
    files = sorted(directory.iterdir())[:8]
    return [resize(read_image(str(file)), 128, 160)[None] / 255 for file in files]


@pytest.fixture
def weights(trained_run: Path, tmp_path: Path) -> Path:
    """Return a copy of best.pt in a directory of its own, where export.py writes."""
    target = tmp_path / "best.pt"
    target.write_bytes((trained_run / "exp" / "weights" / "best.pt").read_bytes())
    return target


def run_export(weights: Path, *options: object) -> None:
    assert export.main(["--weights", str(weights), *map(str, options)]) == 0


def max_diffs(expected: list[Tensor], outputs: list[Tensor | np.ndarray]) -> list[float]:
    """Return the largest absolute difference of each output; 0 for an empty one."""
    assert [a.shape for a in expected] == [b.shape for b in outputs]
    diffs = [
        (a.float() - torch.as_tensor(b).float()).abs()
        for a, b in zip(expected, outputs, strict=True)
    ]
    return [float(diff.max()) if diff.numel() else 0.0 for diff in diffs]


@torch.no_grad()
def raw_predictions(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes and scores of every anchor point, written a second time.

    A distance is the mean of the softmax over 0 to 15, in strides.
    """
    p = model.head(model.neck(model.backbone(images)))
    height, width = images.shape[-2:]
    cells = [
        ((column + 0.5) * stride, (row + 0.5) * stride, stride)
        for stride in (8, 16, 32)
        for row in range(height // stride)
        for column in range(width // stride)
    ]
    points, strides = torch.tensor(cells).split((2, 1), dim=1)
    distances = (p.box_logits.softmax(-1) * torch.arange(16.0)).sum(-1) * strides
    boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)
    return boxes, p.cls_logits.sigmoid()


def test_export_onnx_dynamic_shapes(weights, real_images, tmp_path, capsys):
    run_export(weights, "--dynamic")
    stdout = capsys.readouterr().out
    assert "best.onnx" in stdout
    assert "max difference from PyTorch on random input: " in stdout
    assert "px for boxes (2, " in stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.onnx", "best.pt"]
    session = onnxruntime.InferenceSession(tmp_path / "best.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["names"]) == ["class0", "class1"]
    assert metadata["stride"] == "32" and json.loads(metadata["imgsz"]) == [64, 64]
    model = load(weights)
    for images in (*real_images, torch.cat(real_images[:3]), real_images[0][..., :64, :96]):
        outputs = session.run(None, {"images": images.numpy()})
        boxes, scores = max_diffs(raw_predictions(model, images), outputs)
        assert boxes < 0.01 and scores < 1e-4


def test_export_onnx_with_nms(trained_run, weights, real_images, tmp_path):
    run_export(weights, "--nms", "--imgsz", 64, "--conf", 0.02, "--iou", 0.6)
    session = onnxruntime.InferenceSession(tmp_path / "best.onnx")
    model = load(weights)
    model.set_thresholds(0.02, 0.6)
    num_boxes = 0
    # In the images of its own dataset the model detects something.
    val_files = sorted((trained_run / "tiny" / "images" / "val").iterdir())
    val_images = [read_image(str(file))[None] / 255 for file in val_files]
    for images in [*real_images, *val_images]:
        images = resize(images[0], 64, 64)[None]
        with torch.no_grad():
            (detections,) = model(images)
        expected = [detections[key] for key in ("boxes", "scores", "labels")]
        outputs = session.run(None, {"images": images.numpy()})
        boxes, scores, labels = max_diffs(expected, outputs)
        assert boxes < 0.01 and scores < 1e-4 and labels == 0
        num_boxes += len(expected[0])
    assert num_boxes > 8


def tensor_constants(graph: torch.Graph) -> list[Tensor]:
    """Return the tensors in a TorchScript graph that are not moved with the module."""
    constants = (node for node in graph.findAllNodes("prim::Constant"))
    return [c.t("value") for c in constants if c.output().type().kind() == "TensorType"]


def assert_script_can_be_moved(exported: torch.jit.ScriptModule, nms: bool) -> None:
    """The file can be moved to another device."""
    graph = exported.inlined_graph
    # Scalars on the CPU can be combined with tensors on any device.
    assert all(constant.ndim == 0 for constant in tensor_constants(graph))
    if not nms:  # in NMS only such scalars have a device
        assert "Device" not in str(graph)


def assert_program_can_be_moved(program: torch.export.ExportedProgram) -> None:
    """The file can be moved to another device."""
    assert not program.constants
    assert not any("device" in node.kwargs for node in program.graph.nodes)


@pytest.mark.parametrize("format", ["torchscript", "torch_export"])
def test_export_torch_formats(format, weights, real_images, tmp_path):
    run_export(weights, "--format", format, "--imgsz", 128, 160)
    metadata = {"names": "", "stride": ""}
    if format == "torchscript":
        exported = torch.jit.load(tmp_path / "best.torchscript", _extra_files=metadata)
        assert_script_can_be_moved(exported, nms=False)
    else:
        program = torch.export.load(tmp_path / "best.pt2", extra_files=metadata)
        assert_program_can_be_moved(program)
        exported = program.module()
    assert json.loads(metadata["names"]) == ["class0", "class1"]
    assert metadata["stride"] in ("32", b"32")
    model = load(weights)
    for images in real_images:
        with torch.no_grad():
            boxes, scores = max_diffs(raw_predictions(model, images), exported(images))
        assert boxes < 0.01 and scores < 1e-4
    if format == "torch_export":
        outputs = exported.to("meta")(torch.rand(1, 3, 128, 160, device="meta"))
        assert [tuple(t.shape) for t in outputs] == [(1, 420, 4), (1, 420, 2)]


@pytest.fixture
@torch.no_grad()
def sensitive_weights(weights: Path) -> Path:
    """Return weights of a random detector whose scores depend much on the image."""
    torch.manual_seed(0)
    model = build_model("yolo-n", 2)
    for branch in model.head.cls_branches:
        branch[-1].weight.normal_(std=0.03)
        branch[-1].bias.fill_(-2.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the running statistics become those of the one batch
    torch.manual_seed(1)
    noise = torch.rand(2, 3, 64, 64)
    brightness = torch.rand(2, 3, 1, 1).expand(2, 3, 64, 64)
    model.raw_predictions(torch.cat((noise, brightness)))
    state = torch.load(weights, weights_only=True)
    state["ema"]["model"] = model.state_dict()
    torch.save(state, weights)
    return weights


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
def test_export_torch_export_with_nms_of_no_one_and_many_boxes(
    dynamic, sensitive_weights, tmp_path
):
    images = [torch.full((1, 3, 64, 64), value) for value in (0.25, 0.5, 1.0)]
    model = load(sensitive_weights)
    scores = sorted((model(image)[0]["scores"] for image in images), key=lambda s: float(s[0]))
    one = float(scores[1][:2].mean())
    assert {min(int((s > one).sum()), 2) for s in scores} == {0, 1, 2}
    for conf in [one] if dynamic else [one, 1.0]:  # with 1, nothing in the image of the export
        options = ["--conf", conf, *(["--dynamic"] if dynamic else [])]
        run_export(sensitive_weights, "--format", "torch_export", "--nms", "--imgsz", 64, *options)
        program = torch.export.load(tmp_path / "best.pt2")
        assert_program_can_be_moved(program)
        exported = program.module()
        model.set_thresholds(conf, 0.45)
        for image in images:
            (detections,) = model(image)
            expected = [detections[key] for key in ("boxes", "scores", "labels")]
            boxes, scores, labels = max_diffs(expected, exported(image))
            assert boxes < 0.01 and scores < 1e-4 and labels == 0


def test_export_torch_export_of_any_size_can_be_moved_to_another_device(weights, tmp_path):
    run_export(weights, "--format", "torch_export", "--dynamic")
    program = torch.export.load(tmp_path / "best.pt2")
    assert_program_can_be_moved(program)
    outputs = program.module().to("meta")(torch.rand(2, 3, 64, 64, device="meta"))
    assert [tuple(t.shape) for t in outputs] == [(2, 84, 4), (2, 84, 2)]


def test_export_half_precision(weights, real_images, tmp_path):
    run_export(weights, "--half", "--imgsz", 128, 160, "--batch-size", 2)
    assert (tmp_path / "best.onnx").stat().st_size < 0.6 * weights.stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "best.onnx")
    images = torch.cat(real_images[:2])
    outputs = session.run(None, {"images": images.numpy().astype(np.float16)})
    boxes, scores = max_diffs(raw_predictions(load(weights), images), outputs)
    assert boxes < 2 and scores < 0.01  # float16 has about 3 decimal digits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "torchscript", "--dynamic"], "--dynamic: not supported by torchscript"),
        (["--nms", "--batch-size", "2"], "--batch-size 2: --nms requires a batch size of 1"),
        (["--imgsz", "64", "64", "64"], "--imgsz 64 64 64: found 3 numbers"),
        (["--format", "tflite"], "--format: invalid choice: 'tflite'"),
        (["--weights", "nothing.pt"], "nothing.pt: cannot be read"),
        (["--weights", ""], ".: cannot be read"),
        (["--imgsz", "1000000000"], "out of memory (reduce --batch-size or --imgsz)"),
    ],
)
def test_export_error_is_one_line(options, message, weights, tmp_path, capsys):
    assert export.main(["--weights", str(weights), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("export.py: ")
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_export_names_missing_onnx_packages(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.main(["--weights", str(weights)]) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_export_rejects_torchvision_detectors(tmp_path, capsys, monkeypatch):
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", 2)
    monkeypatch.setattr(export, "load", lambda path: model)
    command = ["--weights", "ssd.pt", "--format", "torchscript"]
    assert export.main(command) == 2
    assert capsys.readouterr().err == (
        "export.py: ssd.pt: export.py does not support torchvision/ssdlite320_mobilenet_v3_large "
        "(use torch.onnx)\n"
    )


def test_max_abs_diff_describes_boxes_and_scores():
    boxes, scores = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2)
    text = export.max_abs_diff((boxes, scores), (boxes + 0.5, scores))
    assert text == "0.5 px for boxes (1, 3, 4), 0 for scores"
    no_boxes, no_scores, no_labels = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)
    text = export.max_abs_diff((no_boxes, no_scores, no_labels), (no_boxes, no_scores, no_labels))
    assert text == "not measured, because nothing is detected in it at this --conf"


def detections(*rows: tuple[float, float, int]) -> list[Tensor]:
    """Return boxes of 10 x 10 pixels, scores and labels of (x, score, label)."""
    boxes = torch.tensor([[x, 5.0, x + 10, 15] for x, _, _ in rows]).reshape(-1, 4)
    scores, labels = (torch.tensor([row[i] for row in rows]) for i in (1, 2))
    return [boxes, scores, labels.long()]


MORE = (
    " more in the file (rounding can decide about scores close to --conf and boxes close to --iou, "
    "and which of nearly equal scores are the highest)"
)


@pytest.mark.parametrize(
    ("ours", "file", "text"),
    [
        (
            [(0, 0.5, 0), (200, 0.4, 1)],
            [(200, 0.5, 1), (0.25, 0.5, 0)],
            "0.25 px for boxes, 0.1 for scores of 2 detections",
        ),
        (
            [(0, 0.5, 0), (200, 0.4, 1)],
            [(0, 0.5, 0)],
            f"0 px for boxes, 0 for scores of 1 detections; 1 more in PyTorch and 0{MORE}",
        ),
        (
            [(0, 0.5, 0)],
            [(0, 0.5, 1), (90, 0.5, 0)],
            f"no detection is in both; 1 more in PyTorch and 2{MORE}",
        ),
        ([], [], "not measured, because nothing is detected in it at this --conf"),
        (
            [],
            [(0, 0.5, 0)],
            f"no detection is in both; 0 more in PyTorch and 1{MORE}",
        ),
    ],
)
def test_detections_are_compared_as_sets(ours, file, text):
    assert export.max_abs_diff(detections(*ours), detections(*file)) == text


def test_detections_that_only_the_file_has_are_looked_for_before_nms():
    """As of an untrained model, whose scores are nearly equal."""
    boxes = torch.tensor([[0, 5, 10, 15], [200, 5, 210, 15], [90, 5, 100, 15.0]])
    scores = torch.tensor([[0.5, 0.1], [0.1, 0.25], [0.5, 0.1]])
    ours, file = detections((0, 0.5, 0)), detections((200, 0.375, 1), (90.5, 0.5, 0))
    text = export.max_abs_diff(ours, file, (boxes, scores))
    expected = "before NMS, PyTorch predicts 2 of the 2 more in the file: 0.5 px for boxes, 0.12"
    assert text == f"no detection is in both; 1 more in PyTorch and 2{MORE}; {expected} for scores"
    text = export.max_abs_diff(ours, file, (boxes[:1], scores[:1]))
    assert text.endswith("; PyTorch predicts none of those in the file")


def test_detections_without_area_are_compared():
    point = [torch.zeros(1, 4), torch.ones(1), torch.zeros(1).long()]
    assert export.max_abs_diff(point, point) == "0 px for boxes, 0 for scores of 1 detections"


def test_export_says_what_was_rounded_and_what_the_file_needs(weights, tmp_path, capsys):
    run_export(weights, "--format", "torchscript", "--nms", "--imgsz", 100, 64)
    stdout, stderr = capsys.readouterr()
    assert stderr == (
        "--imgsz 100 64: not a multiple of 32; the file is for images of 128 x 64 "
        "(height x width)\n"
    )
    assert_script_can_be_moved(torch.jit.load(tmp_path / "best.torchscript"), nms=True)
    assert "torch.jit.load of PyTorch" in stdout and "`import torchvision` before it" in stdout
    load = "import torch, sys; torch.jit.load(sys.argv[1])"
    for imports, status in (("import torchvision; ", 0), ("", 1)):
        command = [sys.executable, "-c", imports + load, tmp_path / "best.torchscript"]
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == status
    run_export(weights, "--format", "torchscript")
    stdout, stderr = capsys.readouterr()
    assert "torchvision" not in stdout and stderr == ""


def test_export_onnx_says_its_opset(weights, tmp_path, capsys):
    run_export(weights)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("to load it: ")]
    opsets = [o.version for o in onnx.load(tmp_path / "best.onnx").opset_import if not o.domain]
    assert line == f"to load it: ONNX opset {opsets[0]} (checked with onnxruntime {VERSION})"


def test_export_to_where_nothing_can_be_written_is_one_sentence(weights, capsys, monkeypatch):
    target = weights.with_suffix(".onnx")
    target.mkdir()
    assert export.main(["--weights", str(weights)]) == 2
    expected = f"export.py: {target}: is a directory (export.py writes a file of this name)\n"
    assert capsys.readouterr().err == expected
    target.rmdir()

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "tmp")

    monkeypatch.setattr(export.tempfile, "TemporaryDirectory", refuse)
    assert export.main(["--weights", str(weights)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"export.py: {target}: cannot be written: Read-only file system (")


def test_nms_of_many_classes_in_float16_keeps_what_float32_keeps():
    torch.manual_seed(0)
    corner = torch.randint(0, 1200, (200, 2)).float()
    boxes = torch.cat((corner, corner + 60), 1)
    scores, labels = torch.linspace(1, 0.1, 200), torch.randint(0, 80, (200,))
    expected = batched_nms(boxes, scores, labels, 0.5)
    kept = _nms_by_offset(boxes.half(), scores.half(), labels, 0.5, offset=2560)
    assert sorted(kept.tolist()) == sorted(expected.tolist())


def test_max_abs_diff_raises_if_shapes_differ():
    boxes, scores = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2)
    with pytest.raises(RuntimeError, match="returns shapes"):
        export.max_abs_diff((boxes, scores), (boxes[:, :2], scores))
