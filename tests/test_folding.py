"""Batch norms folded into convolutions: the same detections, and a model that can be trained."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models
from models import build_model
from models.detector import Detector
from models.folding import fold_batch_norms
from predictor import Predictor, load
from utils.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("float32")


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def model_with_statistics(backbone: str | None) -> Detector:
    """A detector with norms of random parameters and the statistics of random images."""
    torch.manual_seed(0)
    model = build_model("yolo-n", 3, backbone).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of one batch are the mean of all
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for branch in model.head.cls_branches:  # or else all scores would be nearly equal
        nn.init.normal_(branch[-1].weight, std=0.5)
    with torch.no_grad():
        model.head(model.neck(model.backbone(torch.rand(4, 3, 96, 128))))
    model.set_thresholds(score=0.05)
    return model.eval()


@pytest.mark.parametrize(
    "backbone", [None, "torchvision/resnet18", "torchvision/mobilenet_v3_large"]
)
@torch.backends.mkldnn.flags(enabled=False)  # oneDNN rounds differently on each kind of CPU
@torch.no_grad()
def test_folding_changes_no_detection(backbone):
    model = model_with_statistics(backbone)
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norms(model)
    assert norms(model) > 40 and norms(folded) == 0
    for one, other in zip(folded(images), model(images), strict=True):
        # What float32 leaves of 24 bits after some 60 layers, in pixels of up to 128. Detections
        # whose scores are that close may change places.
        assert len(one["boxes"]) == len(other["boxes"]) > 10
        rows, others = (
            torch.cat((d["labels"][:, None] * 1000, d["boxes"], d["scores"][:, None] * 100), dim=1)
            for d in (one, other)
        )
        distances = torch.cdist(rows, others, p=torch.inf)
        assert distances.min(0).values.max() < 0.01 and distances.min(1).values.max() < 0.01
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    # In float64 nothing but rounding in the last of 15 digits may differ.
    exact, image = fold_batch_norms(model.double()), images.double()
    for one, other in zip(
        exact.neck(exact.backbone(image)), model.neck(model.backbone(image)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_weights_are_cast_as_autocast_casts_them():
    """Once instead of for every image, so bitwise the same; `model` keeps its float32."""
    model = model_with_statistics("torchvision/resnet18")
    image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    folded, cast = fold_batch_norms(model), fold_batch_norms(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        for one, other in zip(cast.predict(image), folded.predict(image), strict=True):
            assert torch.equal(one, other)
    dtypes = {module.weight.dtype for module in cast.modules() if isinstance(module, nn.Conv2d)}
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_folding_only_what_is_surely_adjacent():
    class Sum(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x)) + self[0](x)

    class Small(Detector):
        def __init__(self) -> None:
            super().__init__()
            self.sum = Sum(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
            self.other_way = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU())
            self.no_statistics = nn.Sequential(
                nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
            )
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    model = Small().eval()
    assert norms(fold_batch_norms(model)) == norms(model) == 4


@pytest.fixture(scope="module")
def weights(trained_run) -> Path:
    return trained_run / "exp" / "weights" / "best.pt"


@pytest.fixture(scope="module")
def image(trained_run) -> Path:
    return trained_run / "tiny" / "images" / "val" / "0.png"


def assert_same_as_a_new_predictor(predictor: Predictor, image: Path) -> None:
    fresh = Predictor(copy.deepcopy(predictor.model), device="cpu", conf=0.01)
    (one,), (other,) = predictor(image), fresh(image)
    assert len(one["boxes"]) and all(torch.equal(one[key], other[key]) for key in one)


def test_the_model_of_load_is_not_folded_and_can_change(weights, image):
    predictor = load(weights, device="cpu", conf=0.01)
    (first,) = predictor(image)
    model = predictor.model
    assert norms(model) > 40
    state = load_checkpoint(weights)["ema"]["model"]
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())

    batch = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    objects = [{"boxes": torch.tensor([[8.0, 8, 60, 50]]), "labels": torch.tensor([0])}] * 2
    sum(model.train()(batch, objects).values()).backward()  # new statistics
    assert_same_as_a_new_predictor(predictor, image)
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    assert_same_as_a_new_predictor(predictor, image)
    model.load_state_dict(state)
    (restored,) = predictor(image)
    for key in first:
        torch.testing.assert_close(first[key], restored[key], rtol=0, atol=0.01)


def test_changes_of_the_model_that_autograd_does_not_count(weights, image):
    """Writes to `.data`, as of averages of weights; fused optimizers; other layers."""
    predictor = load(weights, device="cpu", conf=0.01)
    model = predictor.model
    predictor(image)
    for parameter in model.backbone.parameters():
        parameter.data.mul_(0.99)
    assert_same_as_a_new_predictor(predictor, image)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    torch.optim.SGD(model.parameters(), lr=0.01, fused=True).step()
    assert_same_as_a_new_predictor(predictor, image)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps *= 2
    assert_same_as_a_new_predictor(predictor, image)


def test_a_model_of_inference_mode_is_used(weights, image):
    with torch.inference_mode():
        model = models.load(weights)
    (detections,) = Predictor(model, device="cpu", conf=0.01)(image)
    (expected,) = load(weights, device="cpu", conf=0.01)(image)
    torch.testing.assert_close(detections["boxes"], expected["boxes"], rtol=0, atol=0.01)


def test_hooks_of_the_model_of_load_are_called(weights, image):
    predictor = load(weights, device="cpu", conf=0.01)
    (expected,) = predictor(image)
    shapes = []
    hook = predictor.model.backbone.register_forward_hook(
        lambda module, inputs, outputs: shapes.append([tuple(o.shape) for o in outputs])
    )
    (detections,) = predictor(image)
    hook.remove()
    assert len(shapes) == 1 and len(shapes[0]) == 3
    torch.testing.assert_close(detections["boxes"], expected["boxes"], rtol=0, atol=0.01)
