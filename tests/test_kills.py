"""A run that is killed at any moment, in one process or several, ends bitwise identical to one
that is not."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import (
    ROOT,
    assert_same_run,
    bitwise_equal,
    load_state,
    read_results,
    torchrun,
    train_args,
    write_tiny,
)
from preloaded import run_python, start_python
from torch.utils.data import DataLoader

from data.config import read_data_config
from data.dataset import ValSet, collate
from data.formats import read_split
from models import build_model
from utils.amp import amp_dtype
from utils.inference import run_inference
from utils.metrics import evaluate

PHASE_TRAIN = Path(__file__).with_name("phase_train.py")
NUM_TRAIN, NUM_VAL = 10, 12  # images
EPOCHS, LONG_EPOCHS = 8, 130  # of a run that is killed a few times, or many times
# All state that a run can have: momentum, accumulation over an uneven number of batches, counted
# samples, restarts, every augmentation.
HYP = """
optimizer: {optimizer}
accumulate: 2
mosaic: 0.7
close_mosaic: 4
flipud: 0.5
scheduler: {scheduler}
"""
SCHEDULERS = {
    "sgd": "{name: poly, warmup_epoch: 3, learning_rate_decay_a: 0.01, learning_rate_decay_b: 0.5}",
    "muon": "{warmup_epoch: 3, steps: [4, 75%], epoch_scale: 2}",
    "adamw": "{warmup_epoch: 1, lf: 'lambda x, y: (1 - x / y) * 0.8 + 0.2'}",
}
# Phases of a run -> the longest time to wait in them before the kill, in seconds: long enough for
# it to fall anywhere in the phase.
PHASES = {"warm-up": 0.05, "saving": 0.05, "validation": 0.1, "training": 1.0}
# What resumes after each kill, and saves after every step.
AUTO_RESUME = ["--resume", "auto", "--save-every", "0.001"]
TIMEOUT = 300  # seconds; on a busy machine the imports alone can take a minute

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def launcher(world_size: int) -> list[str]:
    """Return the words after `python` that run a script in `world_size` processes."""
    return torchrun(world_size) if world_size > 1 else []


def run_checked(
    command: Sequence[object], announce: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, which must succeed; phase_train.py announces to `announce`."""
    env = os.environ | ({"ANNOUNCE": str(announce)} if announce else {})
    process = run_python(command, timeout=2 * TIMEOUT, cwd=ROOT, env=env)
    assert process.returncode == 0, process.stderr
    return process


