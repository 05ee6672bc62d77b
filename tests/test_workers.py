"""DataLoader workers: every way to start them ends in the same run; their shared memory."""

import multiprocessing
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import (
    ROOT,
    assert_one_line_error,
    assert_same_run,
    fail_at,
    run_train,
    train_args,
    without_short_run_warnings,
    write_hyp,
    write_tiny,
)
from preloaded import run_python

import utils.shared_memory
from utils.errors import UserError, environment_error
from utils.shared_memory import check_shared_memory

TIMEOUT = 300  # seconds; on a busy machine the imports alone can take a minute
POLY = """
optimizer: sgd
scheduler: {name: poly, learning_rate_decay_a: 0.01, learning_rate_decay_b: 0.5}
"""
NUM_IMAGES = 150

# Python 3.14 starts workers with forkserver on Linux; macOS and Windows do with spawn. With a limit
# of 100 open files, cached images cannot have one each.
PROGRAM = """
import multiprocessing, resource, sys

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv.pop(1))
    multiprocessing.set_forkserver_preload(["torch", "torchvision"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    sys.path.insert(0, sys.argv.pop(1))
    import train

    sys.exit(train.main())
"""
# A /dev/shm of 3 MB in a namespace of its own, as a container has one of 64 MB.
SMALL_SHM = [
    "unshare",
    "-rm",
    "sh",
    "-c",
    'mount -t tmpfs -o size=3m tmpfs /dev/shm; exec "$@"',
    "sh",
]


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The directory of a run with two forked workers, and its options."""
    folder = tmp_path_factory.mktemp("forked")
    options = {
        "data": write_tiny(folder / "tiny", train=NUM_IMAGES),
        "hyp": write_hyp(folder, f"{POLY}mosaic: 0.5\nclose_mosaic: 0\n"),
        "epochs": 1,
        "batch_size": 50,
        "workers": 2,
        "noplots": True,
    }
    run_with("fork", folder, options)
    return folder / "exp", options


def run_with(start_method: str, project: Path, options: dict[str, object]) -> None:
    """Run train.py with workers that are started by `start_method`."""
    program = project / "program.py"
    program.write_text(PROGRAM)
    arguments = train_args(**options, project=project)
    done = run_python([program, start_method, ROOT, *arguments])
    assert done.returncode == 0, done.stderr
    assert without_short_run_warnings(done.stderr) == ""


@pytest.mark.parametrize(("start_method", "cache"), [("forkserver", None), ("spawn", "ram")])
def test_start_method_of_workers_does_not_change_the_run(
    start_method: str, cache: str | None, forked: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    run_with(start_method, tmp_path, forked[1] | {"cache": cache})
    assert_same_run(forked[0], tmp_path / "exp")


SIGNAL_ALL = """
import logging, multiprocessing, os, signal, sys

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    sys.path.insert(0, sys.argv.pop(1))
    import train
    from utils.log import logger

    class SignalAll(logging.Handler):
        def emit(self, record):
            if record.msg == "batch" and record.details == {"epoch": 1, "batch": 2}:
                os.killpg(0, signal.SIGTERM)

    logger.setLevel(logging.DEBUG)
    logger.addHandler(SignalAll())
    sys.exit(train.main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_signal_to_every_process_leaves_the_forkserver_and_its_workers(tiny, tmp_path):
    """As batch systems send it. The optimizer step under way needs ten more batches."""
    program = tmp_path / "program.py"
    program.write_text(SIGNAL_ALL)
    hyp = write_hyp(tmp_path, "optimizer: sgd\naccumulate: 12\n")
    options = {"data": tiny, "hyp": hyp, "epochs": 20, "batch_size": 1, "workers": 1}
    arguments = train_args(**options, noplots=True, noval=True, project=tmp_path)
    done = run_python([program, ROOT, *arguments], start_new_session=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert_one_line_error(done.stderr, "stopped by SIGTERM at epoch 1, batch 12")


@pytest.fixture
def small_shm() -> list[str]:
    """The start of a command that runs the rest with a /dev/shm of 3 MB."""
    try:
        done = subprocess.run([*SMALL_SHM, "df", "/dev/shm"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode or " 3072 " not in done.stdout:
        pytest.skip("needs a namespace of its own")
    return SMALL_SHM


def test_small_shared_memory_is_one_line_at_the_start(small_shm, tiny, tmp_path):
    arguments = train_args(data=tiny, imgsz=640, batch_size=2, workers=1, project=tmp_path / "runs")
    command = [*small_shm, sys.executable, ROOT / "train.py", *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2
    message = "--workers 1: their batches need 7 MB of shared memory, and /dev/shm has 3 MB"
    assert_one_line_error(done.stderr, message, "--shm-size", "--workers 0)")
    assert not (tmp_path / "runs").exists()


def test_full_shared_memory_is_one_line_in_the_loop(small_shm, tiny, tmp_path):
    """When another program has filled it since the start."""
    program = [
        "import sys",
        "sys.path.insert(0, sys.argv.pop(1))",
        "import train, data.loaders",
        "data.loaders.check_shared_memory = lambda *_: None",
        "sys.exit(train.main())",
    ]
    options = {"imgsz": 640, "batch_size": 4, "workers": 1, "noplots": True, "project": tmp_path}
    command = [*small_shm, sys.executable, "-c", "\n".join(program), ROOT]
    command += train_args(data=tiny, **options)
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2
    message = "out of shared memory for batches (make /dev/shm larger, in Docker with --shm-size"
    assert done.stderr.splitlines()[-1].startswith(f"train.py: {message}"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text",  # torch's messages
    [
        "DataLoader worker (pid 123) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory "
        "limit.",
        "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to allocate "
        "shared memory(shm) for file </torch_1_2_3>: No space left on device (28)",
    ],
)
def test_environment_error_keeps_the_hint_of_shared_memory(text):
    assert "out of shared memory" in environment_error(RuntimeError(text))


def test_shared_memory_is_for_the_images_that_there_are(tiny, tmp_path, monkeypatch):
    """A --batch-size above the number of images is that number, and needs no memory for more."""
    monkeypatch.setattr(utils.shared_memory, "SHM_DIR", tmp_path)
    usage = namedtuple("usage", "free")(1_000_000)  # bytes; a batch of all images is 12 * 3 * 64**2
    monkeypatch.setattr(utils.shared_memory.shutil, "disk_usage", lambda _: usage)
    options = {"data": tiny, "batch_size": 1000, "workers": 1, "epochs": 1}
    with fail_at("weights"), pytest.raises(ZeroDivisionError):
        run_train(**options, project=tmp_path)


def test_check_shared_memory_names_the_workers_that_fit(tmp_path, monkeypatch):
    """64 MB hold three batches: two in advance by one worker, and the one in use."""
    free = shutil.disk_usage(tmp_path)._replace(free=64_000_000)
    monkeypatch.setattr(utils.shared_memory.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(utils.shared_memory, "SHM_DIR", tmp_path)
    check_shared_memory(20_000_000, workers=1, num_processes=1)
    check_shared_memory(10**12, workers=0, num_processes=1)
    for workers, num_processes, fitting in ((8, 1, 1), (1, 2, 0)):
        with pytest.raises(UserError, match=rf"--workers {workers}: .*or use --workers {fitting}"):
            check_shared_memory(20_000_000, workers, num_processes)
    monkeypatch.setattr(utils.shared_memory, "SHM_DIR", tmp_path / "none")  # not Linux
    check_shared_memory(20_000_000, workers=8, num_processes=1)
