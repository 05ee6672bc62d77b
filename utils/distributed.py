"""Several processes as one run, started with torchrun: ranks, collectives and DDP.

All processes take the same steps. What only one may do (evaluate, write, print) is done by rank 0,
the main process. In a run of one process nothing is communicated.
"""

import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils import compat
from utils.errors import OtherProcessFailed, UserError
from utils.shared_file import SharedFile, read_shared, write_shared

T = TypeVar("T")
# A process whose peer has ended notices it at once, by the closed connection. The timeout is for a
# peer that hangs, and must not end a run that waits for a long evaluation or a full disk cache.
TIMEOUT = timedelta(days=1)


class DistributedContext:
    """The processes of a run; creating it joins them.

    gloo communicates tensors on the CPU, NCCL those on GPUs. `rank` of `world_size` processes, on
    this machine `local_rank` of `local_world_size`, as torchrun sets them in the environment;
    `local_rank` is None in a run of one process. `is_main` is true in rank 0. Raises UserError when
    the environment asks for several processes but was not set by torchrun.
    """

    def __init__(self) -> None:
        self.rank = 0
        self.world_size = 1
        self.local_rank: int | None = None
        self.local_world_size = 1
        self._ddp_model: nn.parallel.DistributedDataParallel | None = None
        self._poll: tuple[Tensor, dist.Work] | None = None
        world_size = os.environ.get("WORLD_SIZE", "1")
        if world_size != "1":
            if "TORCHELASTIC_RUN_ID" not in os.environ:
                raise UserError(
                    f"WORLD_SIZE={world_size}: not set by torchrun (start several processes with "
                    "torchrun, or unset this environment variable for one)"
                )
            self.rank = int(os.environ["RANK"])
            self.world_size = int(world_size)
            self.local_rank = int(os.environ["LOCAL_RANK"])
            self.local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
        self.is_main = self.rank == 0
        if self.world_size > 1:
            # DDP imports this module, whose functions have the default process group as the default
            # of an argument. Imported before there is a group, they hold None; imported later, they
            # would keep the group alive (see `shutdown`).
            importlib.import_module("torch.distributed.nn.functional")
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=_store(),
                rank=self.rank,
                world_size=self.world_size,
                timeout=TIMEOUT,
            )

    def on_main(self, fn: Callable[..., T], *args: object) -> T:
        """Call `fn(*args)` in the main process only, and return its result in every process.

        If it raises an exception, all processes raise one: see `raise_together`.
        """
        results = [self.on_each(lambda: fn(*args) if self.is_main else None)]
        if self.world_size > 1:
            dist.broadcast_object_list(results)
        return results[0]

    def on_node_main(self, fn: Callable[..., T], *args: object) -> T:
        """Call `fn(*args)` in one process of each machine, and return its result in all of them.

        The processes of a machine share the memory of the result's arrays. If the result cannot be
        written to a temporary file, each process calls `fn`. If it raises an exception, all
        processes raise one: see `raise_together`.
        """
        if self.local_rank is None:
            return fn(*args)

        def call_and_share() -> SharedFile | None:
            if self.local_rank > 0:
                return None
            result = fn(*args)
            with suppress(OSError):  # a full or read-only disk
                return write_shared(result)

        file = self.on_each(call_and_share)
        files: list[Any] = [None] * self.world_size
        dist.all_gather_object(files, (self.local_rank, file))
        _, file = files[self.rank - self.local_rank]  # torchrun numbers a machine's ranks in a row
        if all(file for local_rank, file in files if local_rank == 0):
            result = self.on_each(read_shared, file)
        else:
            result = self.on_each(fn, *args)
        if self.local_rank == 0 and file is not None:
            with suppress(OSError):  # Windows cannot delete it while it is in use
                Path(file.path).unlink()
        return result

    def on_each(self, fn: Callable[..., T], *args: object) -> T:
        """Call `fn(*args)` in every process, and return its result once all have ended.

        If it raises an exception, all processes raise one: see `raise_together`.
        """
        result, error = None, None
        try:
            result = fn(*args)
        except Exception as exception:
            error = exception
        self.raise_together(error)
        return result

    def raise_together(self, error: Exception | None) -> None:
        """Return if `error` is None in every process; otherwise raise in all of them.

        The first process that has an error raises it. The others raise OtherProcessFailed, so that
        an error is reported once, and none waits for a process that has ended.
        """
        if self.world_size == 1:
            if error is not None:
                raise error
            return
        failed_rank = -self.all_reduce_max(-self.world_size if error is None else -self.rank)
        if failed_rank == self.world_size:
            return
        if failed_rank == self.rank:
            raise error
        # torchrun reports the exit status of the process that ends first.
        with suppress(RuntimeError):  # the connection is closed
            dist.recv(torch.empty(1), failed_rank)
        raise OtherProcessFailed

    def all_reduce_max(self, number: int) -> int:
        """Return the maximum of `number` over all processes, without waiting for a GPU."""
        if self.world_size == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def poll_max(self, number: int) -> int:
        """Return the maximum over all processes of the `number` each gave in its previous call.

        In a run of one process this is `number`. It is for every step: the answer to a call travels
        while the step after it computes, and nobody waits for it.
        """
        if self.world_size == 1:
            return number
        if self._poll is not None:
            tensor, work = self._poll
            work.wait()
            previous = int(tensor)
        else:
            previous = 0
        tensor = torch.tensor(number)
        self._poll = tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)
        return previous

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of `tensor` over all processes; with several, `tensor` is overwritten."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
            tensor /= self.world_size
        return tensor

    def all_gather(self, value: T) -> list[T]:
        """Return the `value` of each process, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows (n, columns) of all processes, sorted by their first column (stable).

        In a run of one process they are returned as they are.
        """
        if self.world_size == 1:
            return rows
        rows = np.concatenate(self.all_gather(rows))
        return rows[rows[:, 0].argsort(kind="stable")]

    def wrap_ddp(self, model: nn.Module, same_order: bool) -> nn.Module:
        """Return `model` in DDP, which averages gradients; in a run of one process `model` itself.

        With `same_order` a resumed run sums gradients in the same order as an uninterrupted one. By
        default DDP rebuilds its buckets after the first step, to overlap better with the backward
        pass, and the position of a gradient in its bucket decides in which order three or more
        processes sum it.
        """
        if self.world_size == 1:
            return model
        # DDP does not rebuild buckets when it searches for unused parameters; it warns that it
        # found none.
        find_unused = same_order and self.world_size > 2
        self._ddp_model = nn.parallel.DistributedDataParallel(
            model, find_unused_parameters=find_unused, gradient_as_bucket_view=True
        )
        return self._ddp_model

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the main process's buffers (BatchNorm statistics) of `model` to all processes."""
        if self.world_size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        for buffers in by_dtype.values():  # all of one type are sent together
            joined = torch.cat([buffer.flatten() for buffer in buffers])
            dist.broadcast(joined, 0)
            for buffer, values in zip(
                buffers, joined.split([buffer.numel() for buffer in buffers]), strict=True
            ):
                buffer.copy_(values.view_as(buffer))

    def shutdown(self) -> None:
        """Wait for all processes, then destroy the process group.

        The model from `wrap_ddp` cannot be used afterwards. The group's threads end with the last
        reference to it, so nothing may refer to it any longer: a thread that outlives the
        interpreter aborts the process, which then reports failure after all its work.
        """
        if self.world_size > 1:
            dist.barrier()
            self._poll = None
            if self._ddp_model is not None:
                compat.drop_ddp_references(self._ddp_model)
            dist.destroy_process_group()


def convert_sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` with BatchNorm over all processes' images. Raises UserError on the CPU."""
    if device.type == "cpu":
        raise UserError(
            "--sync-bn: requires CUDA (on the CPU each process normalizes its own shard of a batch)"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _store() -> dist.Store | None:
    """Return the store through which processes find each other, or None to let torch choose.

    On one machine torchrun keeps its store over restarts, including the addresses of processes that
    have ended, which new processes would try to reach
    (https://github.com/pytorch/pytorch/issues/135712). A prefix for each start separates them.
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or env.get("GROUP_WORLD_SIZE") != "1":
        return None
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
    return dist.PrefixStore(f"start {env['TORCHELASTIC_RESTART_COUNT']}", store)
