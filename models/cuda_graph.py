"""Replay a network as CUDA graphs: two launches a step in place of one for each kernel."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from utils import compat
from utils.amp import autocast


def capture_training(
    model: nn.Module,
    frozen_modules: Iterable[nn.Module],
    shape: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Record the network of a `Detector` as in a training step, for images of this shape and type.

    The modules that are frozen are in evaluation mode. Raises UserError if the model has no graphs.
    """
    model.train()
    for module in frozen_modules:
        module.eval()
    images = torch.zeros(shape, dtype=dtype, device=device)
    with autocast(device, dtype):
        model.capture_network(images.contiguous(memory_format=torch.channels_last))


class CudaGraph:
    """The forward and the backward pass of `network`, recorded for batches like `images`.

    Called with a batch of the same shape and type as `images`, it returns what `network` does, a
    tuple of tensors, until the next call overwrites them. The kernels, their order and their
    numbers are those of `network`. What Python does in between is not repeated: a branch or a
    random number is frozen as it was recorded.

    The gradients that a backward pass leaves in the parameters are overwritten by the next, so they
    cannot be accumulated over batches (pytorch issue 181723).
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        # Recording runs the network a few times, which moves the statistics of its batch norms.
        buffers = [buffer.clone() for buffer in network.buffers()]
        device = images.device.type
        with torch.autocast(
            device,
            torch.get_autocast_dtype(device),
            torch.is_autocast_enabled(device),
            cache_enabled=False,  # a cached weight would be outside of the graph
        ):
            graphed = torch.cuda.make_graphed_callables(network, (images,))
        self.replay: Callable[[Tensor], tuple[Tensor, ...]] = graphed.forward
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(value)
        # The recording was made on a stream of its own; autograd synchronizes it with the others.
        compat.allow_accumulation_on_other_streams()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.replay(images)

    def __deepcopy__(self, memo: dict[int, object]) -> None:
        """Return None: a copy of the network has other parameters, which are not recorded."""