def assert_same_outputs(one: Path, other: Path) -> None:
    """Both runs have the same checkpoints, results and plots, bit for bit, except for times."""
    assert_same_run(one, other, ignore=("args", "environment"))
    best = [load_state(run_dir, "best.pt") for run_dir in (one, other)]
    for state in best:
        for row in state["progress"]["history"]:
            del row["seconds"]
    for key in (best[0].keys() | best[1].keys()) - {"args", "environment"}:
        assert bitwise_equal(best[0][key], best[1][key]), key
    for name in ("hyp.yaml", "lr.png", "train_batch.jpg", "val_batch.jpg"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert (other / "results.png").stat().st_size > 0
    assert not list(other.rglob("*.tmp"))


Uninterrupted = Callable[..., tuple[Path, list[str]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"), train=NUM_TRAIN, val=NUM_VAL)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """A function that returns the directory and the arguments of an uninterrupted run, which is
    trained when it is first asked for."""
    runs = {}

    def get(
        optimizer: str = "muon",
        world_size: int = 1,
        epochs: int = EPOCHS,
        device: str = "cpu",
        deterministic: bool = False,
        amp: str = "auto",
        weights: Path | None = None,
    ) -> tuple[Path, list[str]]:
        key = optimizer, world_size, epochs, device, deterministic, amp, weights
        if key not in runs:
            project = tmp_path_factory.mktemp("uninterrupted")
            hyp = project / "h.yaml"
            hyp.write_text(HYP.format(optimizer=optimizer, scheduler=SCHEDULERS[optimizer]))
            args = train_args(
                hyp=hyp,
                data=data,
                epochs=epochs,
                device=device,
                deterministic=deterministic,
                amp=amp,
                weights=weights,
                workers=None,
            )
            command = [*launcher(world_size), ROOT / "train.py", *args]
            run_checked([*command, "--workers", 0, "--project", project])
            runs[key] = project / "exp", args
        return runs[key]

    return get


class KilledRun:
    """A run of phase_train.py, one process of which is killed in a phase of the run."""

    def __init__(self, command: Sequence[object], announce: Path) -> None:
        self.announce = announce
        for file in announce.parent.glob(f"{announce.name}.?"):
            file.unlink()
        self.process = start_python(
            command,
            cwd=ROOT,
            env=os.environ | {"ANNOUNCE": str(announce)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def status(self, rank: int) -> tuple[int, str]:
        """Return a process's id and phase; (0, "") until it has announced them."""
        file = Path(f"{self.announce}.{rank}")
        pid, _, phase = (file.read_text() if file.exists() else "").partition(" ")
        return int(pid or 0), phase.strip()

    def kill(
        self, phase: str, max_delay: float, rank: int = 0, previous_pid: int = 0
    ) -> tuple[int, str]:
        """Kill process `rank`, up to `max_delay` seconds after the main process enters `phase`.

        A main process with the id `previous_pid`, from before a restart, does not count. Returns
        the main process's id, and its phase after the kill.
        """
        deadline = time.monotonic() + TIMEOUT
        while (status := self.status(0))[1] != phase or status[0] == previous_pid:
            assert self.process.poll() is None, (
                f"the run ended without entering {phase}: {self.process.stderr.read()}"
            )
            assert time.monotonic() < deadline, f"the run does not enter {phase}: {status}"
            time.sleep(0.002)
        time.sleep(random.uniform(0, max_delay))
        pid, _ = self.status(rank)
        assert pid, f"process {rank} has not announced its id"
        os.kill(pid, signal.SIGKILL)
        return status[0], self.status(0)[1]


def run_with_kills(
    args: Sequence[object],
    project: Path,
    target_phases: Sequence[str],
    world_size: int = 1,
    num_exact: int = 0,
) -> list[str]:
    """Run the same command until it ends by itself, after one kill for each of `target_phases`.

    The first `num_exact` kills happen as soon as the run enters the phase, and again if it had
    already left it; the others some time later. Returns the phases that the run was killed in.
    """
    announce = project / "announced"
    command = [*launcher(world_size), PHASE_TRAIN, *args, *AUTO_RESUME, "--project", project]
    phases = []
    for number, target_phase in enumerate(target_phases):
        is_exact = number < num_exact
        max_delay = 0 if is_exact else PHASES[target_phase]
        while True:
            run = KilledRun(command, announce)
            rank = random.randrange(world_size)
            phases.append(run.kill(target_phase, max_delay, rank)[1])
            assert run.process.wait(TIMEOUT) != 0
            if not is_exact or phases[-1] == target_phase:
                break
    run_checked(command, announce)
    return phases


def random_phases(count: int) -> list[str]:
    """Return each phase once, then random ones of those that come after the warm-up."""
    phases_after_warmup = ["training", "validation", "saving"]
    return [*PHASES, *random.choices(phases_after_warmup, k=count - len(PHASES))]


@pytest.mark.parametrize(("optimizer", "workers"), [("sgd", 0), ("muon", 2)])
def test_run_killed_three_times_is_bitwise_identical(
    optimizer: str, workers: int, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """Killed in the warm-up, while a checkpoint is written, and in a validation."""
    reference, args = uninterrupted(optimizer)
    phases = ["warm-up", "saving", "validation"]
    run_with_kills([*args, "--workers", workers], tmp_path, phases, num_exact=3)
    assert_same_outputs(reference, tmp_path / "exp")


@pytest.mark.kills
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_run_killed_twenty_times_is_bitwise_identical(
    optimizer: str, workers: int, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    reference, args = uninterrupted(optimizer, epochs=LONG_EPOCHS)
    phases = run_with_kills(
        [*args, "--workers", workers], tmp_path, random_phases(20), num_exact=len(PHASES)
    )
    print(f"{optimizer}, {workers} workers, killed in {phases}")
    assert set(phases) == set(PHASES)
    assert_same_outputs(reference, tmp_path / "exp")


@pytest.mark.kills
def test_fp16_run_killed_twenty_times_is_bitwise_identical(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """With the loss scale, which is halved and doubled."""
    reference, args = uninterrupted(epochs=LONG_EPOCHS, amp="fp16")
    phases = run_with_kills([*args, "--workers", 0], tmp_path, random_phases(20))
    print(f"fp16, killed in {phases}")
    assert_same_outputs(reference, tmp_path / "exp")


@pytest.mark.kills
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_run_killed_twenty_times_is_bitwise_identical(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    reference, args = uninterrupted(epochs=LONG_EPOCHS, device="cuda", deterministic=True)
    phases = run_with_kills([*args, "--workers", 2], tmp_path, random_phases(20))
    print(f"CUDA, killed in {phases}")
    assert_same_outputs(reference, tmp_path / "exp")


@pytest.mark.kills
@pytest.mark.parametrize(("world_size", "kills"), [(2, 20), (3, 5)])
def test_distributed_run_with_killed_processes_is_bitwise_identical(
    world_size: int, kills: int, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    reference, args = uninterrupted(world_size=world_size, epochs=LONG_EPOCHS)
    phases = run_with_kills([*args, "--workers", 0], tmp_path, random_phases(kills), world_size)
    print(f"{world_size} processes, killed in {phases}")
    assert_same_outputs(reference, tmp_path / "exp")


def test_torchrun_restarts_killed_processes(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """One of two processes is killed and the run ends; then torchrun restarts the run twice."""
    reference, args = uninterrupted(world_size=2)
    program = [PHASE_TRAIN, *args, "--workers", 0, *AUTO_RESUME, "--project", tmp_path]
    run = KilledRun([*launcher(2), *program], tmp_path / "announced")
    run.kill("training", 0.3, rank=1)
    assert run.process.wait(TIMEOUT) != 0
    run = KilledRun([*launcher(2), "--max-restarts", 3, *program], tmp_path / "announced")
    pid, _ = run.kill("validation", 0.1, rank=0)
    run.kill("training", 0.3, rank=0, previous_pid=pid)
    assert run.process.wait(2 * TIMEOUT) == 0, run.process.stderr.read()
    assert_same_outputs(reference, tmp_path / "exp")


def test_resume_in_two_processes_makes_the_same_samples(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """A run of one process is killed and resumed in two.

    Each process makes its fraction of the samples that the uninterrupted run made from there on,
    in the same order.
    """
    epochs, batches, size = 6, 3, 4  # of 10 images in each epoch, two of them twice
    _, args = uninterrupted()
    options = ["--workers", 0, "--epochs", epochs, "--noplots", "--noval"]
    command = [PHASE_TRAIN, *args, *options]
    run_checked([*command, "--project", tmp_path / "uninterrupted"], tmp_path / "one")
    train_samples, _ = read_samples(tmp_path / "one.0.samples")
    assert len(train_samples) == epochs * batches * size >= epochs * NUM_TRAIN

    killed = [*command, "--project", tmp_path / "killed", "--save-every", 0.001]
    run = KilledRun(killed, tmp_path / "first")
    run.kill("training", 0.3)
    run.process.wait()
    run_dir = tmp_path / "killed" / "exp"
    progress = load_state(run_dir)["progress"]
    resumed = run_checked([*launcher(2), PHASE_TRAIN, "--resume", run_dir], tmp_path / "two")
    assert "world_size 1 -> 2" in resumed.stderr
    assert "not be bitwise identical" in resumed.stderr

    first_batch = progress["epoch"] * batches + progress["batch"]
    val_samples = []
    for rank in (0, 1):
        expected = []
        for first in range(first_batch * size, len(train_samples), size):
            expected += train_samples[first + size * rank // 2 : first + size * (rank + 1) // 2]
        made_train_samples, made_val_samples = read_samples(tmp_path / f"two.{rank}.samples")
        assert made_train_samples == expected
        val_samples += made_val_samples
    assert sorted(val_samples) == [(i,) for i in range(NUM_VAL)]
    assert [row["epoch"] for row in read_results(run_dir)] == [*map(str, range(epochs))]


def test_validation_in_two_processes_has_the_metrics_of_one(
    uninterrupted: Uninterrupted, data: Path, trained_run: Path
) -> None:
    """Of a model that detects something."""
    weights = trained_run / "exp" / "weights" / "best.pt"
    run_dir, _ = uninterrupted(world_size=2, epochs=4, weights=weights)
    best = load_state(run_dir, "best.pt")
    split = read_split(read_data_config(data), "val")
    model = build_model("yolo-n", 2)
    model.load_state_dict(best["ema"]["model"])
    loader = DataLoader(ValSet(split, 64, stride=32), batch_size=4, collate_fn=collate)
    device = torch.device("cpu")
    detections = run_inference(
        model.to(memory_format=torch.channels_last), loader, device, amp_dtype("auto", device)
    )
    assert set(detections[:, 0]) == set(range(NUM_VAL))
    result = evaluate(split.ground_truth(), detections)
    best_map = best["progress"]["best_map"]
    assert best_map > 0.02
    assert result.overall["mAP50-95"] == pytest.approx(best_map, rel=0.02)


def read_samples(file: Path) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the keys of the samples that a process has made, in order.

    (epoch, position, four image indices) of training samples; (image index,) of validation ones.
    """
    keys = [tuple(map(int, line.split())) for line in file.read_text().splitlines()]
    return [key for key in keys if len(key) > 1], [key for key in keys if len(key) == 1]
