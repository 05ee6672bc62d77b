"""The detector interface: what a family gets from the base class, and post-processing."""

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from models import build_model
from models.detector import Detector
from models.export_wrappers import ExportModel, ExportModelWithNMS
from models.freezing import freeze
from models.weights import load_initial_weights
from utils.errors import UserError


class GridDetector(Detector):
    """A family with the two methods that it must have: one box for each 16 x 16 cell."""

    stride = 16

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scores = nn.Conv2d(3, num_classes, 16, 16)

    def losses(self, images, targets):
        return {"size": self.scores(images).square().mean(), "targets": images.sum() * len(targets)}

    def predict(self, images):
        scores = self.scores(images).sigmoid()
        y, x = torch.meshgrid(*(torch.arange(n) * 16.0 for n in scores.shape[-2:]), indexing="ij")
        boxes = torch.stack((x, y, x + 16, y + 16), dim=-1).flatten(0, 1)
        return boxes.expand(len(images), -1, -1), scores.flatten(2).mT


def test_detector_subclass_trains_detects_and_is_exported():
    torch.manual_seed(0)
    model = GridDetector(2)
    images = [torch.rand(3, 20, 30), torch.rand(3, 40, 10)]
    with pytest.raises(ValueError, match="targets"):
        model(images)
    losses = model(images, [{}, {}])
    assert list(losses) == ["size", "targets"]
    batch, sizes = model.prepare(images)
    assert batch.shape == (2, 3, 48, 32) and sizes == [(20, 30), (40, 10)]
    assert torch.equal(batch[1, :, :40, :10], images[1])
    assert (batch[0, :, 20:] == 114 / 255).all() and (batch[1, :, :, 10:] == 114 / 255).all()
    with torch.no_grad():
        detections = model.eval()(images)
        boxes, scores = ExportModel(model)(batch)
    assert boxes.shape == (2, 6, 4) and scores.shape == (2, 6, 2)
    for result, (height, width) in zip(detections, sizes, strict=True):
        limits = torch.tensor([width, height, width, height])
        assert len(result["boxes"]) == len(result["labels"]) > 0
        assert (result["boxes"] <= limits).all()
    assert not model.backbone_modules() and not model.freezable_layers()
    with pytest.raises(UserError, match=r"--freeze backbone: .* 0 layers .*\(allowed: nothing\)"):
        freeze(model, "backbone")


def reference_postprocess(model, boxes, scores, size):
    """Greedy NMS within each class, one candidate after the other."""
    height, width = size
    candidates = [
        (float(score), i, label)
        for i, row in enumerate(scores)
        for label, score in enumerate(row)
        if score > model.score_thresh
    ]
    candidates = sorted(candidates, reverse=True)[: model.topk_candidates]
    keep = []
    for score, i, label in candidates:
        x1, y1, x2, y2 = boxes[i].tolist()
        limits = (width, height, width, height)
        box = [min(max(v, 0), limit) for v, limit in zip((x1, y1, x2, y2), limits, strict=True)]
        same_class = [other for _, other, other_label in keep if other_label == label]
        iou = box_iou(torch.tensor([box]), torch.tensor(same_class).reshape(-1, 4))
        if not (iou > model.nms_thresh).any():
            keep.append((score, box, label))
    return keep[: model.detections_per_img]


def test_postprocess_equals_greedy_nms_per_class():
    torch.manual_seed(0)
    model = GridDetector(3)
    model.set_thresholds(0.3, 0.4)
    model.topk_candidates, model.detections_per_img = 60, 20
    corner = torch.rand(2, 50, 2) * 60 - 5
    boxes = torch.cat((corner, corner + torch.rand(2, 50, 2) * 40 + 5), dim=-1)
    scores, sizes = torch.rand(2, 50, 3), [(64, 48), (40, 64)]
    detections = model.postprocess(boxes, scores, sizes)
    for i, result in enumerate(detections):
        expected = reference_postprocess(model, boxes[i], scores[i], sizes[i])
        assert len(expected) == len(result["boxes"]) > 10
        assert result["scores"].tolist() == [score for score, _, _ in expected]
        assert result["labels"].tolist() == [label for _, _, label in expected]
        assert torch.allclose(result["boxes"], torch.tensor([box for _, box, _ in expected]))


