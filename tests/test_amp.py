"""--amp: the precision by the hardware, and float16 with a loss scale that resumes exactly."""

import signal

import pytest
import torch
from conftest import (
    assert_same_run,
    load_state,
    read_results,
    resume_train,
    run_train,
    signal_at,
)

import val
from utils import amp
from utils.amp import LossScaler, amp_dtype, amp_name, inference_dtype


@pytest.mark.parametrize(
    ("bf16", "device", "capability", "expected"),
    [
        (True, "cuda", (8, 0), "bf16"),
        (False, "cuda", (7, 5), "fp16"),
        (False, "cuda", (7, 0), "fp16"),
        (False, "cuda", (6, 1), "off"),
        (True, "cpu", None, "bf16"),
        (False, "cpu", None, "off"),
    ],
)
def test_auto_is_the_fastest_that_the_device_has(bf16, device, capability, expected, monkeypatch):
    monkeypatch.setattr(amp, "prefers_bf16", lambda device: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert amp_name(amp_dtype("auto", torch.device(device))) == expected


def test_names_are_types():
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}
    for name, dtype in types.items():
        assert amp_dtype(name, torch.device("cpu")) == dtype and amp_name(dtype) == name


def test_a_trained_model_computes_in_the_type_of_its_training(tiny, tmp_path, capsys, monkeypatch):
    """So val.py repeats the metrics of training: of fp16 only on a GPU, CPUs are slow in it."""
    expected = {"bf16": "bf16", "off": "off", "auto": "bf16", "fp16": "bf16"}
    monkeypatch.setattr(amp, "prefers_bf16", lambda device: True)
    for name, dtype in expected.items():
        assert amp_name(inference_dtype(name, torch.device("cpu"))) == dtype
    assert inference_dtype("fp16", torch.device("cuda")) == torch.float16
    for name in ("bf16", "off"):
        assert run_train(data=tiny, epochs=1, amp=name, noplots=True, project=tmp_path / name) == 0
        weights = tmp_path / name / "exp" / "weights" / "best.pt"
        capsys.readouterr()
        command = ["--weights", weights, "--noplots", "--device", "cpu", "--project", tmp_path]
        assert val.main([str(word) for word in command]) == 0
        (timing,) = (line for line in capsys.readouterr().out.splitlines() if "ms/image" in line)
        assert (", bf16:" in timing) == (name == "bf16")


def test_fp16_run_learns_and_resumes_bitwise_identically(tiny, tmp_path):
    args = {"data": tiny, "hyp": None, "epochs": 6, "amp": "fp16", "noplots": True}
    assert run_train(**args, project=tmp_path / "whole") == 0
    whole = load_state(tmp_path / "whole" / "exp")
    scaler = whole["scaler"]
    # The default scale overflows in the first steps; that is no fault of the model.
    assert 1 <= scaler["scale"] <= 2**16 and scaler["_growth_tracker"] > 0
    assert whole["progress"]["skipped_steps"] == 0
    assert all(tensor.dtype != torch.float16 for tensor in whole["model"].values())
    rows = read_results(tmp_path / "whole" / "exp")
    assert float(rows[-1]["train/cls"]) < float(rows[0]["train/cls"])

    with signal_at("batch", epoch=2, batch=1):
        assert run_train(**args, project=tmp_path / "resumed") == 128 + signal.SIGTERM
    assert resume_train(tmp_path / "resumed" / "exp") == 0
    assert_same_run(tmp_path / "whole" / "exp", tmp_path / "resumed" / "exp")


def test_scale_follows_overflows_and_is_restored():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = LossScaler(torch.device("cpu"), torch.float16)
    for factor in (torch.inf, 1.0):
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_(optimizer)
        is_finite = bool(weight.grad.isfinite().all())
        assert is_finite == (factor == 1.0)
        assert is_finite or scaler.overflows(torch.tensor(3.0))
        assert not scaler.overflows(torch.tensor(torch.nan))
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 2**15
    resumed = LossScaler(torch.device("cpu"), torch.float16)
    resumed.load_state_dict(scaler.state_dict())
    assert resumed.state_dict() == scaler.state_dict()
    resumed.load_state_dict({})  # of a run that had no scale
    assert resumed.state_dict() == scaler.state_dict()


def test_other_types_have_no_scale():
    scaler = LossScaler(torch.device("cpu"), torch.bfloat16)
    loss = torch.tensor(2.0)
    assert scaler.scale(loss) is loss and scaler.state_dict() == {}
    assert not scaler.overflows(loss)
