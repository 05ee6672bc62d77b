"""utils/cpus.py: threads by quota, affinity and load, and how long they spin."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from conftest import (
    ROOT,
    assert_same_run,
    load_state,
    resume_train,
    run_train,
    signal_at,
    without_short_run_warnings,
)

from utils import cgroup, cpus, device
from utils.checkpoint import save_checkpoint
from utils.cpus import LoadWatch, auto_threads, cpu_count


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that sets affinity, quota and the CPUs that other programs keep busy."""
    clock = [1000.0]
    monkeypatch.setattr(cpus, "STAT_PATH", tmp_path / "stat")
    monkeypatch.setattr(cgroup, "MEMBERSHIP_PATH", tmp_path / "membership")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(cpus.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cpus.time, "process_time", lambda: 0.0)

    def set_machine(allowed, busy=(), quota="max 100000", load=1.0, load_of_a_minute=None):
        def write_stat():
            lines = ["cpu  0 0 0 0 0 0 0 0 0 0"]
            for i in range(64):
                idle = round(100 * (clock[0] - 1000) * (1 - load * (i in busy)))
                lines.append(f"cpu{i} 7 0 5 {idle - idle // 4} {idle // 4} 0 0 0 0 0")
            (tmp_path / "stat").write_text("\n".join([*lines, "intr 1 2 3", "btime 5", ""]))

        def sleep(seconds):
            clock[0] += seconds
            write_stat()

        (tmp_path / "membership").write_text("0::/\n")
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed), raising=False)
        monkeypatch.setattr(cpus.time, "sleep", sleep)
        minute = len(busy) * load if load_of_a_minute is None else load_of_a_minute
        monkeypatch.setattr(os, "getloadavg", lambda: (minute, 0.0, 0.0), raising=False)
        write_stat()
        monkeypatch.setattr(cpus, "_START", cpus._sample())

    return set_machine


def test_an_idle_machine_has_all_threads(machine):
    machine(range(8))
    assert cpu_count() == 8 and auto_threads(8) == 8
    assert auto_threads(4) == 4  # torch's default, one for two hyperthreads
    machine(range(8), busy=range(8), load=0.05)  # what a system does by itself
    assert auto_threads(8) == 8


def test_a_load_of_seconds_leaves_all_threads(machine):
    """A run keeps its number of threads: a command that ended as it began must not slow it."""
    machine(range(2), busy=[1], load_of_a_minute=0.3)
    assert auto_threads(2) == 2
    machine(range(2), load_of_a_minute=2.0)  # ended before the start
    assert auto_threads(2) == 2


def test_a_thread_for_each_free_cpu(machine):
    machine(range(2), busy=[1])
    assert auto_threads(2) == 1
    machine(range(8), busy=[1, 3])
    assert auto_threads(8) == 6
    machine(range(16), busy=[0])
    assert auto_threads(8) == 8  # hyperthreads: there is another free one


def test_half_of_the_threads_where_most_cpus_are_busy(machine):
    machine(range(2), busy=range(2))
    assert auto_threads(2) == 1
    machine(range(8), busy=range(7))
    assert auto_threads(8) == 4
    machine([3], busy=[3])
    assert auto_threads(1) == 1


def test_only_the_allowed_cpus_count(machine):
    machine([40, 41, 42], busy=range(40))
    assert auto_threads(3) == 3
    machine([40, 41, 42], busy=[*range(40), 41])
    assert auto_threads(3) == 2


def test_a_quota_limits_the_threads(machine):
    machine(range(64), quota="150000 100000")
    assert auto_threads(64) == 1
    machine(range(64), busy=range(60), quota="300000 100000")
    assert auto_threads(64) == 3


def test_torch_decides_where_the_load_is_unknown(machine, tmp_path):
    machine(range(4))
    (tmp_path / "stat").unlink()
    assert auto_threads(4) == 4


def test_torch_decides_where_a_container_numbers_its_cpus_anew(machine):
    """/proc/stat begins with cpu0 there, and the affinity has the numbers of the host."""
    machine([70, 71, 72, 73], load_of_a_minute=20.0)
    assert auto_threads(4) == 4


@pytest.mark.parametrize(
    ("allowed", "busy", "threads", "sentences"),
    [(2, [], 2, 0), (2, [1], 2, 1), (2, [0, 1], 1, 0), (8, [1, 3], 6, 0), (8, [1, 3], 8, 1)],
)
def test_threads_without_a_cpu_are_reported_once(machine, allowed, busy, threads, sentences):
    machine(range(allowed), busy)
    watch = LoadWatch(threads)
    cpus.time.sleep(50)
    assert watch.message() == []  # a load of seconds
    cpus.time.sleep(50)
    assert len(watch.message()) == sentences
    cpus.time.sleep(100)
    assert watch.message() == []


