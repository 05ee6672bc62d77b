"""A run that was killed, at any moment, in one process or several, ends in the weights of a run that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import rows, same, weights, write_tiny
from torch.utils.data import DataLoader

from data.config import read_data_config
from data.dataset import ValSet, collate
from data.formats import read_split
from models import build_model
from utils.device import prefers_bf16
from utils.inference import run_inference
from utils.metrics import evaluate, to_coco_gt

ROOT = Path(__file__).parents[1]
ANNOUNCED = Path(__file__).with_name("phase_train.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
SIZE = ["--imgsz", "64", "--batch-size", "4"]
EPOCHS, MANY_EPOCHS = 12, 80  # for a few kills, for many
# Whatever state a run can have: momentum, accumulation over an uneven number of batches, samples counted, restarts,
# every augmentation.
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
    "muon": "{warmup_epoch: 3, steps: [5, 60%], epoch_scale: 2}",
    "adamw": "{warmup_epoch: 1, lf: 'lambda x, y: (1 - x / y) * 0.8 + 0.2'}",
}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def finished(command: list[object], **options: object) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == 0, done.stderr
    return done


def assert_same_run(one: Path, other: Path) -> None:
    """Every tensor and number of the state, the best model, the table and the pictures; seconds apart."""
    a, b = weights(one), weights(other)
    for key in a.keys() - {"args", "rows", "seconds", "arithmetic"}:
        assert same(a[key], b[key]), key
    for row in (tables := [rows(one), rows(other)])[0] + tables[1]:
        del row["seconds"]
    assert tables[0] == tables[1]
    best = [weights(folder, "best.pt") for folder in (one, other)]
    assert all(same(best[0][key], best[1][key]) for key in best[0].keys() - {"args"})
    for name in ("hyp.yaml", "lr.png", "train_batch.jpg", "val_batch.jpg"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert (other / "results.png").stat().st_size > 0
    assert not list(other.rglob("*.tmp"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"), train=18, val=24)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Gives the folder of an uninterrupted run, trained when it is first asked for, and its arguments."""
    runs = {}

    def uninterrupted(
        optimizer: str = "muon",
        processes: int = 1,
        epochs: int = EPOCHS,
        device: tuple[str, ...] = ("cpu",),
    ) -> tuple[Path, list[str]]:
        key = optimizer, processes, epochs, device
        if key not in runs:
            folder = tmp_path_factory.mktemp("whole")
            (folder / "h.yaml").write_text(
                HYP.format(optimizer=optimizer, scheduler=SCHEDULERS[optimizer])
            )
            options = {"--hyp": folder / "h.yaml", "--data": data, "--epochs": epochs}
            arguments = [str(part) for option in options.items() for part in option] + [
                *SIZE,
                "--device",
                *device,
            ]
            start = [*TORCHRUN, processes] if processes > 1 else [sys.executable]
            finished([*start, ROOT / "train.py", *arguments, "--workers", 0, "--project", folder])
            runs[key] = folder / "exp", arguments
        return runs[key]

    return uninterrupted


