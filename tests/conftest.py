"""Shared by the tests: small datasets, runs, their stages, and what they leave behind."""

import csv
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

# Tests run side by side, and torch's threads would wait for each other in turns; and the last bits
# depend on their number, which a run otherwise chooses by the load at its start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; read when its library is imported

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from data.formats import Annotations
from utils.log import logger

settings.register_profile("slow machines", deadline=None)
settings.load_profile("slow machines")

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
QUICK_HYP = ROOT / "tests" / "quick.yaml"
BCCD = ROOT.parent / "shared" / "datasets" / "bccd"


def write_tiny(folder: Path, train: int = 12, val: int = 5, classes: int = 2) -> Path:
    """Write a dataset in the YOLO layout and return its data.yaml.

    Bright rectangles on dark noise; the brightness is the class.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 60, (64, 80, 3), dtype=np.uint8)
            lines = []
            for _ in range(int(rng.integers(1, 4))):
                label = int(rng.integers(classes))
                x, y, w, h = (
                    int(v)
                    for v in (rng.integers(0, 50), rng.integers(0, 34), *rng.integers(12, 30, 2))
                )
                pixels[y : y + h, x : x + w] = 140 + 100 * label
                lines.append(f"{label} {(x + w / 2) / 80} {(y + h / 2) / 64} {w / 80} {h / 64}\n")
            Image.fromarray(pixels).save(folder / "images" / split / f"{i}.png")
            (folder / "labels" / split / f"{i}.txt").write_text("".join(lines))
    data = folder / "data.yaml"
    names = [f"class{k}" for k in range(classes)]
    data.write_text(f"path: .\ntrain: images/train\nval: images/val\nnames: {names}\n")
    return data


def few_shapes(folder: Path, train: int, val: int) -> Path:
    """Return a data.yaml of the first images of the built-in dataset, which is drawn if needed."""
    from data.config import read_data_config
    from data.listing import list_images
    from data.shapes import make_builtin

    config = read_data_config(ROOT / "data" / "shapes.yaml")
    make_builtin(config)
    for split, count in (("train", train), ("val", val)):
        files = list_images(Path(config.path) / "images" / split).files[:count]
        (folder / f"{split}.txt").write_text("\n".join(files))
    data = folder / "few.yaml"
    data.write_text(f"train: train.txt\nval: val.txt\nnames: {config.names}\n")
    return data


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes first, so that no process is left with one at the end."""
    long = [
        "test_readme",
        "test_kills",
        "test_forks",
        "test_environment_errors",
        "test_resume",
        "test_export",
        "test_train",
        "test_workers",
        "test_device_sync",
        "test_user_errors",
        "test_distributed",
        "test_transformers_detectors",
        "test_torchvision_detectors",
    ]
    items.sort(key=lambda item: long.index(item.path.stem) if item.path.stem in long else len(long))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny")


def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first process of the tests that needs it fills with `make`."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, complete = base / name, base / f"{name} is complete"
    try:
        folder.mkdir()
    except FileExistsError:
        while not complete.exists():
            time.sleep(0.1)
        return folder
    try:
        make(folder)
    finally:
        complete.touch()  # or the other processes wait for ever
    return folder


def train_long(folder: Path) -> None:
    data = write_tiny(folder / "tiny", train=24)
    hyp = write_hyp(folder, "close_mosaic: 4\n")
    assert run_train(data=data, hyp=hyp, epochs=20, workers=None, amp="off", project=folder) == 0


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in float32 on every CPU: bf16, in which some are faster, has three digits."""
    monkeypatch.setattr("utils.amp.prefers_bf16", lambda device: False)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A folder with the data set `tiny` and a run `exp` on it that has learned something.

    Shared by all processes of the tests: files may be added to it, and none changed.
    """
    return shared_folder(tmp_path_factory, "trained", train_long)


@pytest.fixture
def default_sighup():
    """A process that does not ignore SIGHUP, even where the tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def bccd() -> Path:
    if not BCCD.is_dir():
        pytest.skip(f"the real images are not at {BCCD}")
    return BCCD


def train_args(**options: object) -> list[str]:
    """Return arguments of a quick run on the CPU with SGD, changed by `options`.

    An option that is True is given without a value, one that is None or False not at all:
    `train_args(data=tiny, epochs=2, workers=None, noplots=True)`.
    """
    quick = {"imgsz": 64, "batch_size": 4, "workers": 0, "device": "cpu", "hyp": QUICK_HYP}
    arguments = []
    for name, value in (quick | options).items():
        if value is not None and value is not False:
            arguments.append(f"--{name.replace('_', '-')}")
            arguments += [] if value is True else [str(value)]
    return arguments


def run_train(**options: object) -> int:
    """Run train.py in this process with `train_args(**options)`; its exit status."""
    import train

    return train.main(train_args(**options))


def torchrun(processes: int) -> list[str]:
    """Return the words after `python` to run a script in several processes, with `preloaded`.

    torchrun forks them, so that they need not import torch either. The script's imports are found
    in the working directory.
    """
    program = "import sys; from torch.distributed.run import main; sys.exit(main())"
    fork = ["--run-path", "--start-method", "fork"]
    return ["-c", program, "--standalone", *fork, "--nproc_per_node", str(processes)]


def resume_train(path: object = None, **options: object) -> int:
    """Run `train.py --resume PATH` in this process, with no other options than these."""
    import train

    none = dict.fromkeys(("imgsz", "batch_size", "workers", "device", "hyp"))
    path = True if path is None else path
    return train.main(train_args(**none | {"resume": path} | options))


def run_killed(epoch: int, batch: int, **options: object) -> None:
    """Run train.py with `train_args(**options)` in a process that SIGKILL ends before `batch`.

    It has saved a checkpoint after every step.
    """
    program = (
        "import signal, sys, train; from conftest import signal_at\n"
        f"with signal_at('batch', signal.SIGKILL, epoch={epoch}, batch={batch}):\n"
        "    train.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, *train_args(**options, save_every=0.001)]
    folders = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def load_state(run_dir: Path, name: str = "last.pt") -> dict:
    """Load a checkpoint of a run."""
    return torch.load(run_dir / "weights" / name, map_location="cpu", weights_only=True)


def read_results(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of results.csv."""
    with (run_dir / "results.csv").open() as file:
        return list(csv.DictReader(file))


