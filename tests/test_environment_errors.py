"""Signals and failures of the machine: a one-line error, a checkpoint, and a bitwise identical
resume."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import (
    ROOT,
    AtStage,
    assert_one_line_error,
    assert_same_run,
    bitwise_equal,
    load_state,
    read_results,
    resume_train,
    run_train,
    signal_at,
    train_args,
    write_tiny,
)
from preloaded import run_python, start_python

import data.dataset
from utils.errors import ENVIRONMENT_ERRORS
from utils.interrupt import SIGNALS

# What a run does before it has a directory, and after that.
STAGES_BEFORE_RUN_DIR = ["start", "device", "data", "model", "loaders", "weights", "schedule"]
STAGES_WITH_PLOTS = ["run_dir", "start_plots", "results_plots", "report"]
STAGES = [*STAGES_WITH_PLOTS, "batch", "validate", "evaluate", "save"]
LAST_STAGES = ["results_plots", "report"]  # less than a second before the end: it is not stopped
TIMEOUT = 300  # seconds; on a busy machine the imports alone can take a minute

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset and the directory of a run on it in which nothing fails."""
    folder = tmp_path_factory.mktemp("reference")
    data_yaml = write_tiny(folder / "tiny")
    assert run_train(data=data_yaml, epochs=2, project=folder) == 0
    return data_yaml, folder / "exp"


def assert_same_end(one: Path, other: Path, has_report: bool = True) -> None:
    """Both runs end in the same state; the other one is complete and leaves no temporary file."""
    assert_same_run(one, other, ignore=("args", "environment"))
    assert (other / "report.html").exists() == has_report
    assert not list(other.rglob("*.tmp"))


def train_command(program: list[str], **options: object) -> list[str]:
    """Return the words after `python` for the lines of a `program` that can import train."""
    lines = ["import sys", "sys.path.insert(0, sys.argv.pop(1))", "import train", *program]
    return [
        "-c", "\n".join([*lines, "sys.exit(train.main())"]), str(ROOT),
        *train_args(**options),
    ]  # fmt: skip


def child_pids(pid: int) -> list[int]:
    """Return the ids of a process's children, which are its DataLoader workers."""
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("default_sighup")
@pytest.mark.parametrize("stage", STAGES_BEFORE_RUN_DIR)
def test_signal_before_the_run_dir_leaves_nothing(stage, reference, tmp_path, capsys):
    number = SIGNALS[STAGES_BEFORE_RUN_DIR.index(stage) % len(SIGNALS)]
    project = tmp_path / "runs"
    with signal_at(stage, number):
        assert run_train(data=reference[0], epochs=2, project=project) == 128 + number
    assert_one_line_error(capsys.readouterr().err, signal.Signals(number).name)
    assert not project.exists()


@pytest.mark.usefixtures("default_sighup")
@pytest.mark.parametrize("stage", STAGES)
def test_signal_at_a_later_stage_saves_and_resumes(stage, reference, tmp_path, capsys):
    number = SIGNALS[STAGES.index(stage) % len(SIGNALS)]
    has_plots = stage in STAGES_WITH_PLOTS
    options = {"data": reference[0], "epochs": 2, "noplots": not has_plots, "project": tmp_path}
    with signal_at(stage, number):
        status = run_train(**options)
    if stage in LAST_STAGES:
        assert status == 0
    else:
        assert status == 128 + number
        assert_one_line_error(capsys.readouterr().err, signal.Signals(number).name, "--resume")
        assert resume_train(tmp_path / "exp") == 0
    assert_same_end(reference[1], tmp_path / "exp", has_plots)


def test_sighup_stays_ignored_under_nohup(reference, tmp_path):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signal_at("batch", signal.SIGHUP):
            assert run_train(data=reference[0], epochs=2, noplots=True, project=tmp_path) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert_same_end(reference[1], tmp_path / "exp", has_report=False)


def test_closed_terminal_saves_the_run(tmp_path):
    """The batches since the last checkpoint are saved, although the message cannot be printed."""
    options = {"imgsz": 64, "batch_size": 1, "workers": 1, "save_every": 0, "noplots": True}
    arguments = train_args(
        data=write_tiny(tmp_path / "tiny", train=300), project=tmp_path, **options
    )
    controller, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))  # or there is no room for the progress bar

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(terminal)
    output = b""
    while not re.search(rb"epoch 0/[^\n]* [1-9][0-9]*/300 ", output):  # of the progress bar
        output += os.read(controller, 1000)
    workers = child_pids(process.pid)
    os.close(controller)
    process.wait(timeout=TIMEOUT)
    progress = load_state(tmp_path / "exp")["progress"]
    assert progress["epoch"] == 0 and progress["batch"] > 0
    assert not list(tmp_path.rglob("*.tmp"))
    assert workers and not any(map(is_running, workers))


