"""Mixed precision (`--amp`): what the network computes in, and the loss scale of float16."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from utils.device import prefers_bf16

AMP = ("auto", "bf16", "fp16", "off")
TENSOR_CORES = (7, 0)  # the first compute capability with them: V100, T4, RTX 20


def amp_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type that convolutions compute in, for a name in `AMP`; float32 for "off".

    "auto" is bf16 where the hardware is faster in it than in float32, float16 on a GPU with tensor
    cores but without bf16, and otherwise float32.
    """
    if name == "auto":
        if prefers_bf16(device):
            name = "bf16"
        elif device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES:
            name = "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)


def inference_dtype(amp: str, device: torch.device) -> torch.dtype:
    """Return the type that a model trained with `--amp` AMP computes in: that of its training.

    So it detects what it detected in validation. float16, in which CPUs are slow, only on a GPU.
    """
    return amp_dtype("auto" if amp == "fp16" and device.type != "cuda" else amp, device)


def amp_name(dtype: torch.dtype) -> str:
    """Return the name in `AMP` of a type that `amp_dtype` returned."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "off")


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which convolutions compute in `dtype`; nothing changes for float32."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype if enabled else None, enabled)


class LossScaler(torch.amp.GradScaler):
    """torch's GradScaler, which does nothing unless `dtype` is float16.

    The gradients of a loss are so small that float16 rounds many of them to 0. So the loss is
    multiplied by a scale (Micikevicius et al., arXiv 1710.03740), and the gradients are divided by
    it before they are used. The scale is halved when they overflow, and doubled when they have not
    for a while.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device.type, enabled=dtype == torch.float16)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the scale; one that was not saved, by a run in another type, starts anew."""
        if state:
            super().load_state_dict(dict(state))

    def overflows(self, loss: Tensor) -> bool:
        """Return whether the scale, not the model, is the cause of gradients that are not finite.

        `loss` is that of the step, not scaled. Waits for the device.
        """
        return self.is_enabled() and bool(loss.isfinite()) and self.get_scale() > 1
