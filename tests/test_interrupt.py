"""utils/interrupt.py: when signals stop a run, and that workers ignore them."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from preloaded import run_python

from utils.interrupt import SIGNALS, Interrupted, StopSignals, worker_init

ROOT = Path(__file__).parents[1]
needs_fork = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="workers are not forked here"
)


def worker(path, delay):
    """Write the pid to `path`.pid and, `delay` seconds later, "ready" to `path`."""
    path.with_suffix(".pid").write_text(str(os.getpid()))
    time.sleep(delay)
    worker_init()
    path.write_text("ready")
    time.sleep(60)


def main_process(path, delay):
    multiprocessing.get_context("fork").Process(target=worker, args=(path, delay)).start()
    time.sleep(60)


def start_main_process(path, delay):
    """Return a main process and the pid of its worker, once that is running."""
    process = multiprocessing.get_context("fork").Process(target=main_process, args=(path, delay))
    process.start()
    pid_file = path.with_suffix(".pid")
    while not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.01)
    return process, int(pid_file.read_text())


def is_running(pid):
    """Return whether the process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@needs_fork
def test_worker_ends_if_its_parent_was_killed_before_worker_init(tmp_path):
    process, pid = start_main_process(tmp_path / "file", 1.0)
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline, "the worker still runs"
        time.sleep(0.05)
    assert not (tmp_path / "file").exists()


@needs_fork
def test_worker_ignores_signals(tmp_path):
    process, pid = start_main_process(tmp_path / "file", 0.0)
    while not (tmp_path / "file").exists():
        time.sleep(0.01)
    for number in SIGNALS:
        os.kill(pid, number)
    time.sleep(0.3)
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)
    process.kill()
    process.join()


def test_stop_signals_raise_until_deferred():
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals() as stop:
        with pytest.raises(Interrupted) as raised:
            os.kill(os.getpid(), signal.SIGTERM)
        assert raised.value.number == signal.SIGTERM
        assert raised.value.message.startswith("stopped by SIGTERM before the first batch")
        stop.defer()
        assert stop.pending == 0
        batches = stop.stop_on_signal([1, 2, 3])
        assert next(batches) == 1 and next(batches) == 2
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.pending == signal.SIGINT and [*batches] == []
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_interrupted_has_no_message_without_a_detail():
    assert Interrupted(signal.SIGTERM, "").message == str(Interrupted(signal.SIGTERM, "")) == ""


def test_import_has_no_side_effects():
    program = (
        "import atexit, multiprocessing.queues, signal, torch\n"
        "hook = multiprocessing.queues.Queue._on_queue_feeder_error\n"
        "handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]\n"
        "atexit.register = lambda *_: 1 / 0\n"
        "import utils.interrupt\n"
        "assert multiprocessing.queues.Queue._on_queue_feeder_error is hook\n"
        "assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]"
    )
    done = run_python(["-c", program], cwd=ROOT)
    assert done.returncode == 0, done.stderr
