"""Limits that a container or a batch system sets for this process: Linux control groups, v1 and v2.

The limits of all groups above a group count, too. The path of the process's own group may be that
on the host, which a container does not see; the container's limits are then at the root.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MEMBERSHIP_PATH = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def memory_left() -> float:
    """Return the bytes that this process can still allocate within its limits, inf without one."""
    left = math.inf
    for group in _groups("memory"):
        limit = _numbers(group, "memory.max", "memory.limit_in_bytes")
        usage = _numbers(group, "memory.current", "memory.usage_in_bytes")
        if limit and usage:
            left = min(left, limit[0] - usage[0] + _file_cache(group))
    return left


def cpu_quota() -> float:
    """Return how many CPUs this process may keep busy on average, inf without a limit."""
    quota = math.inf
    for group in _groups("cpu"):
        times = _numbers(group, "cpu.max") or (
            *_numbers(group, "cpu.cfs_quota_us"), *_numbers(group, "cpu.cfs_period_us"),
        )  # fmt: skip
        if len(times) == 2 and times[0] > 0:  # v1: -1 without a limit
            quota = min(quota, times[0] / times[1])
    return quota


def _groups(controller: str) -> Iterator[Path]:
    """Yield the directories of this process's group and of those above it."""
    for line in _read(MEMBERSHIP_PATH).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = ROOT / controller if controllers else ROOT  # v1 has a hierarchy for each
        group = root / path.strip("/")
        yield from (above for above in (group, *group.parents) if above.is_relative_to(root))


def _file_cache(group: Path) -> float:
    """Return the bytes of `group`'s usage that are copies of files, freed when there is need."""
    statistics = dict(line.split() for line in _read(group / "memory.stat").splitlines())
    prefix = "total_" if "total_active_file" in statistics else ""  # v1: with the groups below
    return sum(float(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def _numbers(group: Path, *names: str) -> tuple[float, ...]:
    """Return the numbers in the first of the files `names` that exists, inf for "max"."""
    for name in names:
        with suppress(ValueError):
            text = _read(group / name).replace("max", "inf")
            if numbers := tuple(map(float, text.split())):
                return numbers
    return ()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # not Linux, or not this version
        return ""
