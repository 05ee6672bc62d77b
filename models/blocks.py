"""The building blocks of the YOLO backbone and neck: convolution with norm and activation, CSP stage, pyramid pooling.

They stand apart from `yolo.py` so that an idea about a block can be tried without touching how the network is wired.
"""

import torch
from torch import Tensor, nn


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, SiLU; keeps the size, or divides it by `stride`.

    (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride); `stride` divides the sides, `kernel_size` >= `stride`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                (kernel_size - stride + 1) // 2,
                bias=False,
            ),
            nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03),
            nn.SiLU(),
        )


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with a residual connection if `shortcut` (He et al., arXiv 1512.03385)."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, 3)
        self.conv2 = ConvNormAct(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CSPStage(nn.Module):
    """A cross-stage-partial stage: half of the channels pass `depth` bottlenecks in a row, and every step's output is kept.

    The split is CSPNet's (Wang et al., arXiv 1911.11929), the gathering of every step ELAN's (arXiv 2211.04800).
    (B, in_channels, H, W) -> (B, out_channels, H, W); `out_channels` must be even.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.split = ConvNormAct(in_channels, 2 * half)
        self.steps = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(depth))
        self.merge = ConvNormAct((2 + depth) * half, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        kept = list(self.split(x).chunk(2, dim=1))
        for step in self.steps:
            kept.append(step(kept[-1]))
        return self.merge(torch.cat(kept, dim=1))


class PyramidPooling(nn.Module):
    """Spatial pyramid pooling (He et al., arXiv 1406.4729): 5, 9 and 13 pixel maxima, got by pooling by 5 three times in a row.

    (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = in_channels // 2
        self.reduce = ConvNormAct(in_channels, half)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.merge = ConvNormAct(4 * half, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.reduce(x)]
        for _ in range(3):
            kept.append(self.pool(kept[-1]))
        return self.merge(torch.cat(kept, dim=1))
