"""--cuda-graphs: the same run with fewer launches, and one sentence for what it excludes."""

import copy
from argparse import Namespace

import pytest
import torch
from conftest import assert_one_line_error, assert_same_run, run_train
from torch import nn

from models import build_model
from utils.cuda_graphs import check_cuda_graphs
from utils.errors import UserError
from utils.hyp import Hyp

TARGETS = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}] * 2


CUDA = torch.device("cuda")
ARGS = {"imgsz": "64", "hyp": "h.yaml", "epochs": 3, "detect_anomaly": False, "compile": None}


def test_needs_a_cuda_device(tiny, tmp_path, capsys):
    assert run_train(data=tiny, cuda_graphs=True, project=tmp_path) == 2
    sentence = "--cuda-graphs: does not work with --device cpu (it needs a CUDA device)"
    assert_one_line_error(capsys.readouterr().err, sentence)
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("args", "accumulate", "imgsz", "world_size", "sentence"),
    [
        ({}, 1, (64, 64), 2, "2 processes (it is for one)"),
        ({"imgsz": "64-128"}, 1, (64, 128), 1, "--imgsz 64-128 (give one size)"),
        ({"epochs": 4}, 1, (64, 64), 1, "small_epochs: 6 in h.yaml (it must be 0)"),
        ({}, 4, (64, 64), 1, "accumulate: 4 in h.yaml (it must be 1)"),
        ({"detect_anomaly": True}, 1, (64, 64), 1, "--detect-anomaly (use one of the two)"),
        ({"compile": "inductor"}, 1, (64, 64), 1, "--compile inductor (use one of the two)"),
    ],
)
def test_excluded_options(args, accumulate, imgsz, world_size, sentence):
    hyp = Hyp(accumulate=accumulate)
    given = ["cuda_graphs"]
    with_graphs = Namespace(**ARGS | args, cuda_graphs=True)
    with pytest.raises(UserError) as error:
        check_cuda_graphs(with_graphs, hyp, CUDA, imgsz, world_size, given)
    assert str(error.value) == f"--cuda-graphs: does not work with {sentence}"
    assert check_cuda_graphs(Namespace(**ARGS, cuda_graphs=True), Hyp(), CUDA, (64, 64), 1, given)
    without = Namespace(**ARGS | args, cuda_graphs=False)
    assert not check_cuda_graphs(without, hyp, CUDA, imgsz, world_size, [])


@pytest.fixture
def recorded(monkeypatch):
    """The calls of torch's recorder, which runs the network three times and records nothing."""
    calls = []

    def record(module: nn.Module, sample_args: tuple[torch.Tensor]) -> nn.Module:
        assert not torch.is_autocast_cache_enabled()
        for _ in range(3):
            module(*sample_args)
        calls.append(sample_args[0].shape)
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return calls


def test_recording_leaves_no_trace(recorded):
    """Neither in the state, batch norms included, nor in losses, detections or copies."""
    torch.manual_seed(0)
    model = build_model("yolo-n", 3).train()
    images = torch.rand(2, 3, 64, 64)
    state = copy.deepcopy(model.state_dict())
    expected = copy.deepcopy(model)(images, TARGETS)

    model.capture_network(torch.zeros_like(images))
    assert recorded == [(2, 3, 64, 64)]
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    clone = copy.deepcopy(model)
    losses = model(images, TARGETS)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(loss, expected[name]) for name, loss in losses.items())
    # A copy has other parameters than those that were recorded.
    nn.init.zeros_(clone.head.cls_branches[0][-1].weight)
    assert not torch.equal(clone(images, TARGETS)["cls"], losses["cls"])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(model.eval()(torch.rand(1, 3, 96, 64))) == 1  # of any shape


def test_models_without_graphs():
    """A torchvision detector makes proposals whose number depends on the images."""
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", 3)
    with pytest.raises(UserError, match="requires a model of our own"):
        model.capture_network(torch.zeros(1, 3, 64, 64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_run_is_bitwise_identical(amp, tiny, tmp_path):
    args = {"data": tiny, "hyp": None, "epochs": 2, "noplots": True}
    args |= {"device": "cuda", "deterministic": True}
    assert run_train(**args, amp=amp, project=tmp_path / "one") == 0
    assert run_train(**args, amp=amp, cuda_graphs=True, project=tmp_path / "other") == 0
    assert_same_run(tmp_path / "one" / "exp", tmp_path / "other" / "exp", ignore=("args",))