class Prey:
    """A run that says what it is doing, and is killed for it."""

    def __init__(self, command: list[object], announce: Path) -> None:
        self.announce = announce
        for file in announce.parent.glob(f"{announce.name}.?"):
            file.unlink()
        environment = os.environ | {"ANNOUNCE": str(announce)}
        self.process = subprocess.Popen(
            [*map(str, command)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def now(self, rank: int) -> tuple[int, str]:
        """The process's number and phase; (0, "") before it has said any."""
        file = Path(f"{self.announce}.{rank}")
        number, _, phase = (file.read_text() if file.exists() else "").partition(" ")
        return int(number or 0), phase.strip()

    def kill(self, phase: str, wait: float, rank: int = 0, other_than: int = 0) -> tuple[int, str]:
        """Kill process `rank` up to `wait` seconds after the first process, if it is not `other_than`, has come to `phase`.

        The first process's number, and its phase after the shot.
        """
        deadline = time.monotonic() + 120
        while (now := self.now(0))[1] != phase or now[0] == other_than:
            assert self.process.poll() is None, (
                f"the run ended before it was in {phase}: {self.process.stderr.read()}"
            )
            assert time.monotonic() < deadline, f"the run is never in {phase}, but in {now}"
            time.sleep(0.002)
        time.sleep(random.uniform(0, wait))
        number, _ = self.now(rank)
        assert number, f"process {rank} has not said its number"
        os.kill(number, signal.SIGKILL)
        return now[0], self.now(0)[1]


# How long to wait at most before the shot: long enough to fall anywhere in the phase.
PHASES = {"warm-up": 0.05, "saving": 0.05, "validation": 0.1, "training": 1.0}


def killed_again_and_again(
    start: list[object],
    arguments: list[object],
    project: Path,
    aims: list[str],
    processes: int = 1,
    sure: int = 0,
) -> list[str]:
    """Start the same command again after each kill, and let it end; the phases that it was killed in.

    There is a shot for each of `aims`, phases: for the first `sure` of them as soon as the run is in it, and once more if it was
    not any longer; for the rest some time later.
    """
    command = [
        *start,
        ANNOUNCED,
        *arguments,
        "--resume",
        "auto",
        "--save-every",
        0.001,
        "--project",
        project,
    ]
    phases = []
    for number, aim in enumerate(aims):
        at_once = number < sure
        while True:
            prey = Prey(command, project / "announced")
            phases.append(
                prey.kill(aim, 0 if at_once else PHASES[aim], rank=random.randrange(processes))[1]
            )
            assert prey.process.wait(120) != 0
            if not at_once or phases[-1] == aim:
                break
    finished(command, env=os.environ | {"ANNOUNCE": str(project / "announced")})
    return phases


@pytest.mark.parametrize(("optimizer", "workers"), [("sgd", 0), ("muon", 2)])
def test_a_run_killed_three_times(optimizer, workers, whole, tmp_path):
    """Once in the warm-up, once while a checkpoint is written, once in validation."""
    reference, arguments = whole(optimizer)
    aims = ["warm-up", "saving", "validation"]
    killed_again_and_again(
        [sys.executable], [*arguments, "--workers", workers], tmp_path, aims, sure=3
    )
    assert_same_run(reference, tmp_path / "exp")


def random_aims(kills: int) -> list[str]:
    """Each phase once, then any that is left when the warm-up is over."""
    return [*PHASES, *random.choices(["training", "validation", "saving"], k=kills - len(PHASES))]


@pytest.mark.kills
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_run_killed_twenty_times(optimizer, workers, whole, tmp_path):
    reference, arguments = whole(optimizer, 1, MANY_EPOCHS)
    aims, sure = random_aims(20), len(PHASES)
    phases = killed_again_and_again(
        [sys.executable], [*arguments, "--workers", workers], tmp_path, aims, sure=sure
    )
    print(f"{optimizer}, {workers} workers, killed in {phases}")
    assert set(phases) == set(PHASES)
    assert_same_run(reference, tmp_path / "exp")


@pytest.mark.kills
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_cuda_killed_twenty_times(whole, tmp_path):
    reference, arguments = whole("muon", 1, MANY_EPOCHS, ("cuda", "--deterministic"))
    phases = killed_again_and_again(
        [sys.executable], [*arguments, "--workers", 2], tmp_path, random_aims(20)
    )
    print(f"CUDA, killed in {phases}")
    assert_same_run(reference, tmp_path / "exp")


@pytest.mark.kills
@pytest.mark.parametrize(("processes", "kills"), [(2, 20), (3, 5)])
def test_several_processes_of_which_one_is_killed_again_and_again(
    processes, kills, whole, tmp_path
):
    reference, arguments = whole("muon", processes, MANY_EPOCHS)
    aims = random_aims(kills)
    phases = killed_again_and_again(
        [*TORCHRUN, processes], [*arguments, "--workers", 0], tmp_path, aims, processes
    )
    print(f"{processes} processes, killed in {phases}")
    assert_same_run(reference, tmp_path / "exp")


def test_torchrun_restarts_a_run_whose_processes_are_killed(whole, tmp_path):
    """Two processes; one is killed and takes the run with it; then torchrun itself starts it again, twice."""
    reference, arguments = whole("muon", 2)
    arguments = [
        ANNOUNCED,
        *arguments,
        "--workers",
        0,
        "--resume",
        "auto",
        "--save-every",
        0.001,
        "--project",
        tmp_path,
    ]
    prey = Prey([*TORCHRUN, 2, *arguments], tmp_path / "announced")
    prey.kill("training", 1.0, rank=1)
    assert prey.process.wait(120) != 0
    prey = Prey([*TORCHRUN, 2, "--max-restarts", 3, *arguments], tmp_path / "announced")
    number, _ = prey.kill("validation", 0.1, rank=0)
    prey.kill("training", 1.0, rank=0, other_than=number)
    assert prey.process.wait(300) == 0, prey.process.stderr.read()
    assert_same_run(reference, tmp_path / "exp")


def test_two_processes_take_over_from_one(whole, tmp_path):
    """The same samples in the same order: each process's are its share of what the uninterrupted run made from there on."""
    epochs, sizes = 8, [4, 3, 4, 3, 4]  # of an epoch's batches: 18 pictures by 4, as even as can be
    _, arguments = whole()
    command = [
        sys.executable,
        ANNOUNCED,
        *arguments,
        "--workers",
        0,
        "--epochs",
        epochs,
        "--noplots",
        "--noval",
    ]
    finished(
        [*command, "--project", tmp_path / "whole"],
        env=os.environ | {"ANNOUNCE": str(tmp_path / "one")},
    )
    made = [key for key in samples(tmp_path / "one.0.samples") if len(key) == 6]
    assert len(made) == epochs * 18

    prey = Prey(
        [*command, "--project", tmp_path / "runs", "--save-every", 0.001], tmp_path / "first"
    )
    prey.kill("training", 0.5)
    prey.process.wait()
    state = weights(tmp_path / "runs" / "exp")
    environment = os.environ | {"ANNOUNCE": str(tmp_path / "two")}
    done = finished(
        [*TORCHRUN, 2, ANNOUNCED, "--resume", tmp_path / "runs" / "exp"], env=environment
    )
    assert "processes 1 (now 2)" in done.stderr and "not to the same bits" in done.stderr
    made_by = {}
    for rank in (0, 1):
        share, at = [], state["epoch"] * 18 + sum(sizes[: state["batch"]])
        for size in sizes[state["batch"] :] + sizes * (epochs - state["epoch"] - 1):
            share += made[at + size * rank // 2 : at + size * (rank + 1) // 2]
            at += size
        assert at == len(made)
        made_by[rank] = samples(tmp_path / f"two.{rank}.samples")
        assert [key for key in made_by[rank] if len(key) == 6] == share
    validated = [key for keys in made_by.values() for key in keys if len(key) == 1]
    assert sorted(validated) == [(i,) for i in range(24)]
    assert [row["epoch"] for row in rows(tmp_path / "runs" / "exp")] == [
        str(epoch) for epoch in range(epochs)
    ]


def test_two_processes_find_what_one_finds(whole, data):
    """The figures of a validation in two processes, and those of the same weights over the whole split at once."""
    folder, _ = whole("muon", 2, 40)
    best = weights(folder, "best.pt")
    split = read_split(read_data_config(data), "val")
    model = build_model("yolo-n", 2)
    model.load_state_dict(best["average"])
    loader = DataLoader(ValSet(split, 64, stride=32), batch_size=4, collate_fn=collate)
    found = run_inference(
        model.to(memory_format=torch.channels_last),
        loader,
        torch.device("cpu"),
        prefers_bf16(torch.device("cpu")),
    )
    assert set(found[:, 0]) == set(range(24))
    result = evaluate(
        to_coco_gt(
            split.sizes, split.offsets, split.boxes, split.labels, split.crowd, split.class_names
        ),
        found,
    )
    assert best["best"] > 0.02 and result.overall["mAP50-95"] == pytest.approx(
        best["best"], rel=0.02
    )


def samples(file: Path) -> list[tuple[int, ...]]:
    """The keys that a process has made samples of, in order: (epoch, place, picture) in training, (picture,) in validation."""
    return [tuple(map(int, line.split())) for line in file.read_text().splitlines()]
