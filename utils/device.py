"""The device a run computes on, and what it can do."""

import ctypes
import os
import sys
from pathlib import Path

import torch

from utils.errors import UserError

CPUINFO_PATH, MEMINFO_PATH = Path("/proc/cpuinfo"), Path("/proc/meminfo")


def select_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device called `name`: `auto` (CUDA if there is one, else the CPU), `cpu`, `cuda`, `cuda:1` or just `1`.

    One of several processes on a machine gets the GPU with its `local_rank`. Raises UserError when the device is not there, or
    when all of them are to have the same GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local_rank is not None and name != "cpu":
        if name != "cuda":
            raise UserError(
                f"--device {name}: each of several processes has a GPU of its own; give cuda or cpu"
            )
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(f"cuda:{name}" if name.isdigit() else name)
        torch.empty(0, device=device)
        if local_rank is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL asks for the current one
    except (RuntimeError, AssertionError, NotImplementedError):
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise UserError(f"--device {name}: is not there; there is {there}") from None
    return device


def default_workers(device: torch.device, processes: int) -> int:
    """How many processes should load data for each of the run's `processes` on this machine: a core each, at most 8.

    On the CPU none: where the step itself computes on every core, a process beside it costs more than it brings.
    """
    return min(8, (os.cpu_count() or 1) // processes) if device.type != "cpu" else 0


def set_deterministic(exact: bool) -> None:
    """Whether sums are to have the same bits in every run: deterministic algorithms, and no search for the fastest.

    An operation that has no deterministic algorithm on the device then raises RuntimeError. To be called before the device has
    computed anything.
    """
    torch.use_deterministic_algorithms(exact)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # finds reads of unset memory, and costs time; no bit needs it
    )
    torch.backends.cudnn.benchmark = not exact
    if exact:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # what cuBLAS needs to be deterministic, by NVIDIA's manual


def disable_malloc_trim() -> None:
    """Let this process keep what it frees for what it asks for next, where the C library is glibc; elsewhere nothing happens.

    On the CPU a step frees and asks for hundreds of megabytes. Given back to the system each time, every page of them is cleared
    and mapped anew, which costs a tenth of the step and more, and not always the same.
    """
    mmap_max, trim_threshold = (
        -4,
        -1,
    )  # malloc.h's numbers for mallopt: what is handed out by mmap, and kept at the heap's top
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def available_memory() -> float:
    """Bytes that this machine can still give to programs, by Linux's own estimate; inf where that is not known."""
    try:
        return 1024 * int(
            MEMINFO_PATH.read_text(encoding="utf-8").partition("MemAvailable:")[2].split()[0]
        )
    except (OSError, ValueError, IndexError):
        return float("inf")


def prefers_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware and faster than float32 there; the same answer on every machine of a kind.

    Of the processors with AVX512-BF16, AMD's multiply twice as many bf16 numbers a second as float32 ones. Intel's multiply half
    as many, unless they have AMX, which a virtual machine may hide (both measured: docs/benchmarks.md).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_amx_tile_supported() or (
        torch.cpu._is_avx512_bf16_supported() and not _made_by_intel()
    )


def _made_by_intel() -> bool:
    try:
        return "GenuineIntel" in CPUINFO_PATH.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False


def peak_memory_gb(device: torch.device) -> float:
    """The most memory so far, in 10^9 bytes: the device's, or on the CPU the process's; nan where that is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    if sys.platform != "linux":  # elsewhere getrusage counts in other units, or is not there
        return float("nan")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
