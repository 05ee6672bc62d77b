"""small_epochs: the first epochs of a run have samples of half --imgsz."""

import signal

import pytest
import torch
from conftest import assert_same_run, load_state, resume_train, run_train, signal_at, write_hyp

from data.sampler import EpochBatchSampler
from models.detector import Detector
from utils.hyp import Hyp
from utils.letterbox import small_bounds

BATCHES = 3  # 12 images in batches of 4


@pytest.fixture
def sizes():
    """Height and width of the batches that a detector trains on."""
    sizes = []

    def record(module, args):
        if isinstance(module, Detector) and module.training:
            sizes.append(tuple(args[0].shape[-2:]))

    with torch.nn.modules.module.register_module_forward_pre_hook(record):
        yield sizes


def test_first_epochs_train_on_small_samples_and_resume_bitwise_identically(
    tiny, tmp_path, sizes, capsys
):
    """Of the very first batch on samples of full size: a GPU that is too small fails at once."""
    hyp = write_hyp(tmp_path, "small_epochs: 2\nclose_mosaic: 2\n")
    args = {"data": tiny, "hyp": hyp, "epochs": 8, "imgsz": 96, "batch_size": 4, "noplots": True}
    assert run_train(**args, project=tmp_path / "whole") == 0
    assert "first 2 epochs at 64 px (small_epochs)" in capsys.readouterr().out
    small, full = [(64, 64)], [(96, 96)]
    assert sizes == full + small * (2 * BATCHES - 1) + full * (6 * BATCHES)

    with signal_at("batch", epoch=1, batch=1):
        assert run_train(**args, project=tmp_path / "resumed") == 128 + signal.SIGTERM
    assert resume_train(tmp_path / "resumed" / "exp") == 0
    assert_same_run(tmp_path / "whole" / "exp", tmp_path / "resumed" / "exp")


@pytest.mark.parametrize(("text", "epochs"), [("small_epochs: 0\n", 4), ("small_epochs: 6\n", 3)])
def test_runs_without_small_epochs(text, epochs, tiny, tmp_path, sizes, capsys):
    """None where the hyp file says so, or the run is shorter than four epochs."""
    hyp = write_hyp(tmp_path, text)
    assert run_train(data=tiny, hyp=hyp, epochs=epochs, noplots=True, project=tmp_path) == 0
    assert {*sizes} == {(64, 64)} and "(small_epochs)" not in capsys.readouterr().out


def test_small_epochs_are_at_most_a_quarter_of_the_run():
    hyp = Hyp(small_epochs=6)
    assert [hyp.num_small_epochs(epochs) for epochs in (1, 3, 4, 16, 23, 24, 40, 300)] == [
        *(0, 0, 1, 4, 5, 6, 6, 6)
    ]


@pytest.mark.parametrize(
    ("bounds", "min_size", "expected"),
    [
        ((320, 320), 32, (160, 160)),
        ((160, 160), 32, (96, 96)),  # 80 is not a multiple of the stride
        ((320, 640), 32, (160, 320)),
        ((32, 32), 32, (32, 32)),
        ((64, 96), 32, (64, 64)),  # of 32 pixels a batch of one image would be refused
        ((320, 320), 250, (256, 256)),
    ],
)
def test_small_samples_suit_the_model(bounds, min_size, expected):
    assert small_bounds(bounds, 32, min_size) == expected


def test_small_epochs_of_several_sizes():
    sampler = EpochBatchSampler(400, 4, (320, 640), seed=0, small_epochs=1, small_imgsz=(160, 320))
    sizes = [batch[0].imgsz for batch in sampler]
    assert {*sizes[1:]} == {*range(160, 321, 32)}
    sampler.epoch = 1
    assert {batch[0].imgsz for batch in sampler} == {*range(320, 641, 32)}


def test_a_run_from_before_small_epochs_is_resumed_without(tiny, tmp_path, sizes):
    hyp = write_hyp(tmp_path, "small_epochs: 0\n")
    args = {"data": tiny, "hyp": hyp, "epochs": 8, "noplots": True, "project": tmp_path}
    with signal_at("batch", epoch=0, batch=1):
        assert run_train(**args) == 128 + signal.SIGTERM
    path = tmp_path / "exp" / "weights" / "last.pt"
    state = load_state(tmp_path / "exp")
    del state["hyp"]["small_epochs"]
    torch.save(state, path)
    assert resume_train(path) == 0
    assert {*sizes} == {(64, 64)}
