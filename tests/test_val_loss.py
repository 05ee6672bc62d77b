"""The validation losses in results.csv: those that training computes, of the whole split at once.

The expected values are the losses of the model for all images in one batch.
"""

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    load_state,
    read_results,
    resume_train,
    torchrun,
    train_args,
    write_tiny,
)
from preloaded import run_python
from torch.utils.data import DataLoader, Subset

from data.config import read_data_config
from data.dataset import ValSet, collate
from data.formats import read_split
from models import build_model, load
from utils.hyp import Hyp
from utils.inference import run_inference
from utils.val_loss import LossTotals, mean_losses

CPU = torch.device("cpu")
NAMES = ("box", "cls", "dfl")


def val_set(data):
    return ValSet(read_split(read_data_config(data), "val"), 64, stride=32)


def losses_in_one_batch(model, samples, hyp):
    """Return the losses of all `samples` as one training batch, times the hyp file's weights."""
    images, targets = collate([samples[i] for i in range(len(samples))])
    with torch.no_grad():
        losses = model.losses(model.prepare(images)[0], targets)
    return {f"val/{name}": float(losses[name]) * hyp.loss_weights[name] for name in NAMES}


def test_val_losses_of_a_run_are_those_of_its_final_weights(trained_run):
    run_dir = trained_run / "exp"
    model = load(run_dir / "weights" / "last.pt").to(memory_format=torch.channels_last)
    expected = losses_in_one_batch(model, val_set(trained_run / "tiny" / "data.yaml"), Hyp())
    rows = read_results(run_dir)
    assert {name: float(rows[-1][name]) for name in expected} == pytest.approx(expected, abs=2e-5)
    assert all(float(row[name]) > 0 for row in rows for name in expected)
    assert float(rows[-1]["val/box"]) < 0.8 * float(rows[0]["val/box"])


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A model, and a validation set whose last image has an object and a crowd over all of it."""
    folder = tmp_path_factory.mktemp("crowded")
    data = write_tiny(folder / "tiny", val=5)
    annotations = read_split(read_data_config(data), "val")
    annotations.crowd[-1] = True
    annotations.boxes[-1] = np.float32([0, 0, 1, 1])
    torch.manual_seed(0)
    return build_model("yolo-n", 2).eval(), ValSet(annotations, 64, stride=32)


def shard_totals(model, samples, indices, batch_size):
    totals = LossTotals()
    loader = DataLoader(Subset(samples, indices), batch_size, collate_fn=collate)
    rows = run_inference(model, loader, CPU, torch.float32, losses=totals)
    return totals.read(), rows


def test_val_losses_do_not_depend_on_batches_and_processes(crowded):
    model, samples = crowded
    images, targets = collate([samples[i] for i in range(5)])
    for target in targets:
        for name in ("boxes", "labels"):
            target[name] = target[name][~target["crowd"]]  # training leaves them out
    with torch.no_grad():
        losses = model.losses(images.float() / 255, targets)
    expected = {name: float(loss) for name, loss in losses.items()}
    for world_size, batch_size in ((1, 1), (1, 2), (1, 5), (2, 2), (7, 1)):  # 7: no image for some
        shards = [range(rank, 5, world_size) for rank in range(world_size)]
        totals = [shard_totals(model, samples, shard, batch_size)[0] for shard in shards]
        assert mean_losses(totals) == pytest.approx(expected, rel=1e-5), (world_size, batch_size)


def test_val_losses_take_one_forward_pass_and_leave_the_detections_as_they_are(crowded):
    model, samples = crowded
    passes = []
    hook = model.backbone.register_forward_hook(lambda *_: passes.append(1))
    _, rows = shard_totals(model, samples, range(5), 2)
    hook.remove()
    assert len(passes) == 3
    loader = DataLoader(samples, 2, collate_fn=collate)
    assert np.array_equal(rows, run_inference(model, loader, CPU, torch.float32))


def test_val_losses_without_an_object():
    assert mean_losses([({}, 0.0)]) == {}
    assert mean_losses([({"cls": 3.0}, 0.25), ({"cls": 1.0}, 0.0)]) == {"cls": 4.0}


def test_val_losses_of_two_processes_with_different_numbers_of_batches(tmp_path):
    data = write_tiny(tmp_path / "tiny")  # 5 images: 3 and 2, in batches of one
    options = {"epochs": 1, "batch_size": 2, "amp": "off", "noplots": True}
    arguments = train_args(data=data, project=tmp_path, **options)
    done = run_python([*torchrun(2), ROOT / "train.py", *arguments], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    model = load(tmp_path / "exp" / "weights" / "last.pt").to(memory_format=torch.channels_last)
    expected = losses_in_one_batch(model, val_set(data), Hyp())
    (row,) = read_results(tmp_path / "exp")
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-4)


def test_a_run_from_before_the_val_losses_is_resumed_with_them(moved_run):
    run_dir = moved_run / "runs" / "exp"
    path = run_dir / "weights" / "last.pt"
    state = load_state(run_dir)
    for row in state["progress"]["history"]:
        for name in NAMES:
            del row[f"val/{name}"]
    torch.save(state, path)
    assert resume_train(path, noplots=None) == 0
    rows = read_results(run_dir)
    columns = [*rows[0]]
    assert columns[1:7] == [f"{split}/{name}" for split in ("train", "val") for name in NAMES]
    assert [row["val/box"] == "" for row in rows] == [True, False, False]
    assert all(row["train/box"] and row["metrics/mAP50"] and row["lr/0"] for row in rows)


def test_torchvision_detectors_have_no_val_losses():
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", 2).eval()
    detections, losses, divisor = model.detect_and_sum_losses(torch.zeros(1, 3, 64, 64), [{}])
    assert losses == {} and divisor is None and {*detections[0]} == {"boxes", "scores", "labels"}
