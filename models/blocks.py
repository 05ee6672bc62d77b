"""The building blocks of the YOLO backbone and neck: convolution, CSP stage, pyramid pooling.

They are separate from yolo.py, so that a block can be changed without touching the architecture.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The share of each batch in the running statistics, which must keep up with weights that change
# fast at first. With 0.03, as YOLOv5 has it, validation after 6 epochs of BCCD normalized by the
# statistics of old weights, and mAP50-95 was 0.27 instead of 0.57. The EMA averages them further.
NORM_MOMENTUM = 0.2


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that counts its batches only if it uses the number: if `momentum` is None.

    On a GPU counting is a kernel in each layer and step. The buffer is kept, so that state dicts
    have the same keys.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.momentum is None:  # as `torch.optim.swa_utils.update_bn` sets it
            return super().forward(x)
        statistics = self.running_mean, self.running_var
        affine = self.weight, self.bias
        return F.batch_norm(x, *statistics, *affine, self.training, self.momentum, self.eps)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, SiLU; keeps height and width, or divides by `stride`.

    (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), for H and W multiples of
    `stride` and `kernel_size` >= `stride`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1
    ) -> None:
        padding = (kernel_size - stride + 1) // 2
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False),
            BatchNorm2d(out_channels, eps=1e-3, momentum=NORM_MOMENTUM),
            nn.SiLU(),
        )


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with a residual connection if `shortcut` (ResNet, arXiv 1512.03385)."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, 3)
        self.conv2 = ConvNormAct(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


def set_in_channels(module: nn.Module, channels: int) -> None:
    """Let the first convolution of `module` take `channels` channels, with random weights."""
    conv = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    shape = conv.out_channels, channels, *conv.kernel_size
    conv.in_channels, conv.weight = channels, nn.Parameter(conv.weight.new_empty(shape))
    conv.reset_parameters()


class CSPStage(nn.Module):
    """Cross-stage-partial stage: half of the channels pass through `depth` bottlenecks.

    The split is CSPNet's (arXiv 1911.11929); concatenating the output of every bottleneck is ELAN's
    (arXiv 2211.04800). (B, in_channels, H, W) -> (B, out_channels, H, W); `out_channels` is even.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.split = ConvNormAct(in_channels, 2 * half)
        self.bottlenecks = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(depth))
        self.merge = ConvNormAct((2 + depth) * half, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        outputs = list(self.split(x).chunk(2, dim=1))
        for bottleneck in self.bottlenecks:
            outputs.append(bottleneck(outputs[-1]))
        return self.merge(torch.cat(outputs, dim=1))


class PyramidPooling(nn.Module):
    """Spatial pyramid pooling (arXiv 1406.4729) over windows of 5, 9 and 13 pixels.

    Three max poolings over 5 pixels in a row give the three windows.
    (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = in_channels // 2
        self.reduce = ConvNormAct(in_channels, half)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.merge = ConvNormAct(4 * half, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.reduce(x)]
        for _ in range(3):
            outputs.append(self.pool(outputs[-1]))
        return self.merge(torch.cat(outputs, dim=1))
