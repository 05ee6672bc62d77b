"""Several processes compute what one would: the loss of the whole batch, one evaluation, one set of statistics."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.sampler import EpochBatchSampler
from utils.device import default_workers, select_device
from utils.distributed import DistributedContext
from utils.errors import UserError

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]

# Run in 1, 2 or 3 processes: each takes its share of 7 pictures; every process checks against the whole batch, computed alone.
PROGRAM = """
import glob, sys
from pathlib import Path
import numpy as np, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from models.head import Predictions
from models.loss import detection_loss
from utils.distributed import DistributedContext

torch.manual_seed(0)
centers = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).flip(-1) * 8 + 4
sides, logits = torch.randn(7, 64, 4, 16), torch.randn(7, 64, 3)
corners = torch.rand(7, 5, 2) * 40
boxes = torch.cat((corners, corners + 4 + torch.rand(7, 5, 2) * 20), dim=-1)
targets = [{"boxes": boxes[i, :i], "labels": torch.arange(i) % 3} for i in (0, 1, 2, 3, 4, 5, 0)]


def loss(share):
    leaf = sides.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = detection_loss(Predictions(leaf[0][share], leaf[1][share], centers, torch.full((64,), 8.0)), targets[share])
    sum(losses.values()).backward()
    return torch.stack([*losses.values()]).detach(), leaf[0].grad, leaf[1].grad


whole = loss(slice(None))  # before the processes know of each other
processes = DistributedContext()
for alone, shared in zip(whole, loss(slice(processes.rank, None, processes.count))):
    torch.testing.assert_close(processes.mean(shared), alone, rtol=1e-5, atol=1e-7)

assert processes.highest(15 if processes.rank == processes.count - 1 else 0) == 15
assert processes.on_main(lambda: ("text", processes.rank)) == ("text", 0)
own = np.array([[i, processes.rank + 0.5] for i in range(processes.rank, 7, processes.count)])
gathered = processes.gather(own)
if processes.first:
    assert gathered[:, 0].tolist() == list(range(7))
    assert gathered[:, 1].tolist() == [i % processes.count + 0.5 for i in range(7)]
else:
    assert gathered.tolist() == own.tolist()

norm = torch.nn.BatchNorm1d(4)
norm.running_mean += processes.rank
processes.broadcast_buffers(norm)
assert norm.running_mean.tolist() == [0.0] * 4

# The gradient of a model in several processes is the mean, step by step and over two batches.
model = torch.nn.Linear(3, 2)
parallel = processes.parallel(model, same_order=True)
for steps in (False, True):
    parallel.require_backward_grad_sync = steps
    parallel(torch.full((1, 3), float(processes.rank))).sum().backward()
expected = 2 * sum(range(processes.count)) / processes.count
torch.testing.assert_close(model.weight.grad, torch.full((2, 3), expected))
processes.leave()
threads = [Path(name).read_text() for name in glob.glob("/proc/self/task/*/comm")]
assert not [name for name in threads if "pt_gloo" in name], threads  # one that outlives the interpreter aborts the process
print("as one", flush=True)
"""


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_compute_what_one_would(processes, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    start = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    done = subprocess.run(
        [*start, tmp_path / "program.py", str(ROOT)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as one") == processes


@pytest.mark.parametrize("processes", [2, 3])
def test_the_order_of_the_samples_does_not_depend_on_the_processes(processes):
    shares = [EpochBatchSampler(50, 8, (64, 640), 1, rank, processes) for rank in range(processes)]
    for batches in shares:
        batches.epoch, batches.start_batch = 2, 3
    alone = EpochBatchSampler(50, 8, (64, 640), 1)
    alone.epoch, alone.start_batch = 2, 3
    for batch, parts in zip(alone, zip(*shares, strict=True), strict=True):
        assert sorted(key for part in parts for key in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(batches.batch_sizes == alone.batch_sizes for batches in shares)


def test_a_batch_too_small_for_its_processes_is_refused():
    with pytest.raises(UserError, match="--batch-size 4"):
        EpochBatchSampler(5, 4, (64, 64), 0, rank=0, world_size=3)  # batches of 2 and 3


def test_each_process_has_a_device_of_its_own():
    assert select_device("cpu", 1).type == "cpu"
    with pytest.raises(UserError, match="--device cuda:1: each"):
        select_device("cuda:1", 0)
    assert default_workers(select_device("cpu"), 1) == 0


def test_the_gpu_of_a_process(monkeypatch):
    """As on a machine with GPUs, which this one need not be."""
    current = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert select_device("auto") == select_device("cuda") == torch.device("cuda") and not current
    assert select_device("1") == torch.device("cuda:1") and not current
    assert select_device("auto", 1) == select_device("cuda", 1) == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")] * 2


def test_processes_that_torchrun_did_not_start_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(UserError, match=r"WORLD_SIZE=2.*torchrun"):
        DistributedContext()


def test_a_mistake_in_several_processes(tmp_path):
    arguments = [
        "--project",
        str(tmp_path / "runs"),
        "--device",
        "cpu",
        "--sync-bn",
        "--epochs",
        "1",
    ]
    done = subprocess.run(
        [*TORCHRUN, "2", str(ROOT / "train.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and "train.py: --sync-bn" in done.stderr
    assert not (tmp_path / "runs").exists()
