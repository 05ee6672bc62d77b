"""The device a run computes on, how many workers feed it, and with which arithmetic."""

import functools
import os
from pathlib import Path

import torch

from utils import compat
from utils.cpus import LoadWatch, auto_threads, cpu_count
from utils.errors import UserError
from utils.log import info, plural

CPUINFO_PATH = Path("/proc/cpuinfo")


def select_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device called `name`: auto (CUDA if available), cpu, cuda, cuda:1 or just 1.

    With several processes on a machine, each uses the GPU with its `local_rank`; with one,
    `local_rank` is None. A GPU that has a number becomes the current one. Raises UserError when the
    device is not available, or when several processes would share one GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if "," in name:
        count = len(name.split(","))
        raise UserError(
            f"--device {name}: a process uses one device (start several with torchrun "
            f"--nproc_per_node {count} train.py)"
        )
    if local_rank is not None and name != "cpu":
        if name != "cuda":
            raise UserError(
                f"--device {name}: with several processes each uses its own GPU (use cuda or cpu)"
            )
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(f"cuda:{name}" if name.isdigit() else name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # NCCL and pinned memory use the current device
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UserError(
            f"--device {name}: not available (choose from {', '.join(available)})"
        ) from None
    return device


@functools.cache
def _default_threads() -> int:
    """Return torch's own number of threads, OMP_NUM_THREADS if that is set, before any change."""
    return torch.get_num_threads()


def set_threads(count: int | None = None) -> int:
    """Let torch compute with `count` threads on the CPU, and return the number.

    By default with OMP_NUM_THREADS if that is set, or as many as `auto_threads` recommends at this
    moment. The last bits of a sum depend on the number.
    """
    default = _default_threads()
    if count is None:
        count = default if "OMP_NUM_THREADS" in os.environ else auto_threads(default)
        if count < default:
            threads = f"computing with {plural(count, 'thread')}, not {default}"
            info(f"{threads}: other programs or a quota take CPUs (OMP_NUM_THREADS for another)")
    if count != torch.get_num_threads():
        torch.set_num_threads(count)
    return count


def watch_load(device: torch.device, num_processes: int) -> LoadWatch:
    """Return what notices other programs, for a run that computes on the CPU in one process.

    `num_processes`: those of the run, DataLoader workers included. The CPUs that the others of them
    use would look like those of other programs.
    """
    is_alone = device.type == "cpu" and num_processes == 1
    return LoadWatch(torch.get_num_threads() if is_alone else 1)


def default_workers(device: torch.device, local_world_size: int) -> int:
    """Return the number of DataLoader workers per process, of `local_world_size` on this machine.

    On a GPU one for each CPU that they may use, at most 8: they yield over 2,000 samples/s of 640
    px once the images are in memory (docs/benchmarks.md), and more need shared memory, scarce in
    containers. On the CPU none: the training step uses every core, and a worker takes more time
    from it than it saves.
    """
    if device.type == "cpu":
        return 0
    return min(8, cpu_count() // local_world_size)


def set_deterministic(deterministic: bool) -> None:
    """Choose between bitwise reproducible algorithms and the fastest ones.

    Call it before the device computes anything. With `deterministic`, an operation without a
    deterministic algorithm on the device raises RuntimeError.
    """
    torch.use_deterministic_algorithms(deterministic)
    # It finds reads of uninitialized memory and takes time; the results do not depend on it.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # cuBLAS is deterministic only with a workspace of fixed size (cuBLAS documentation,
        # "Results reproducibility").
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def prefers_bf16(device: torch.device) -> bool:
    """Return whether `device` computes faster in bf16 than in float32.

    The answer depends on the hardware only, not on a measurement, so that it is the same every
    time. Among CPUs with AVX512-BF16, AMD's multiply twice as many bf16 numbers per second as
    float32 numbers. Intel's multiply half as many, unless they have AMX, which a virtual machine
    may hide. (Both were measured: docs/benchmarks.md.)
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return compat.cpu_has_amx() or (compat.cpu_has_avx512_bf16() and not _is_intel_cpu())


def _is_intel_cpu() -> bool:
    try:
        return "GenuineIntel" in CPUINFO_PATH.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False