def bitwise_equal(a: object, b: object) -> bool:
    """Compare through all nested containers; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(bitwise_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(bitwise_equal, a, b))
    return a == b or (a != a and b != b)


def assert_same_run(one: Path, other: Path, ignore: tuple[str, ...] = ("args",)) -> None:
    """Both runs end in the same state, bit for bit, and the same results.csv, but for seconds."""
    states = [load_state(run_dir) for run_dir in (one, other)]
    for state in states:
        for row in state["progress"]["history"]:
            del row["seconds"]
    for key in (states[0].keys() | states[1].keys()) - {*ignore}:
        assert bitwise_equal(states[0][key], states[1][key]), key
    results = [read_results(run_dir) for run_dir in (one, other)]
    for row in results[0] + results[1]:
        del row["seconds"]
    assert results[0] == results[1]


class TracedMemory:
    """While entered, traces the memory that Python and NumPy allocate; `peak` bytes afterwards."""

    peak = 0

    def __enter__(self) -> "TracedMemory":
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


class AtStage(logging.Handler):
    """While entered, calls `action` when a run reaches `stage` with these `details`, `times` times.

    The stages are those that `utils.log.stage` records; a run that is moved to another file has
    them still.
    """

    def __init__(
        self, stage: str, action: Callable[[], object], times: int = 1, **details: object
    ) -> None:
        super().__init__(logging.DEBUG)
        self.stage, self.action, self.times, self.details = stage, action, times, details

    def __enter__(self) -> "AtStage":
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        matches = record.msg == self.stage and self.details.items() <= record.details.items()
        if matches and self.times > 0:
            self.times -= 1
            self.action()


def signal_at(stage: str, number: int = signal.SIGTERM, **details: object) -> AtStage:
    """Send this process a signal, once, when a run reaches `stage`."""
    return AtStage(stage, lambda: os.kill(os.getpid(), number), **details)


# What Python's `warnings` print: a line, and the source line that it is about.
WARNING = re.compile(r"^\S+:\d+: \w*Warning: .*\n(  .*\n)?", re.MULTILINE)


# What a run says that is as short as most in the tests.
SHORT_RUN = re.compile(
    r"^(--epochs \d+: no epoch has mosaics|\S+: scheduler: warmup_epoch \d+: the run has).*\n",
    re.MULTILINE,
)


def without_short_run_warnings(stderr: str) -> str:
    """Return `stderr` without the warnings that a run has no mosaics and ends in its warm-up."""
    return SHORT_RUN.sub("", stderr)


def assert_one_line_error(stderr: str, *parts: str, command: str = "train.py") -> None:
    """`stderr` is a single line that starts with the command's name and contains all `parts`.

    Warnings that libraries print are ignored, and those that a run is short.
    """
    text = without_short_run_warnings(WARNING.sub("", stderr))
    assert text.startswith(f"{command}: ") and text.endswith("\n"), stderr
    assert text.count("\n") == 1, stderr
    assert "Traceback" not in text, stderr
    for part in parts:
        assert part in text, f"{part!r} is not in: {stderr}"


def fail_at(stage: str, **details: object) -> AtStage:
    """Let a run end with ZeroDivisionError, as abruptly as in a crash, when it reaches `stage`."""
    return AtStage(stage, lambda: 1 / 0, **details)


def write_hyp(folder: Path, text: str) -> Path:
    """Write a hyp file and return its path."""
    path = folder / "h.yaml"
    path.write_text(text)
    return path


def train_and_stop(folder: Path) -> None:
    options = {"hyp": write_hyp(folder, "lr0: 0.004\n"), "data": write_tiny(folder / "data")}
    with signal_at("batch", epoch=1, batch=1):
        status = run_train(**options, epochs=3, noplots=True, project=folder / "runs")
    assert status == 128 + signal.SIGTERM


@pytest.fixture(scope="session")
def interrupted_run(tmp_path_factory) -> Path:
    """A folder with a dataset in `data` and in `runs/exp` a run of 3 epochs that a signal stopped.

    It stopped at epoch 1, batch 2 of 3. Not to be changed: see `moved_run`.
    """
    return shared_folder(tmp_path_factory, "interrupted", train_and_stop)


@pytest.fixture
def moved_run(interrupted_run, tmp_path) -> Path:
    """A copy of `interrupted_run` elsewhere, as on another machine."""
    return shutil.copytree(interrupted_run, tmp_path / "moved")


def pixels(data: Annotations) -> dict[str, list[list[float]]]:
    """Return the corners of all boxes in pixels, by the name of their image."""
    result = {}
    for i, file in enumerate(data.files.tolist()):
        rows = slice(*data.offsets[i : i + 2])
        boxes = data.boxes[rows] * np.tile(data.sizes[i], 2)
        result[Path(file).name] = boxes.round(3).tolist()
    return result
