"""A loader leaves the signals to its trainer, and does not outlive it."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from utils.interrupt import SIGNALS, worker_init

fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="loaders are not forked here"
)


def loader(path, wait):
    """Says in the file `path` that it has begun, and, after `wait` seconds, that it loads."""
    path.with_suffix(".begun").write_text(str(os.getpid()))
    time.sleep(wait)
    worker_init()
    path.write_text("loading")
    time.sleep(60)


def trainer(path, wait):
    fork.Process(target=loader, args=(path, wait)).start()
    time.sleep(60)


def started(path, wait):
    """A trainer and the number of its loader, once that has begun."""
    process = fork.Process(target=trainer, args=(path, wait))
    process.start()
    while not (path.with_suffix(".begun").exists() and path.with_suffix(".begun").read_text()):
        time.sleep(0.01)
    return process, int(path.with_suffix(".begun").read_text())


def test_a_loader_whose_trainer_was_killed_before_it_began_to_load_ends(tmp_path):
    process, number = started(tmp_path / "file", 1.0)
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while is_alive(number):
        assert time.monotonic() < deadline, "the loader is still there"
        time.sleep(0.05)
    assert not (tmp_path / "file").exists()


def test_signals_do_not_end_a_loader(tmp_path):
    process, number = started(tmp_path / "file", 0.0)
    while not (tmp_path / "file").exists():
        time.sleep(0.01)
    for signal_number in SIGNALS:
        os.kill(number, signal_number)
    time.sleep(0.3)
    assert is_alive(number)
    os.kill(number, signal.SIGKILL)
    process.kill()
    process.join()


def is_alive(number):
    """Whether the process is there, and not only as a line in the system's table."""
    try:
        with Path(f"/proc/{number}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