def test_killed_worker_ends_the_run_with_one_line(reference, tmp_path):
    options = {"data": reference[0], "epochs": 6, "noval": True, "noplots": True}
    arguments = train_args(**options, workers=1, save_every=0.001, project=tmp_path)
    pipe = subprocess.PIPE
    process = start_python([ROOT / "train.py", *arguments], stdout=pipe, stderr=pipe)
    while not process.stdout.readline().startswith("epoch 1 "):
        assert process.poll() is None, process.stderr.read()
    worker = child_pids(process.pid)[0]
    os.kill(worker, signal.SIGKILL)
    stderr = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 2, stderr
    assert_one_line_error(stderr, ENVIRONMENT_ERRORS["DataLoader worker (pid"])
    assert not is_running(worker)
    assert not list(tmp_path.rglob("*.tmp"))
    assert 1 <= load_state(tmp_path / "exp")["progress"]["epoch"] < 6
    assert resume_train(tmp_path / "exp") == 0
    assert run_train(**options, project=tmp_path / "other") == 0
    assert_same_end(tmp_path / "other" / "exp", tmp_path / "exp", has_report=False)


def test_exception_in_the_loop_ends_the_run_and_its_workers(reference, tmp_path):
    program = [
        "import multiprocessing",
        "import models.yolo",
        "def losses(*_):",
        "    print(*[child.pid for child in multiprocessing.active_children()])",
        "    return 1 / 0",
        "models.yolo.YOLO.losses = losses",
    ]
    command = train_command(program, data=reference[0], noplots=True, workers=2, project=tmp_path)
    done = run_python(command)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n"), done.stderr
    workers = [*map(int, done.stdout.splitlines()[-1].split())]
    assert len(workers) == 2 and not any(map(is_running, workers))


def test_image_that_disappears_within_an_epoch_is_named(reference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.dataset, "IMAGE_CACHE_BYTES", 0)
    data_yaml = write_tiny(tmp_path / "tiny")
    image = tmp_path / "tiny" / "images" / "train" / "7.png"
    with AtStage("batch", lambda: image.rename(tmp_path / "7.png"), epoch=1, batch=0):
        assert run_train(data=data_yaml, epochs=2, noplots=True, project=tmp_path) == 2
    assert_one_line_error(capsys.readouterr().err, f"train.py: {image}: cannot be decoded: ")
    assert load_state(tmp_path / "exp")["progress"]["epoch"] == 1

    assert resume_train(tmp_path / "exp") == 2  # without the image
    assert_one_line_error(capsys.readouterr().err, "train has 11 images", "12 images")
    (tmp_path / "7.png").rename(image)
    assert resume_train(tmp_path / "exp") == 0
    assert_same_end(reference[1], tmp_path / "exp", has_report=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_out_of_memory_is_one_line(workers, reference, tmp_path):
    """A limit of 1.5 GB above what the program needs; images of 3,000 pixels need more."""
    program = [
        "import resource",
        "pages = int(open('/proc/self/statm').read().split()[0])",
        "size = pages * resource.getpagesize() + 1_500_000_000",
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))",
    ]
    options = {"data": reference[0], "imgsz": 3008, "batch_size": None, "noplots": True}
    command = train_command(program, **options, workers=workers, project=tmp_path)
    done = run_python(command)
    assert done.returncode == 2, done.stderr
    # With a worker, either of the two processes is the first that needs more.
    causes = ["out of memory", "DataLoader worker (pid"][: 1 + workers]
    messages = [f"train.py: {ENVIRONMENT_ERRORS[cause]}" for cause in causes]
    assert done.stderr.splitlines()[-1] in messages, done.stderr
    assert "Traceback" not in done.stderr
    assert load_state(tmp_path / "exp")["progress"]["epoch"] == 0


def test_clock_that_is_set_back_has_no_effect(reference, tmp_path, monkeypatch):
    now = [2_000_000_000.0]

    def backwards() -> float:
        now[0] -= 100
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "time_ns", lambda: int(backwards() * 1e9))
    options = {"data": reference[0], "epochs": 2, "noplots": True, "save_every": 0.001}
    assert run_train(**options, project=tmp_path) == 0
    assert_same_end(reference[1], tmp_path / "exp", has_report=False)
    assert all(0 < float(row["seconds"]) < 60 for row in read_results(tmp_path / "exp"))


def test_two_runs_that_start_together_have_their_own_dirs(reference, tmp_path):
    processes = [
        start_python(
            [
                ROOT / "train.py",
                *train_args(data=reference[0], epochs=2, seed=seed, project=tmp_path),
            ],
            stdout=subprocess.PIPE,
        )
        for seed in (0, 1)
    ]
    outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    run_dirs = [Path(re.search(r"into (.*)", output)[1]) for output in outputs]
    assert {*run_dirs} == {tmp_path / "exp", tmp_path / "exp2"}
    states = [load_state(run_dir) for run_dir in run_dirs]
    assert [state["args"]["seed"] for state in states] == [0, 1]
    for run_dir in run_dirs:
        assert len(read_results(run_dir)) == 2
        assert (run_dir / "report.html").exists()
    assert not bitwise_equal(states[0]["model"], states[1]["model"])


def test_leftover_files_of_a_killed_run_are_ignored(reference, tmp_path):
    """Half-written files are overwritten; there are no locks, so one of another program stays."""
    weights = tmp_path / "exp" / "weights"
    weights.mkdir(parents=True)
    for name in ("last.pt.tmp", "best.pt.tmp", ".lock", "last.pt.lock"):
        (weights / name).write_bytes(b"half")
    (tmp_path / "exp" / "results.csv.tmp").write_text("half")
    assert run_train(data=reference[0], epochs=2, resume="auto", project=tmp_path) == 0
    for name in (".lock", "last.pt.lock"):
        assert (weights / name).read_bytes() == b"half"
    assert_same_end(reference[1], tmp_path / "exp")
