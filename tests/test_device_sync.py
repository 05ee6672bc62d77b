"""One training step on a device that is not the CPU: no mixed devices, at most one wait for it.

A wait leaves the device without work until the next operations are queued. No GPU is needed, see
device_sync.py; a process of its own, because a device is registered for good.
"""

import json

import pytest
from conftest import ROOT
from preloaded import run_python

OPTIMIZERS = ("sgd", "adamw", "muon")


def waits_in_a_step(
    model: str, optimizers: tuple[str, ...] = OPTIMIZERS
) -> dict[str, list[tuple[str, str]]]:
    """Return by optimizer what waited for the device in a step: what, and the line."""
    script = ROOT / "tests" / "device_sync.py"
    result = run_python([script, model, *optimizers])
    if result.returncode == 3:
        pytest.skip(result.stdout)
    # An operation that mixes devices has ended it.
    assert result.returncode == 0, result.stderr[-3000:]
    steps = [json.loads(line) for line in result.stdout.splitlines()]
    return {step["optimizer"]: step["waits"] for step in steps}


@pytest.mark.parametrize("model", ["yolo-n", "yolo-n+torchvision/resnet18"])
def test_training_step_of_yolo_waits_once(model):
    steps = waits_in_a_step(model)
    assert [*steps] == [*OPTIMIZERS]
    for optimizer, waits in steps.items():
        assert len(waits) == 1, (optimizer, waits)
        assert waits[0][0] == "item" and waits[0][1].startswith("train.py:"), waits


def test_training_step_of_torchvision_detectors_waits_once_outside_torchvision():
    steps = waits_in_a_step("torchvision/fcos_resnet50_fpn")
    assert [*steps] == [*OPTIMIZERS]
    for optimizer, waits in steps.items():
        torchvision = ("torchvision/", "backward pass")
        outside = [wait for wait in waits if not wait[1].startswith(torchvision)]
        assert len(outside) == 1, (optimizer, outside)


def test_transformers_detectors_wait_once_outside_transformers(tmp_path):
    """Its matcher waits for the costs in every layer, its encoder for a check of the numbers."""
    pytest.importorskip("transformers", minversion="5.18")
    from test_transformers_detectors import dfine_config, save_folder

    # Without denoising queries, whose number is known to a real device only.
    folder = save_folder(tmp_path / "hub", dfine_config(num_denoising=0))
    steps = waits_in_a_step(f"transformers/{folder}", ("adamw", "validation"))
    transformers = ("transformers/", "backward pass")
    waits_of = {
        name: [wait for wait in waits if not wait[1].startswith(transformers)]
        for name, waits in steps.items()
    }
    ((what, line),) = waits_of["adamw"]
    assert what == "item" and line.startswith("train.py:"), line
    ((what, line),) = waits_of["validation"]
    assert what == "copy to the CPU" and line.startswith("models/detector.py:"), line


def test_validation_waits_once_a_batch():
    """For the detections that NMS selects from, and not for the losses."""
    ((what, line),) = waits_in_a_step("yolo-n", ("validation",))["validation"]
    assert what == "copy to the CPU" and line.startswith("models/detector.py:"), line