@pytest.mark.parametrize(
    ("variables", "spinning"),
    [
        ({}, cpus.SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
@pytest.mark.parametrize("command", ["train.py", "val.py", "detect.py", "export.py"])
def test_commands_limit_spinning_before_torch_is_loaded(command, variables, spinning, tmp_path):
    """A module `torch` stands in for torch; the first import of it ends the command."""
    (tmp_path / "torch.py").write_text(
        "import os, sys\nprint(os.environ.get('GOMP_SPINCOUNT'), flush=True)\nos._exit(0)\n"
    )
    environment = {name: text for name, text in os.environ.items() if "OMP_" not in name}
    program = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['x']; "
    program += f"sys.path.insert(1, {str(ROOT)!r}); "
    program += f"runpy.run_path({str(ROOT / command)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"{spinning}\n", done.stderr


@pytest.fixture
def any_threads(monkeypatch):
    """As if OMP_NUM_THREADS were not set, and four threads torch's own choice."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "_default_threads", lambda: 4)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_resumed_run_keeps_its_threads(any_threads, tiny, tmp_path, capsys, monkeypatch):
    args = {"data": tiny, "epochs": 2, "noplots": True}
    monkeypatch.setattr(device, "auto_threads", lambda _: 2)
    assert run_train(**args, project=tmp_path / "whole") == 0
    assert "computing with 2 threads, not 4: " in capsys.readouterr().out
    with signal_at("batch", epoch=1, batch=0):
        assert run_train(**args, project=tmp_path) == 143
    assert load_state(tmp_path / "exp")["environment"]["threads"] == 2
    capsys.readouterr()
    monkeypatch.setattr(device, "auto_threads", lambda _: 3)  # the load has changed
    assert resume_train(tmp_path / "exp") == 0
    printed = capsys.readouterr()
    assert "computing with" not in printed.out
    assert not without_short_run_warnings(printed.err)
    assert_same_run(tmp_path / "whole" / "exp", tmp_path / "exp")


def test_another_number_of_processes_has_another_number_of_threads(
    any_threads, tiny, tmp_path, capsys, monkeypatch
):
    """Each of two processes would compute with all CPUs; one after eight, with an eighth."""
    args = {"data": tiny, "epochs": 2, "noplots": True, "project": tmp_path}
    with signal_at("batch", epoch=1, batch=0):
        assert run_train(**args, threads=3) == 143
    state = load_state(tmp_path / "exp")
    state["environment"]["world_size"] = 2
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    for options, threads in (({"threads": 2}, 2), ({}, 4)):
        capsys.readouterr()
        save_checkpoint(state, tmp_path / "exp" / "weights" / "last.pt")
        with signal_at("batch", epoch=1, batch=1):
            assert resume_train(tmp_path / "exp", **options) == 143
        changes = f"world_size 2 -> 1, threads 3 -> {threads}"
        assert f"environment changed ({changes})" in capsys.readouterr().err


def test_users_choose_the_number_of_threads(any_threads, tiny, tmp_path, capsys, monkeypatch):
    args = {"data": tiny, "epochs": 2, "noplots": True, "project": tmp_path}
    with signal_at("batch", epoch=1, batch=0):
        assert run_train(**args, threads=3) == 143
    state = load_state(tmp_path / "exp")
    assert state["environment"]["threads"] == state["args"]["threads"] == 3
    capsys.readouterr()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # by torchrun, unless it was set before
    with signal_at("batch", epoch=1, batch=1):
        assert resume_train(tmp_path / "exp") == 143
    assert "environment changed" not in capsys.readouterr().err
    assert load_state(tmp_path / "exp")["environment"]["threads"] == 3
    assert resume_train(tmp_path / "exp", threads=1) == 0
    assert "environment changed (threads 3 -> 1)" in capsys.readouterr().err
    assert load_state(tmp_path / "exp")["environment"]["threads"] == 1


def test_a_load_during_the_run_is_reported(any_threads, tiny, tmp_path, capsys, monkeypatch):
    calls = itertools.count()

    def one_cpu_is_free():
        seconds = 60 * next(calls)
        return cpus._Sample(seconds, idle=0, process=seconds)

    monkeypatch.setattr(cpus, "_sample", one_cpu_is_free)
    args = {"data": tiny, "epochs": 3, "noplots": True, "project": tmp_path}
    for options, count in (({"threads": 2}, 1), ({"threads": 1}, 0), ({"workers": 1}, 0)):
        capsys.readouterr()
        assert run_train(**args, **options) == 0
        lines = without_short_run_warnings(capsys.readouterr().err).splitlines()
        assert sum("(--resume --threads 1 is faster then" in line for line in lines) == count
