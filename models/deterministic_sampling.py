"""`grid_sample` with a deterministic gradient on CUDA, where torch has none.

Deformable attention reads feature maps with it (https://github.com/pytorch/pytorch/issues/68959).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class DeterministicSampling(TorchFunctionMode):
    """While entered, `torch.nn.functional.grid_sample` is `sample_bilinear`.

    Raises NotImplementedError if it is called with other options than deformable attention's.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.grid_sample:
            return func(*args, **kwargs)
        return _grid_sample(*args, **kwargs)


def _grid_sample(
    maps: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    if (mode, padding_mode) != ("bilinear", "zeros") or align_corners:
        raise NotImplementedError(f"grid_sample: {mode}, {padding_mode}, {align_corners}")
    return sample_bilinear(maps, grid)


def sample_bilinear(maps: Tensor, grid: Tensor) -> Tensor:
    """Read `maps` (B, C, H, W) at the points `grid` (B, h, w, 2); returns (B, C, h, w).

    A point is (x, y), from -1 at the left or upper edge of a map to 1 at the other edge; outside of
    it there are zeros. Each value is the bilinear mean of four cells, read with `gather`, whose
    gradient torch can sum in a fixed order.
    """
    height, width = maps.shape[-2:]
    cells = maps.flatten(2)
    # Cell (i, j) has its center at (j + 0.5, i + 0.5).
    x = (grid[..., 0] + 1) * (width / 2) - 0.5
    y = (grid[..., 1] + 1) * (height / 2) - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    total = torch.zeros((), dtype=maps.dtype, device=maps.device)
    for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            index = index.flatten(1)[:, None].expand(-1, cells.shape[1], -1)
            values = cells.gather(2, index).unflatten(2, grid.shape[1:3])
            total = total + values * (weight_x * weight_y * inside)[:, None]
    return total
