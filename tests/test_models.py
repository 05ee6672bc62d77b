"""The detector: its sizes, torchvision's interface, and a loss that a plain re-telling of the papers agrees with."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import box_iou, complete_box_iou_loss

from models import MODELS, build_model
from models.head import BINS, Predictions
from models.loss import detection_loss

# Parameters in millions and GFLOPs (two to a multiply-add) at 640 px with 80 classes, as published for YOLOv8.
PUBLISHED = {
    "n": (3.2, 8.7),
    "s": (11.2, 28.6),
    "m": (25.9, 78.9),
    "l": (43.7, 165.2),
    "x": (68.2, 257.8),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_and_flops(size):
    with torch.device("meta"):
        model = build_model(f"yolo-{size}", 80).train()
        features = model.backbone, model.neck, model.head
        counter = FlopCounterMode(display=False)
        with counter:
            x = torch.empty(1, 3, 640, 640)
            for part in features:
                x = part(x)
    parameters, gflops = PUBLISHED[size]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, rel=0.1)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops, rel=0.1)


def targets_of(*counts):
    torch.manual_seed(0)
    targets = []
    for n in counts:
        corner, size = torch.rand(n, 2) * 60, torch.rand(n, 2) * 30 + 9
        targets.append(
            {"boxes": torch.cat((corner, corner + size), 1), "labels": torch.randint(3, (n,))}
        )
    return targets


def test_training_gives_losses_and_evaluation_detections():
    torch.manual_seed(0)
    model = build_model("yolo-n", 3)
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8)
    losses = model.train()(images, targets_of(2, 0, 5))
    assert list(losses) == ["box", "cls", "dfl"]
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    with pytest.raises(ValueError, match="targets"):
        model(images)

    model.eval()
    model.score_thresh = 0.0
    with torch.no_grad():
        found = model([images[0], images[1, :, :50, :70], images[2].float() / 255][:2])
    assert [set(f) for f in found] == [{"boxes", "scores", "labels"}] * 2
    for result, (height, width) in zip(found, [(96, 96), (50, 70)], strict=True):
        boxes, scores = result["boxes"], result["scores"]
        assert 0 < len(boxes) <= model.detections_per_img
        assert (
            (boxes >= 0).all()
            and (boxes[:, 0::2] <= width).all()
            and (boxes[:, 1::2] <= height).all()
        )
        assert (scores.diff() <= 0).all() and result["labels"].max() < 3


def test_uint8_and_float_pictures_and_odd_sizes_are_the_same():
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


def test_pictures_without_objects_still_teach():
    model = build_model("yolo-n", 3).train()
    losses = model(torch.zeros(2, 3, 64, 64), targets_of(0, 0))
    assert losses["box"].item() == losses["dfl"].item() == 0 and losses["cls"].item() > 0
    sum(losses.values()).backward()


def grid(height, width):
    centers, strides = [], []
    for stride in (8, 16, 32):
        for y in range(height // stride):
            for x in range(width // stride):
                centers.append(((x + 0.5) * stride, (y + 0.5) * stride))
                strides.append(float(stride))
    return torch.tensor(centers), torch.tensor(strides)


def told_again(predictions, targets, top_k=10):
    """The loss as the papers tell it, one object after the other, in plain loops."""
    centers, strides = predictions.centers, predictions.strides
    cells = len(centers)
    total = {"box": 0.0, "cls": 0.0, "dfl": 0.0}
    weight = 0.0
    for sides, logits, target in zip(predictions.sides, predictions.logits, targets, strict=True):
        distance = (sides.softmax(-1) * torch.arange(BINS)).sum(-1) * strides[:, None]
        predicted = torch.cat((centers - distance[:, :2], centers + distance[:, 2:]), 1)
        chosen_by: dict[int, list[tuple[float, int, float]]] = {}
        for k, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
            inside = [
                a for a in range(cells)
                if box[0] <= centers[a, 0] <= box[2] and box[1] <= centers[a, 1] <= box[3]
            ]  # fmt: skip
            iou = box_iou(predicted[inside], box[None])[:, 0]
            align = logits[inside, label].sigmoid() ** 0.5 * iou**6
            for j in align.argsort(descending=True)[:top_k].tolist():
                chosen_by.setdefault(inside[j], []).append((float(iou[j]), k, float(align[j])))
        wanted = torch.zeros_like(logits)
        kept: dict[int, list[tuple[int, float, float]]] = {}
        for a, claims in chosen_by.items():
            iou, k, align = max(claims)
            kept.setdefault(k, []).append((a, iou, align))
        for k, cells_of in kept.items():
            best_align, best_iou = max(c[2] for c in cells_of), max(c[1] for c in cells_of)
            for a, _, align in cells_of:
                t = align / best_align * best_iou
                box = target["boxes"][k]
                wanted[a, target["labels"][k]] = t
                weight += t
                total["box"] += t * complete_box_iou_loss(predicted[a], box)
                sought = torch.cat((centers[a] - box[:2], box[2:] - centers[a])) / strides[a]
                for side in range(4):
                    d = min(max(float(sought[side]), 0.0), BINS - 1.01)
                    low = int(d)
                    p = sides[a, side].softmax(-1)
                    total["dfl"] -= (
                        t * ((low + 1 - d) * p[low].log() + (d - low) * p[low + 1].log()) / 4
                    )
        p = logits.sigmoid()
        total["cls"] -= (wanted * p.log() + (1 - wanted) * (1 - p).log()).sum()
    return {name: value / max(weight, 1.0) for name, value in total.items()}


def test_the_loss_is_that_of_the_papers():
    targets = targets_of(4, 0, 9)
    centers, strides = grid(96, 96)
    torch.manual_seed(1)
    predictions = Predictions(
        torch.randn(3, len(centers), 4, BINS), torch.randn(3, len(centers), 3), centers, strides
    )
    expected = told_again(predictions, targets)
    for name, loss in detection_loss(predictions, targets).items():
        assert float(loss) == pytest.approx(float(expected[name]), rel=1e-4), name


def test_a_one_pixel_object_finds_a_cell():
    centers, strides = grid(64, 64)
    sides = torch.zeros(1, len(centers), 4, BINS)
    sides[..., 0] = 5.0  # small boxes around every cell
    predictions = Predictions(sides, torch.zeros(1, len(centers), 2), centers, strides)
    one = [{"boxes": torch.tensor([[20.0, 20.0, 21.0, 21.0]]), "labels": torch.tensor([1])}]
    assert float(detection_loss(predictions, one)["box"]) > 0


def test_names():
    assert MODELS == ("yolo-n", "yolo-s", "yolo-m", "yolo-l", "yolo-x")
    with pytest.raises(ValueError, match="yolo-z"):
        build_model("yolo-z", 2)
