"""YOLO: sizes, losses, detections; and the loss equals a plain implementation of the papers."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import box_iou, complete_box_iou_loss

from models import MODELS, build_model, load, model_name
from models.candidates import find_candidates
from models.head import REG_MAX, Level, Predictions
from models.loss import complete_iou_loss, detection_loss
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError

# Parameters in millions and GFLOPs (2 per multiply-add) at 640 px with 80 classes, as published
# for YOLOv8.
PUBLISHED = {
    "n": (3.2, 8.7),
    "s": (11.2, 28.6),
    "m": (25.9, 78.9),
    "l": (43.7, 165.2),
    "x": (68.2, 257.8),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_yolo_parameters_and_flops(size):
    with torch.device("meta"):
        model = build_model(f"yolo-{size}", 80).train()
        counter = FlopCounterMode(display=False)
        with counter:
            x = torch.empty(1, 3, 640, 640)
            for part in (model.backbone, model.neck, model.head):
                x = part(x)
    parameters, gflops = PUBLISHED[size]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, rel=0.1)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops, rel=0.15)


def make_targets(*counts):
    torch.manual_seed(0)
    targets = []
    for n in counts:
        corner, size = torch.rand(n, 2) * 60, torch.rand(n, 2) * 30 + 9
        targets.append(
            {"boxes": torch.cat((corner, corner + size), 1), "labels": torch.randint(3, (n,))}
        )
    return targets


def test_yolo_returns_losses_in_training_and_detections_in_evaluation():
    torch.manual_seed(0)
    model = build_model("yolo-n", 3)
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8)
    losses = model.train()(images, make_targets(2, 0, 5))
    assert list(losses) == ["box", "cls", "dfl"]
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    with pytest.raises(ValueError, match="targets"):
        model(images)

    model.eval()
    model.score_thresh = 0.0
    with torch.no_grad():
        detections = model([images[0], images[1, :, :50, :70], images[2].float() / 255][:2])
    assert [set(d) for d in detections] == [{"boxes", "scores", "labels"}] * 2
    for result, (height, width) in zip(detections, [(96, 96), (50, 70)], strict=True):
        boxes, scores = result["boxes"], result["scores"]
        assert 0 < len(boxes) <= model.detections_per_img
        assert (
            (boxes >= 0).all()
            and (boxes[:, 0::2] <= width).all()
            and (boxes[:, 1::2] <= height).all()
        )
        assert (scores.diff() <= 0).all() and result["labels"].max() < 3


def test_validation_normalizes_by_the_statistics_of_recent_batches():
    torch.manual_seed(0)
    model, images = build_model("yolo-n", 3).train(), torch.rand(4, 3, 128, 128)
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    inputs = {}
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0]}))
    with torch.no_grad():
        for _ in range(40):  # two epochs of a small dataset
            model.backbone(images)
    for norm in norms:
        variance, mean = torch.var_mean(inputs[norm], dim=(0, 2, 3))
        torch.testing.assert_close(norm.running_mean, mean, rtol=0.01, atol=1e-3)
        torch.testing.assert_close(norm.running_var, variance, rtol=0.01, atol=1e-3)


def test_yolo_accepts_uint8_and_float_images_of_any_size():
    torch.manual_seed(0)
    model = build_model("yolo-n", 2).eval()
    model.score_thresh = 0.0
    image = torch.randint(0, 256, (3, 40, 70), dtype=torch.uint8)
    padded = torch.full((3, 64, 96), 114, dtype=torch.uint8)
    padded[:, :40, :70] = image
    with torch.no_grad():
        a, b, c = model([image])[0], model([image.float() / 255])[0], model([padded])[0]
    torch.testing.assert_close(a["scores"], b["scores"])
    torch.testing.assert_close(a["scores"][:5], c["scores"][:5])


def test_yolo_learns_from_images_without_objects():
    model = build_model("yolo-n", 3).train()
    losses = model(torch.zeros(2, 3, 64, 64), make_targets(0, 0))
    assert losses["box"].item() == losses["dfl"].item() == 0 and losses["cls"].item() > 0
    sum(losses.values()).backward()


def make_levels(height, width):
    return tuple(Level(height // stride, width // stride, stride) for stride in (8, 16, 32))


def make_points(height, width):
    points, strides = [], []
    for stride in (8, 16, 32):
        for y in range(height // stride):
            for x in range(width // stride):
                points.append(((x + 0.5) * stride, (y + 0.5) * stride))
                strides.append(float(stride))
    return torch.tensor(points), torch.tensor(strides)


def points_inside(box, points):
    """The indices of the anchor points inside a box."""
    left, top, right, bottom = box
    return [i for i, (x, y) in enumerate(points) if left <= x <= right and top <= y <= bottom]


def reference_loss(predictions, targets, class_weights, top_k=10):
    """The loss as the papers define it, one object after the other, in plain loops."""
    points, strides = make_points(96, 96)
    total = {"box": 0.0, "cls": 0.0, "dfl": 0.0}
    score_sum = 0.0
    for box_logits, cls_logits, target in zip(
        predictions.box_logits, predictions.cls_logits, targets, strict=True
    ):
        distance = (box_logits.softmax(-1) * torch.arange(REG_MAX)).sum(-1) * strides[:, None]
        predicted = torch.cat((points - distance[:, :2], points + distance[:, 2:]), 1)
        claims_of_point: dict[int, list[tuple[float, int, float]]] = {}
        for k, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
            inside = points_inside(box, points)
            iou = box_iou(predicted[inside], box[None])[:, 0]
            align = cls_logits[inside, label].sigmoid() ** 0.5 * iou**6
            for j in align.argsort(descending=True)[:top_k].tolist():
                claim = (float(iou[j]), k, float(align[j]))
                claims_of_point.setdefault(inside[j], []).append(claim)
        cls_targets = torch.zeros_like(cls_logits)
        points_of_gt: dict[int, list[tuple[int, float, float]]] = {}
        for i, claims in claims_of_point.items():
            iou, k, align = max(claims)
            points_of_gt.setdefault(k, []).append((i, iou, align))
        for k, assigned in points_of_gt.items():
            best_align, best_iou = max(a[2] for a in assigned), max(a[1] for a in assigned)
            for i, _, align in assigned:
                score = align / best_align * best_iou
                box = target["boxes"][k]
                cls_targets[i, target["labels"][k]] = score
                score_sum += score
                total["box"] += score * complete_box_iou_loss(predicted[i], box)
                gt_distance = torch.cat((points[i] - box[:2], box[2:] - points[i])) / strides[i]
                for side in range(4):
                    d = min(max(float(gt_distance[side]), 0.0), REG_MAX - 1.01)
                    low = int(d)
                    p = box_logits[i, side].softmax(-1)
                    total["dfl"] -= (
                        score * ((low + 1 - d) * p[low].log() + (d - low) * p[low + 1].log()) / 4
                    )
        p = cls_logits.sigmoid()
        cross_entropy = -(cls_targets * p.log() + (1 - cls_targets) * (1 - p).log())
        total["cls"] += (cross_entropy * torch.tensor(class_weights)).sum()
    return {name: value / max(score_sum, 1.0) for name, value in total.items()}


@pytest.mark.parametrize("class_weights", [None, [1.0, 1.0, 1.0], [0.5, 3.0, 1.0]])
def test_detection_loss_equals_reference(class_weights):
    targets = make_targets(4, 0, 9)
    points, _ = make_points(96, 96)
    torch.manual_seed(1)
    predictions = Predictions(
        torch.randn(3, len(points), 4, REG_MAX),
        torch.randn(3, len(points), 3),
        make_levels(96, 96),
    )
    expected = reference_loss(predictions, targets, class_weights or [1.0] * 3)
    weights = None if class_weights is None else torch.tensor(class_weights)
    for name, loss in detection_loss(predictions, targets, class_weights=weights).items():
        assert float(loss) == pytest.approx(float(expected[name]), rel=1e-4), name


def test_candidates_are_the_anchor_points_inside_each_object():
    """By object, then in the order of the anchor points; edges on a point count as inside."""
    points, strides = make_points(64, 96)
    corners = torch.rand(40, 2) * torch.tensor([90.0, 60.0])
    boxes = torch.cat((corners, corners + torch.rand(40, 2) * 60), dim=1)
    on_points = torch.tensor([[4.0, 12.0, 28.0, 12.0], [16.0, 16.0, 48.0, 48.0], [8, 8, 8.5, 8.5]])
    boxes, labels = torch.cat((boxes, on_points)), torch.arange(43) % 3
    image_index = torch.arange(43) % 4
    candidates = find_candidates(
        boxes, labels, image_index, make_levels(64, 96), torch.device("cpu")
    )
    pairs = []
    for i, box in enumerate(boxes):
        center, half_size = (box[:2] + box[2:]) / 2, ((box[2:] - box[:2]) / 2).clamp(min=4)
        inside = points_inside(torch.cat((center - half_size, center + half_size)), points)
        pairs += [(i, j) for j in inside]
    gt, point = torch.tensor(pairs).T
    assert torch.equal(candidates.gt_index, gt)
    assert torch.equal(candidates.point_index, image_index[gt] * len(points) + point)
    assert torch.equal(candidates.point, points[point]) and torch.equal(
        candidates.stride, strides[point]
    )
    assert torch.equal(candidates.box, boxes[gt]) and torch.equal(candidates.label, labels[gt])


def test_complete_iou_loss_equals_torchvision():
    corners = torch.rand(2, 500, 2) * 60
    a, b = torch.cat((corners, corners + 1 + torch.rand(2, 500, 2) * 40), dim=-1)
    a.requires_grad_()
    expected = complete_box_iou_loss(a, b)
    loss = complete_iou_loss(a, b)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(x.sum(), a)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_detection_loss_assigns_a_one_pixel_object():
    points, _ = make_points(64, 64)
    box_logits = torch.zeros(1, len(points), 4, REG_MAX)
    box_logits[..., 0] = 5.0  # small boxes around every anchor point
    predictions = Predictions(box_logits, torch.zeros(1, len(points), 2), make_levels(64, 64))
    target = [{"boxes": torch.tensor([[20.0, 20.0, 21.0, 21.0]]), "labels": torch.tensor([1])}]
    assert float(detection_loss(predictions, target)["box"]) > 0


def test_build_model_names():
    assert tuple(MODELS) == ("yolo-n", "yolo-s", "yolo-m", "yolo-l", "yolo-x")
    assert model_name("yolo-n") == "yolo-n"
    for name, choices in (("yolo-z", "yolo-n, yolo-s"), ("torchvision/z", "torchvision/faster")):
        message = rf"--model {name}: unknown model \(choose from {choices}"
        with pytest.raises(ValueError, match=message):
            build_model(name, 2)
        with pytest.raises(UserError, match=message):
            model_name(name)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("yolo-n", None),
        ("yolo-n", "torchvision/mobilenet_v3_small"),
        ("torchvision/ssdlite320_mobilenet_v3_large", None),
    ],
)
def test_load_rebuilds_the_model_of_a_checkpoint(name, backbone, tmp_path):
    model = build_model(name, 3, backbone)
    state = {
        "args": {"imgsz": "64-100", "data": "/datasets/x/data.yaml"},
        "class_names": ["a", "b", "c"],
        "model_config": model.config,
        "ema": {"model": model.state_dict(), "updates": 5},
    }
    save_checkpoint(state, tmp_path / "best.pt")
    loaded = load(tmp_path / "best.pt")
    assert type(loaded) is type(model) and not loaded.training and loaded.config == model.config
    assert (loaded.class_names, loaded.imgsz) == (("a", "b", "c"), 128)
    assert loaded.data == "/datasets/x/data.yaml"
    expected, weights = model.state_dict(), loaded.state_dict()
    assert expected.keys() == weights.keys()
    assert all(torch.equal(expected[key], weights[key]) for key in expected)
    assert load_checkpoint(tmp_path / "best.pt")["model_config"] == model.config  # plain data


@pytest.mark.parametrize(
    "change",
    [
        {"model_config": None},
        {"model_config": {"name": "yolo-z", "num_classes": 2, "backbone": None}},
        {"model_config": {"name": "yolo-n", "num_classes": 4, "backbone": None}},
        {"model_config": {"name": "yolo-n", "num_classes": 3, "depth": 2}},
        {"ema": {}},
        {"ema": {"model": {}}},
        {"args": {}},
        {"class_names": 3},
    ],
)
def test_load_names_a_checkpoint_that_it_cannot_build(change, tmp_path):
    model = build_model("yolo-n", 3)
    state = {
        "args": {"imgsz": 64, "data": "data.yaml"},
        "class_names": ["a", "b", "c"],
        "model_config": model.config,
        "ema": {"model": model.state_dict(), "updates": 5},
    }
    save_checkpoint(state | change, tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"best\.pt: holds no detector that this version can build"):
        load(tmp_path / "best.pt")