def test_postprocess_without_any_detection():
    model = GridDetector(3)
    (result,) = model.postprocess(torch.rand(1, 5, 4), torch.zeros(1, 5, 3), [(32, 32)])
    assert {key: tuple(value.shape) for key, value in result.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
    }


def test_export_model_with_nms_returns_the_detections_of_the_model():
    torch.manual_seed(0)
    model = GridDetector(3).eval()
    model.set_thresholds(0.3, 0.4)
    corner = torch.rand(1, 50, 2) * 60 - 5
    boxes = torch.cat((corner, corner + torch.rand(1, 50, 2) * 40 + 5), dim=-1)
    scores = torch.rand(1, 50, 3)
    model.predict = lambda images: (boxes, scores)
    images = torch.zeros(1, 3, 96, 64)
    (expected,) = model(images)
    outputs = ExportModelWithNMS(model)(images)
    assert 10 < len(expected["boxes"]) < 105  # of about 105 candidates
    for key, output in zip(("boxes", "scores", "labels"), outputs, strict=True):
        assert torch.equal(output, expected[key])


def test_set_thresholds_keeps_what_is_none():
    model = GridDetector(2)
    model.set_thresholds(score=0.25)
    assert (model.score_thresh, model.nms_thresh) == (0.25, 0.7)
    model.set_thresholds(iou=0.45)
    assert (model.score_thresh, model.nms_thresh) == (0.25, 0.45)
    assert (GridDetector.score_thresh, GridDetector.nms_thresh) == (0.001, 0.7)


@pytest.mark.parametrize("backbone", [None, "torchvision/mobilenet_v3_small"])
def test_param_groups_has_each_parameter_that_learns_once(backbone):
    model = build_model("yolo-n", 3, backbone)
    freeze(model, "1")
    groups = model.param_groups()
    assert list(groups) == ["matrices", "weights", "no_decay"]
    learning = [p for p in model.parameters() if p.requires_grad]
    assert 0 < len(learning) < len([*model.parameters()])
    position = {p: i for i, p in enumerate(learning)}
    indices = [[position[p] for p in group] for group in groups.values()]
    assert sorted(i for group in indices for i in group) == [*range(len(learning))]
    assert all(group == sorted(group) for group in indices)
    modules = {m.weight: m for m in model.modules() if hasattr(m, "weight")}
    for p in groups["matrices"]:
        assert isinstance(modules[p], nn.Conv2d)
        assert modules[p].bias is None and modules[p].groups == 1
    for p in groups["weights"]:
        assert p.ndim > 1 and (modules[p].bias is not None or modules[p].groups > 1)
    assert all(p.ndim == 1 for p in groups["no_decay"])


@pytest.mark.parametrize(("weights", "pretrained"), [("DEFAULT", False), (None, True)])
def test_detector_without_published_weights(weights, pretrained):
    message = "--weights DEFAULT: requires --backbone timm/NAME or torchvision/NAME, or --model"
    for model in (GridDetector(2), build_model("yolo-n", 2)):
        with pytest.raises(UserError, match=message):
            load_initial_weights(model, weights, pretrained)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("threshold", [0.0, 0.45, 1.0])
def test_export_model_with_nms_runs_on_images_without_detections(threshold):
    torch.manual_seed(0)
    model = GridDetector(1).eval()
    model.set_thresholds(score=threshold)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        program = torch.export.export(ExportModelWithNMS(model), (images,), strict=False).module()
        outputs, (expected,) = program(images), model(images)
    assert (len(expected["boxes"]) == 0) == (threshold == 1.0)
    for key, output in zip(("boxes", "scores", "labels"), outputs, strict=True):
        torch.testing.assert_close(output, expected[key])
