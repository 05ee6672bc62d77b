"""The processes of a run, as torchrun starts them. A process that was started without torchrun is alone, and waits for nobody.

Every process takes the same steps; what only one may do (search, write, print) the first one does, rank 0.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import UserError


class DistributedContext:
    """Joins the run's processes on creation: `rank` of `count`; on this machine, `local_rank` of `local_count`.

    torchrun says who is who in the environment; a process that is alone has the local rank None. Tensors on the CPU travel by
    gloo, those on GPUs by NCCL.
    """

    def __init__(self) -> None:
        self.rank, self.count, self.local_rank, self.local_world_size = 0, 1, None, 1
        if os.environ.get("WORLD_SIZE", "1") != "1":
            if "TORCHELASTIC_RUN_ID" not in os.environ:
                raise UserError(
                    f"WORLD_SIZE={os.environ['WORLD_SIZE']}: several processes are for torchrun to start"
                )
            names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
            self.rank, self.count, self.local_rank, self.local_world_size = (
                int(os.environ[name]) for name in names
            )
        self.first = self.rank == 0
        self._parallel: nn.Module | None = None
        if self.count > 1:
            # DDP imports this module, whose functions then hold the group of all as a default; as early as here there is none.
            importlib.import_module("torch.distributed.nn.functional")
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=_store(), rank=self.rank, world_size=self.count)

    def on_main(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What `function(*arguments)` returns in the first process, in every process; the others do not call it."""
        results = [function(*arguments) if self.first else None]
        if self.count > 1:
            dist.broadcast_object_list(results)
        return results[0]

    def all_reduce_max(self, number: int) -> int:
        """The largest of the processes' numbers. It waits for no GPU."""
        if self.count == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the processes' tensors, on their device."""
        if self.count > 1:
            dist.all_reduce(tensor)
            tensor /= self.count
        return tensor

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """In the first process the rows of all, ordered by their first column; in the others their own."""
        if self.count == 1:
            return rows
        parts: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(rows, parts)
        rows = np.concatenate(parts) if parts else rows
        return rows[rows[:, 0].argsort(kind="stable")]

    def parallel(self, model: nn.Module, same_order: bool) -> nn.Module:
        """`model` with gradients that are the mean over the processes; a process alone gets `model` itself.

        With `same_order` a resumed run adds up gradients in the order of an uninterrupted one. Otherwise DDP packs them anew
        after its first step, to overlap better with the backward pass, and where a number lies decides in which order three or
        more processes add it up.
        """
        if self.count == 1:
            return model
        # A search for unused parameters is what keeps DDP from packing anew; it says on stderr that it has found none.
        self._parallel = nn.parallel.DistributedDataParallel(
            model, find_unused_parameters=same_order and self.count > 2
        )
        return self._parallel

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers: the statistics of its batch norms, which differ from process to process."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def leave(self) -> None:
        """Wait for all, then part; nothing may be exchanged afterwards, and what `parallel` gave is empty.

        The threads of the group end with the last reference to it. One that outlives the interpreter aborts the process, which
        then has failed after all its work (pytorch issue 190489): so nothing may hold the group any longer.
        """
        if self.count > 1:
            dist.barrier()
            if self._parallel is not None:
                vars(self._parallel).clear()
            dist.destroy_process_group()


def convert_sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with batch norms over the pictures of all processes, not each process's own. Raises UserError on the CPU."""
    if device.type == "cpu":
        raise UserError(
            "--sync-bn: needs CUDA; on the CPU each process normalizes its own share of a batch"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _store() -> dist.Store | None:
    """Where the processes find each other: torchrun's store, or None for torch to decide.

    On one machine torchrun keeps its store over restarts, and with it the addresses of processes that are gone, which the new
    ones would try (pytorch issue 135712). A name of its own for each start keeps them apart.
    """
    environment = os.environ
    if (
        environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        or environment.get("GROUP_WORLD_SIZE") != "1"
    ):
        return None
    store = dist.TCPStore(
        environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False
    )
    return dist.PrefixStore(f"start {environment['TORCHELASTIC_RESTART_COUNT']}", store)
