"""The device a run computes on, and what it can do."""

import sys

import torch

from utils.errors import UserError


def select_device(name: str) -> torch.device:
    """The device called `name`: `auto` (CUDA if there is one, else the CPU), `cpu`, `cuda`, `cuda:1` or just `1`.

    Raises UserError when it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{name}" if name.isdigit() else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise UserError(f"--device {name}: is not there; there is {there}") from None
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def peak_memory_gb(device: torch.device) -> float:
    """The most memory so far, in 10^9 bytes: the device's, or on the CPU the process's; nan where that is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    if sys.platform != "linux":  # elsewhere getrusage counts in other units, or is not there
        return float("nan")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
