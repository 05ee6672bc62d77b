"""utils/distributed.py: several processes compute what one process would."""

import os
import subprocess
from datetime import timedelta

import pytest
import torch.distributed as dist
from conftest import ROOT, TORCHRUN, WARNING, torchrun, train_args, write_tiny
from preloaded import run_python

from data.sampler import EpochBatchSampler
from utils.distributed import DistributedContext
from utils.errors import UserError

# Run in 1, 2 or 3 processes. Each takes its shard of 7 images and compares its results with
# those of the whole batch in one process.
PROGRAM = """
import glob, sys
from pathlib import Path
import numpy as np, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from models.head import Level, Predictions
from models.loss import detection_loss
from utils.distributed import DistributedContext

torch.manual_seed(0)
levels = (Level(8, 8, 8),)
box_logits, class_logits = torch.randn(7, 64, 4, 16), torch.randn(7, 64, 3)
corners = torch.rand(7, 5, 2) * 40
boxes = torch.cat((corners, corners + 4 + torch.rand(7, 5, 2) * 20), dim=-1)
box_counts = (0, 1, 2, 3, 4, 5, 0)
targets = [{"boxes": boxes[i, :n], "labels": torch.arange(n) % 3} for i, n in enumerate(box_counts)]


def loss_and_gradients(shard):
    leaves = box_logits.clone().requires_grad_(), class_logits.clone().requires_grad_()
    predictions = Predictions(leaves[0][shard], leaves[1][shard], levels)
    losses = detection_loss(predictions, targets[shard])
    sum(losses.values()).backward()
    return torch.stack([*losses.values()]).detach(), leaves[0].grad, leaves[1].grad


whole_batch = loss_and_gradients(slice(None))  # before there is a process group
context = DistributedContext()
rank, world_size = context.rank, context.world_size
assert context.is_main == (rank == 0)
for expected, shard in zip(whole_batch, loss_and_gradients(slice(rank, None, world_size))):
    torch.testing.assert_close(context.all_reduce_mean(shard), expected, rtol=1e-5, atol=1e-7)

assert context.all_reduce_max(15 if rank == world_size - 1 else 0) == 15
assert context.on_main(lambda: ("text", rank)) == ("text", 0)
rows = np.array([[i, rank + 0.5] for i in range(rank, 7, world_size)])
gathered = context.gather_rows(rows)
assert gathered[:, 0].tolist() == list(range(7))
assert gathered[:, 1].tolist() == [i % world_size + 0.5 for i in range(7)]
assert context.all_gather({"rank": rank}) == [{"rank": r} for r in range(world_size)]

norm = torch.nn.BatchNorm1d(4)
norm.running_mean += rank
context.broadcast_buffers(norm)
assert norm.running_mean.tolist() == [0.0] * 4

# Gradients are averaged over the processes, also when they were accumulated over two batches.
model = torch.nn.Linear(3, 2)
ddp_model = context.wrap_ddp(model, same_order=True)
for is_update_step in (False, True):
    ddp_model.require_backward_grad_sync = is_update_step
    ddp_model(torch.full((1, 3), float(rank))).sum().backward()
expected = 2 * sum(range(world_size)) / world_size
torch.testing.assert_close(model.weight.grad, torch.full((2, 3), expected))
context.shutdown()

# A gloo thread that outlives the interpreter would abort the process.
threads = [Path(name).read_text() for name in glob.glob("/proc/self/task/*/comm")]
assert not [name for name in threads if "pt_gloo" in name], threads
print("passed", flush=True)
"""


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_distributed_context_computes_the_same_in_several_processes(processes, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = torchrun(processes) if processes > 1 else []
    done = run_python([*launcher, tmp_path / "program.py", ROOT])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == processes


THREADS_PROGRAM = """
import os, sys
sys.path[:0] = sys.argv[1:3]
import torch, train
from conftest import fail_at
from utils import device

del os.environ["OMP_NUM_THREADS"]  # torchrun sets it only where it starts several processes
device._default_threads = lambda: 4
device.auto_threads = lambda _: 2 + int(os.environ["RANK"])  # of machines with another load
try:
    with fail_at("data"):
        train.main(["--device", "cpu"])
except ZeroDivisionError:
    print(f"threads: {torch.get_num_threads()}\\n", end="", flush=True)  # in one write
"""


def test_processes_compute_with_one_number_of_threads(tmp_path):
    """It is saved with the run, and each of them has it when the run is resumed."""
    (tmp_path / "program.py").write_text(THREADS_PROGRAM)
    done = run_python([*torchrun(2), tmp_path / "program.py", ROOT, ROOT / "tests"], cwd=tmp_path)
    assert done.stdout.count("threads: 2\n") == 2, done.stdout + done.stderr


# Run in two processes: reading the annotations, and filling `--cache disk`.
DATA_PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import data.formats.scan, data.images
from data.config import read_data_config
from data.dataset import ValSet, preload_images
from data.formats import read_split
from utils import distributed
from utils.cli import run_cli

context = distributed.DistributedContext()
calls = {"image_size": [], "read_image": []}


def record(module, name):
    original = getattr(module, name)

    def recording(file, channels):
        calls[name].append(Path(file).name)
        return original(file, channels)

    setattr(module, name, recording)


record(data.formats.scan, "image_size")
record(data.images, "read_image")


def main():
    config = read_data_config(Path(sys.argv[2]))
    expected = read_split(config, "train")
    calls["image_size"].clear()
    annotations = context.on_node_main(read_split, config, "train")
    assert len(calls["image_size"]) == (12 if context.is_main else 0)
    assert annotations.fingerprint() == expected.fingerprint()
    annotations.boxes[0] = context.rank  # a copy of its own, if it is changed
    context.all_reduce_max(0)
    assert (annotations.boxes[0] == context.rank).all()

    def refuse(_):
        raise OSError(28, "No space left on device")

    distributed.write_shared = refuse  # each process reads by itself
    assert context.on_node_main(read_split, config, "train").fingerprint() == expected.fingerprint()

    preload_images([ValSet(expected, 64, 32, "disk")], "disk", context)
    assert len(calls["read_image"]) == 6
    context.on_main(print, "complete")
    if context.rank == 1:
        Path(expected.files[5]).write_text("no image")
    context.all_reduce_max(0)
    preload_images([ValSet(expected, 64, 32, "disk")], "disk", context)


sys.exit(run_cli("program", main))
"""


def test_processes_share_annotations_and_the_filling_of_the_disk_cache(tmp_path):
    """At last an image of the share of rank 1 cannot be decoded, which only that rank says."""
    (tmp_path / "program.py").write_text(DATA_PROGRAM)
    data = write_tiny(tmp_path / "tiny")
    done = run_python(
        [*torchrun(2), tmp_path / "program.py", ROOT, data],
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.stdout == "complete\n", done.stderr
    files = sorted(path.name for path in (tmp_path / "tiny" / "images" / "train").glob("*.png"))
    assert len([*(tmp_path / "tiny" / "images" / "train").glob("*.npy")]) == len(files) == 12
    lines = [line for line in done.stderr.splitlines() if line.startswith("program: ")]
    (line,) = lines
    assert files[5] in line and "not an image" in line
    assert "[rank" not in done.stderr
    assert not [*tmp_path.glob("tmp*")]


def test_distributed_context_waits_for_hours(monkeypatch):
    """One process evaluates or fills a cache for longer than torch's default of 30 minutes."""
    groups = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **options: groups.append(options))
    environment = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}
    for name, value in (environment | {"TORCHELASTIC_RUN_ID": 1}).items():
        monkeypatch.setenv(name, str(value))
    DistributedContext()
    assert groups[0]["timeout"] >= timedelta(hours=12)


