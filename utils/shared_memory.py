"""Memory that a process shares with DataLoader workers, whichever way they are started.

A worker that is forked inherits the memory of its process. The start methods forkserver (Linux from
Python 3.14 on) and spawn (macOS, Windows) pickle what a worker needs: torch sends a tensor that is
in shared memory as a reference, and copies everything else.
"""

import mmap
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from utils import compat
from utils.errors import UserError

SHM_DIR = Path("/dev/shm")  # where Linux has shared memory
PREFETCH_FACTOR = 2  # batches that a DataLoader asks of each worker in advance, torch's default


def shared_zeros(num_bytes: int) -> Tensor:
    """Return zeros (num_bytes,) uint8, which take memory when they are first written.

    Processes that are started later by any start method read and write the same bytes.
    """
    default, *_ = multiprocessing.get_all_start_methods()
    # allow_none, because otherwise the start method could not be set any more.
    if (multiprocessing.get_start_method(allow_none=True) or default) == "fork":
        return torch.frombuffer(mmap.mmap(-1, max(1, num_bytes)), dtype=torch.uint8)[:num_bytes]
    if hasattr(os, "memfd_create"):  # Linux; not limited by the size of /dev/shm
        descriptor = os.memfd_create("shared_zeros")
        try:
            os.truncate(descriptor, max(1, num_bytes))
            return compat.map_shared(descriptor, max(1, num_bytes))[:num_bytes]
        finally:
            os.close(descriptor)
    return compat.new_shared(num_bytes).zero_()


def empty_batch(shape: tuple[int, ...]) -> Tensor | None:
    """Return an uninitialized uint8 tensor for a worker's batch, None in the main process.

    It is in shared memory: a batch that is not would be copied there to be sent.
    """
    if get_worker_info() is None:
        return None
    return compat.new_shared(int(np.prod(shape))).view(shape)


class SharedArray:
    """A numpy array, not to be written to, of which all workers together have one copy at most.

    A worker that is not forked unpickles a reference to shared memory.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self._memory: Tensor | None = None

    def __reduce__(self) -> tuple[object, ...]:
        dtype, shape = self.array.dtype, self.array.shape
        if self._memory is None:
            self._memory = shared_zeros(self.array.nbytes)
            _as_array(self._memory, dtype, shape)[...] = self.array
        return _unpickle, (self._memory, dtype, shape)


def _as_array(memory: Tensor, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return memory.numpy().view(dtype).reshape(shape)


def _unpickle(memory: Tensor, dtype: np.dtype, shape: tuple[int, ...]) -> SharedArray:
    return SharedArray(_as_array(memory, dtype, shape))


def check_shared_memory(batch_bytes: int, workers: int, num_processes: int) -> None:
    """Raise UserError if the batches that workers prepare in advance do not fit into /dev/shm.

    Each of `num_processes` on this machine has `workers`. A container often has only 64 MB there,
    and a run would end when the workers get ahead of it, minutes or hours after its start.
    """
    if not workers or not SHM_DIR.is_dir():
        return
    free = shutil.disk_usage(SHM_DIR).free
    required = (PREFETCH_FACTOR * workers + 1) * batch_bytes * num_processes
    if required > free:
        fitting = max(0, (free // (batch_bytes * num_processes) - 1) // PREFETCH_FACTOR)
        raise UserError(
            f"--workers {workers}: their batches need {required / 1e6:.0f} MB of shared memory, "
            f"and {SHM_DIR} has {free / 1e6:.0f} MB (make it larger, in Docker with --shm-size, or "
            f"use --workers {fitting})"
        )
