"""The CPUs that this process may use, how many of them are free, and how its threads wait on them.

Nothing here imports torch: its OpenMP reads the environment once, when torch is loaded.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from utils import cgroup

STAT_PATH = Path("/proc/stat")
TICKS_PER_SECOND = 100  # of /proc/stat: the kernel's USER_HZ
# A thirtieth of libgomp's default. Not fewer: a thread that sleeps at each of a step's barriers
# costs an idle machine 15% (docs/benchmarks.md).
SPIN_COUNT = "10000"
WAIT_SETTINGS = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
MIN_SECONDS, MAX_SECONDS = 0.2, 60.0  # over which the load is measured


def cpu_count() -> int:
    """Return how many CPUs this process may use: of the machine's, its affinity and its quota."""
    return max(1, int(min(len(_allowed_cpus()), cgroup.cpu_quota())))


def limit_spinning() -> None:
    """Let OpenMP's threads sleep soon while they wait. Call it before torch is loaded.

    libgomp's threads spin for milliseconds. Next to other programs the thread that they wait for
    often has no CPU meanwhile, because they spin on it. What the user has set stays.
    """
    if sys.platform == "linux" and not WAIT_SETTINGS & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def auto_threads(default: int) -> int:
    """Return how many of `default` threads to compute with: one per free CPU, at least half.

    All threads wait for the one that shares its CPU with another program and gets half of it. A run
    keeps its number, so a load of seconds, such as that of another start, must not decide it: a CPU
    is busy only if it was for the last minute, too.
    """
    count = min(default, cpu_count())
    free = round(min(count, max(_free_cpus(), count - _load_of_a_minute())))
    return max(free, (count + 1) // 2)


class LoadWatch:
    """Notices that other programs take CPUs from this process while it computes.

    `threads`: how many it computes with, and none of its child processes.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._start = _sample() if threads > 1 else None

    def message(self) -> list[str]:
        """Return a sentence if there were fewer free CPUs than threads for a minute, once.

        For the end of each epoch. A thread that shares its CPU lets all the others wait.
        """
        end = _sample()
        if not self._start or not end or end.clock - self._start.clock < MAX_SECONDS:
            return []
        free = round(_free_between(self._start, end))
        self._start = end
        if free >= self._threads:
            return []
        self._start = None
        return [
            f"other programs compute on the CPUs of this run, whose {self._threads} threads wait "
            f"for each other (--resume --threads {max(1, free)} is faster then, and rounds "
            "differently)"
        ]


class _Sample(NamedTuple):
    """Seconds until now: of the clock, idle ones of the CPUs, and those this process computed."""

    clock: float
    idle: float
    process: float


def _sample() -> _Sample | None:
    """Return a sample, or None where /proc/stat does not have the CPUs of this process.

    Other systems have no such file. In some containers it counts from cpu0, while the affinity has
    the numbers of the host.
    """
    try:
        lines = STAT_PATH.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    missing, ticks = {f"cpu{i}" for i in _allowed_cpus()}, 0
    for name, *values in map(str.split, lines):
        if name in missing:
            missing.remove(name)
            ticks += int(values[3]) + int(values[4])  # idle, and waiting for a disk
    if missing:
        return None
    return _Sample(time.monotonic(), ticks / TICKS_PER_SECOND, time.process_time())


def _free_cpus() -> float:
    """Return how many CPUs have been idle or computed for this process, inf if that is unknown.

    Measured since this module was imported, so while torch is imported, or for a moment from now.
    """
    start, end = _START, _sample()
    if start and end and not MIN_SECONDS <= end.clock - start.clock <= MAX_SECONDS:
        start = end
        time.sleep(MIN_SECONDS)
        end = _sample()
    if not start or not end:
        return float("inf")
    return _free_between(start, end)


def _free_between(start: _Sample, end: _Sample) -> float:
    """Return how many CPUs have been idle or computed for this process."""
    return (end.idle - start.idle + end.process - start.process) / (end.clock - start.clock)


def _load_of_a_minute() -> float:
    """Return how many threads have run or waited to run on the machine, inf if that is unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return float("inf")


def _allowed_cpus() -> set[int]:
    with suppress(AttributeError):  # not Linux
        return os.sched_getaffinity(0)
    return {*range(os.cpu_count() or 1)}


_START = _sample()