@pytest.mark.parametrize("processes", [2, 3])
def test_sampler_order_does_not_depend_on_the_number_of_processes(processes):
    samplers = [
        EpochBatchSampler(50, 8, (64, 640), 1, rank, processes) for rank in range(processes)
    ]
    for sampler in samplers:
        sampler.epoch, sampler.start_batch = 2, 3
    single = EpochBatchSampler(50, 8, (64, 640), 1)
    single.epoch, single.start_batch = 2, 3
    for batch, shards in zip(single, zip(*samplers, strict=True), strict=True):
        assert sorted(key for shard in shards for key in shard) == sorted(batch)
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all(sampler.batch_size == single.batch_size for sampler in samplers)


def test_sampler_refuses_a_batch_with_fewer_images_than_processes():
    with pytest.raises(UserError, match="--batch-size 3: 4 training images in batches of 2"):
        EpochBatchSampler(4, 3, (64, 64), 0, rank=0, world_size=3)


def test_distributed_context_refuses_a_world_size_not_set_by_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(UserError, match=r"WORLD_SIZE=2.*torchrun"):
        DistributedContext()


def test_user_error_in_several_processes(tmp_path):
    arguments = [
        "--project",
        str(tmp_path / "runs"),
        "--device",
        "cpu",
        "--sync-bn",
        "--epochs",
        "1",
    ]
    done = run_python([*torchrun(2), ROOT / "train.py", *arguments], cwd=ROOT)
    assert done.returncode != 0 and "train.py: --sync-bn" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_error_of_the_main_process_only_is_one_line(tmp_path):
    """The other process ends silently, and torchrun reports the exit status of the first."""
    data, project = write_tiny(tmp_path / "tiny"), tmp_path / "a file"
    project.write_text("")
    arguments = train_args(data=data, epochs=1, project=project)
    done = subprocess.run(
        [*TORCHRUN, "2", str(ROOT / "train.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    stderr = WARNING.sub("", done.stderr)
    run, _, launcher = stderr.partition("\nTraceback")  # of torchrun, about the exit status
    assert run.count("train.py: ") == 1 and "[rank" not in stderr, stderr
    assert f"train.py: --project {project}: cannot create" in run
    assert "rank      : 0 (local_rank: 0)\n  exitcode  : 2 " in launcher.partition("Root Cause")[2]
