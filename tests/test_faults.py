"""Faults of the machine: a run that meets one says so in a sentence, keeps its checkpoint, and goes on to the same bits."""

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
from conftest import rows, same, weights, write_tiny

import data.dataset
import train
from utils.errors import ENVIRONMENT_ERRORS
from utils.interrupt import SIGNALS

ROOT = Path(__file__).parents[1]
QUICK = ["--imgsz", 64, "--batch-size", 4, "--device", "cpu", "--epochs", 2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")


def run(*arguments: object) -> int:
    return train.main([*map(str, arguments)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """A data set and the folder of a run on it that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_tiny(folder / "tiny")
    assert run("--data", data, *QUICK, "--project", folder) == 0
    return data, folder / "exp"


def assert_same_end(one: Path, other: Path, noplots: bool = False) -> None:
    a, b = weights(one), weights(other)
    for key in ("model", "average", "optimizer", "scheduler", "best", "result", "epoch"):
        assert same(a[key], b[key]), key
    assert [row | {"seconds": ""} for row in rows(one)] == [
        row | {"seconds": ""} for row in rows(other)
    ]
    assert (other / "report.html").exists() != noplots and not list(other.rglob("*.tmp"))


def once(monkeypatch, function: str, happening) -> None:
    """Let `happening` take place when the run next calls `function`."""
    original, done = getattr(train, function), []

    def interrupted(*arguments, **options):
        if not done:
            done.append(True)
            happening()
        return original(*arguments, **options)

    monkeypatch.setattr(train, function, interrupted)


BEFORE = [
    "find_file",
    "select_device",
    "read_data_config",
    "read_splits",
    "build_model",
    "start_from",
    "planned_scheduler",
]
AFTER = [
    "new_run_folder",
    "draw_plan",
    "draw_batch",
    "recolored",
    "detect",
    "evaluate",
    "draw_results",
    "write_report",
]


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("stage", BEFORE)
def test_a_signal_at_a_stage_before_the_run_has_a_folder(
    stage, whole, tmp_path, monkeypatch, capsys
):
    number = SIGNALS[BEFORE.index(stage) % len(SIGNALS)]
    once(monkeypatch, stage, lambda: os.kill(os.getpid(), number))
    assert run("--data", whole[0], *QUICK, "--project", tmp_path / "runs") == 128 + number
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("stage", AFTER)
def test_a_signal_at_any_later_stage(stage, whole, tmp_path, monkeypatch, capsys):
    number = SIGNALS[AFTER.index(stage) % len(SIGNALS)]
    pictures = [] if stage.startswith(("draw", "write")) else ["--noplots"]
    once(monkeypatch, stage, lambda: os.kill(os.getpid(), number))
    status = run("--data", whole[0], *QUICK, *pictures, "--project", tmp_path)
    if stage in ("draw_results", "write_report"):  # all is done but a second's work
        assert status == 0
    else:
        assert status == 128 + number and "Traceback" not in capsys.readouterr().err
        assert run("--resume", tmp_path / "exp") == 0
    assert_same_end(whole[1], tmp_path / "exp", bool(pictures))


def test_a_hangup_that_nohup_ignores(whole, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        once(monkeypatch, "recolored", lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert run("--data", whole[0], *QUICK, "--noplots", "--project", tmp_path) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same_end(whole[1], tmp_path / "exp", noplots=True)


def test_a_terminal_that_is_closed(tmp_path):
    """What was trained since the last checkpoint is not lost, though there is nobody left to say so to."""
    data = write_tiny(tmp_path / "tiny", train=300)
    arguments = [
        "--data",
        data,
        "--imgsz",
        64,
        "--batch-size",
        1,
        "--device",
        "cpu",
        "--noplots",
        "--workers",
        1,
    ]
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))  # else there is no room for the bar

    def at_the_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    trainer = subprocess.Popen(
        [*map(str, [sys.executable, ROOT / "train.py", *arguments, "--save-every", 0, "--project", tmp_path])],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=at_the_terminal,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while not re.search(rb"[1-9]/300 ", said):  # of the bar
        said += os.read(ours, 1000)
    loaders = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children").read_text().split()
    os.close(ours)
    trainer.wait(timeout=60)
    state = weights(tmp_path / "exp")
    assert state["epoch"] == 0 and state["batch"] > 0 and not list(tmp_path.rglob("*.tmp"))
    assert loaders and not any(Path(f"/proc/{loader}").exists() for loader in loaders)


def test_a_loader_that_is_killed(whole, tmp_path):
    arguments = ["--data", whole[0], *QUICK[:-1], 6, "--noval", "--noplots"]
    command = [
        sys.executable,
        ROOT / "train.py",
        *arguments,
        "--workers",
        1,
        "--save-every",
        0.001,
        "--project",
        tmp_path,
    ]
    trainer = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not trainer.stdout.readline().startswith("epoch 1 "):
        assert trainer.poll() is None, trainer.stderr.read()
    loader = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children").read_text().split()[0]
    os.kill(int(loader), signal.SIGKILL)
    error = trainer.communicate(timeout=60)[1]
    assert (
        trainer.returncode == 2
        and error == f"train.py: {ENVIRONMENT_ERRORS['DataLoader worker (pid']}\n"
    ), error
    assert not Path(f"/proc/{loader}").exists() and not list(tmp_path.rglob("*.tmp"))
    assert 1 <= weights(tmp_path / "exp")["epoch"] < 6
    assert run("--resume", tmp_path / "exp") == 0
    assert run(*arguments, "--project", tmp_path / "other") == 0
    assert_same_end(tmp_path / "other" / "exp", tmp_path / "exp", noplots=True)


def test_an_error_in_a_changed_loop_ends_the_run_and_its_loaders(whole, tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import train\n"
        "def recolored(*_):\n"
        "    import multiprocessing; print(*[child.pid for child in multiprocessing.active_children()])\n"
        "    return 1 / 0\n"
        "train.recolored = recolored; sys.exit(train.main())"
    )
    arguments = ["--data", whole[0], *QUICK, "--noplots", "--workers", 2, "--project", tmp_path]
    command = [sys.executable, "-c", program, ROOT, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.endswith("ZeroDivisionError: division by zero\n"), (
        done.stderr
    )
    loaders = done.stdout.splitlines()[-1].split()
    assert len(loaders) == 2 and not any(Path(f"/proc/{loader}").exists() for loader in loaders)


def test_a_picture_that_vanishes_within_an_epoch(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.dataset, "MEMORY", 0)
    tiny = write_tiny(tmp_path / "tiny")
    picture = tmp_path / "tiny" / "images" / "train" / "7.png"
    seed = train.seed_everything

    def vanishing(*place):
        if place[1:3] == (1, 0):
            picture.rename(tmp_path / "7.png")
        seed(*place)

    with monkeypatch.context() as patch:
        patch.setattr(train, "seed_everything", vanishing)
        assert run("--data", tiny, *QUICK, "--project", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train.py: {picture}: cannot be decoded: ") and error.count("\n") == 1
    assert weights(tmp_path / "exp")["epoch"] == 1
    # Without it, it goes on neither; with it, to the same end.
    assert run("--resume", tmp_path / "exp") == 2
    assert "train has 11 images" in capsys.readouterr().err
    (tmp_path / "7.png").rename(picture)
    assert run("--resume", tmp_path / "exp") == 0
    assert_same_end(whole[1], tmp_path / "exp")


@pytest.mark.parametrize("workers", [0, 1])
def test_too_little_memory(workers, whole, tmp_path):
    """1.5 GB more than the program itself: pictures of 3,000 pixels need more; what is left says so, and nothing else."""
    program = (
        "import resource, sys; sys.path.insert(0, sys.argv.pop(1)); import train\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 1_500_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size)); sys.exit(train.main())"
    )
    arguments = [
        "--data",
        whole[0],
        "--imgsz",
        3008,
        "--device",
        "cpu",
        "--noplots",
        "--workers",
        workers,
        "--project",
        tmp_path,
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    faults = ["out of memory", "DataLoader worker (pid"][
        : 1 + workers
    ]  # whichever of them is the first to want more
    assert done.stderr.splitlines()[-1] in [
        f"train.py: {ENVIRONMENT_ERRORS[fault]}" for fault in faults
    ], done.stderr
    assert "Traceback" not in done.stderr
    assert weights(tmp_path / "exp")["epoch"] == 0


def test_a_clock_that_is_set_back(whole, tmp_path, monkeypatch):
    now = [2_000_000_000.0]

    def backwards():
        now[0] -= 100
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "time_ns", lambda: int(backwards() * 1e9))
    assert run("--data", whole[0], *QUICK, "--save-every", 0.001, "--project", tmp_path) == 0
    assert_same_end(whole[1], tmp_path / "exp")
    assert all(0 < float(row["seconds"]) < 60 for row in rows(tmp_path / "exp"))


def test_two_runs_that_start_at_the_same_moment(whole, tmp_path):
    """Two folders, and each run's own in each."""
    commands = [
        [
            sys.executable,
            ROOT / "train.py",
            "--data",
            whole[0],
            *QUICK,
            "--seed",
            seed,
            "--project",
            tmp_path,
        ]
        for seed in (0, 1)
    ]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, env=one_thread)
        for command in commands
    ]
    said = [process.communicate(timeout=120)[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0]
    folders = [Path(re.search(r"into (.*)", text)[1]) for text in said]
    assert {*folders} == {tmp_path / "exp", tmp_path / "exp2"}
    assert [weights(folder)["args"]["seed"] for folder in folders] == [0, 1]
    assert all(len(rows(folder)) == 2 and (folder / "report.html").exists() for folder in folders)
    assert not same(weights(folders[0])["model"], weights(folders[1])["model"])


def test_what_a_killed_run_has_left_is_in_nobodys_way(whole, tmp_path):
    """There are no locks; half a file that was being written, and a foreign lock, are not looked at."""
    weights_folder = tmp_path / "exp" / "weights"
    weights_folder.mkdir(parents=True)
    for name in ("last.pt.tmp", "best.pt.tmp", ".lock", "last.pt.lock"):
        (weights_folder / name).write_bytes(b"half")
    (tmp_path / "exp" / "results.csv.tmp").write_text("half")
    assert run("--data", whole[0], *QUICK, "--resume", "auto", "--project", tmp_path) == 0
    for name in (".lock", "last.pt.lock"):
        assert (weights_folder / name).read_bytes() == b"half"
    assert_same_end(whole[1], tmp_path / "exp")
