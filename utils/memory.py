"""Memory of this machine and of its GPUs."""

import ctypes
import math
import sys
from pathlib import Path

import torch

from utils import cgroup

MEMINFO_PATH = Path("/proc/meminfo")
_M_TRIM_THRESHOLD = -1  # options of mallopt, from malloc.h
_M_MMAP_MAX = -4


def disable_malloc_trim() -> None:
    """Let this process reuse the memory it frees instead of returning it to the system.

    Only glibc can do this; elsewhere it has no effect. On the CPU a training step frees and
    allocates hundreds of megabytes. When they go back to the system each time, every page has to be
    cleared and mapped again, which costs a tenth of the step or more, with large variation.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def available_memory() -> float:
    """Return the bytes that this process can still allocate, inf if unknown.

    On Linux the memory of the machine and the limits of the container count.
    """
    try:
        meminfo = MEMINFO_PATH.read_text(encoding="utf-8")
        machine = 1024 * int(meminfo.partition("MemAvailable:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        machine = math.inf
    return min(machine, cgroup.memory_left())


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory in 10^9 bytes, of a GPU or of this process; nan if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    if sys.platform != "linux":  # Windows has no getrusage, and macOS uses other units
        return float("nan")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
