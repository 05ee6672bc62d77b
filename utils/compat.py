"""Every private API of torch, multiprocessing and PyYAML in use, each with its reason.

When a new version of one of them breaks something, this is the file to fix.
"""

import multiprocessing.queues
import os
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from torch import Tensor, nn


def foreach_lerp_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Move each of `tensors` in place towards its counterpart in `ends`, by the fraction `weight`.

    torch's optimizers use it too: one kernel for all tensors, where a loop over hundreds of small
    ones starts hundreds.
    """
    torch._foreach_lerp_(list(tensors), list(ends), weight)


def foreach_lerp(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> list[Tensor]:
    """Return what `foreach_lerp_` would leave in `tensors`, as new tensors."""
    return list(torch._foreach_lerp(list(tensors), list(ends), weight))


def foreach_mul_(tensors: Sequence[Tensor], factors: float | Sequence[float]) -> None:
    """Multiply each of `tensors` in place by a factor, in one kernel like `foreach_lerp_`."""
    torch._foreach_mul_(list(tensors), factors)


def foreach_add_(tensors: Sequence[Tensor], others: Sequence[Tensor], factor: float) -> None:
    """Add to each of `tensors` its counterpart in `others` times `factor`, like `foreach_lerp_`."""
    torch._foreach_add_(list(tensors), list(others), alpha=factor)


def foreach_copy_(tensors: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy to each of `tensors` its counterpart in `sources`, like `foreach_lerp_`."""
    torch._foreach_copy_(list(tensors), list(sources))


def allow_accumulation_on_other_streams() -> None:
    """Do not warn that gradients are accumulated on another stream than they are made on.

    torch synchronizes the two, and has the warning, and this switch for it, from 2.11 on.
    """
    graph = torch.autograd.graph
    if hasattr(graph, "set_warn_on_accumulate_grad_stream_mismatch"):
        graph.set_warn_on_accumulate_grad_stream_mismatch(False)


def cpu_has_amx() -> bool:
    """Return whether the CPU has AMX tiles; torch has no public query for it."""
    return torch.cpu._is_amx_tile_supported()


def cpu_has_avx512_bf16() -> bool:
    """Return whether the CPU has AVX512-BF16; torch has no public query for it."""
    return torch.cpu._is_avx512_bf16_supported()


def exit_on_queue_feeder_error() -> None:
    """Make this process exit with status 1 when one of its queues cannot send an object.

    By default the thread that feeds the queue prints the error and drops the object. A DataLoader
    waits forever for a batch that was dropped. multiprocessing has this hook, documented in its
    source only; call it in workers only, because it changes every queue of the process.
    """
    hook = staticmethod(lambda error, obj: os._exit(1))
    multiprocessing.queues.Queue._on_queue_feeder_error = hook


def new_shared(num_bytes: int) -> Tensor:
    """Return an uninitialized tensor (num_bytes,) uint8 in shared memory.

    So does torch's default_collate; the public way, share_memory_(), copies a tensor.
    """
    storage = torch.UntypedStorage._new_shared(num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def map_shared(descriptor: int, num_bytes: int) -> Tensor:
    """Return the file of a descriptor as a tensor (num_bytes,) uint8 in shared memory.

    Workers map such files to receive a batch; torch has no public way to share a file of one's own.
    """
    storage = torch.UntypedStorage._new_shared_fd_cpu(descriptor, num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def drop_ddp_references(ddp_model: nn.parallel.DistributedDataParallel) -> None:
    """Drop all that `ddp_model` refers to, the process group included; it is unusable then.

    The threads of a gloo group end with the last reference to it, and one that outlives the
    interpreter aborts the process after all its work
    (pytorch issue 190489). DDP has no public method to release the
    group.
    """
    vars(ddp_model).clear()


def implicit_resolvers_without(
    loader_class: type[yaml.SafeLoader], tags: Sequence[str]
) -> dict[str, list[Any]]:
    """Return the type table of `loader_class` without `tags`.

    It maps the first character of a value to (tag, pattern) pairs. PyYAML can add a resolver but
    not remove one: the table is the only way to stop reading YAML 1.1 numbers.
    """
    return {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in tags]
        for first, resolvers in loader_class.yaml_implicit_resolvers.items()
    }
