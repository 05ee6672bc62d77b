"""Constants of other people's `forward` without a device, so that an export can be moved."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PortableConstants(TorchFunctionMode):
    """While entered, `torch.arange`, `zeros`, `ones`, `full` and `empty` read `cells`.

    A trace keeps the device that these were called with; a buffer is moved with the export.
    `Tensor.to` with the tensor's own device is traced without it. The values are the same.

    cells: a buffer, 0, 1, 2, ..., int32. A call that it cannot serve is left as it is.
    """

    def __init__(self, cells: Tensor) -> None:
        super().__init__()
        self.cells = cells

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        made = MAKERS[func](self.cells, *args, **kwargs) if func in MAKERS else None
        return func(*args, **kwargs) if made is None else made


def _arange(
    cells: Tensor, *bounds: Any, end: Any = None, dtype: torch.dtype | None = None, **options: Any
) -> Tensor | None:
    if options.keys() & {"start", "step"}:
        return None
    bounds = bounds if end is None else (*bounds, end)
    # Numbers of cells are tensors while torch.jit traces.
    if any(isinstance(b, float) or b < 0 for b in bounds) or len(bounds) > 2:
        return None
    if bounds[-1] > len(cells):
        return None
    return cells[slice(*bounds)].to(torch.int64 if dtype is None else dtype)


def _full(
    cells: Tensor, size: Any, fill_value: Any, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    if dtype is None:
        dtypes = {bool: torch.bool, int: torch.int64}
        dtype = dtypes.get(type(fill_value), torch.get_default_dtype())
    return torch.full_like(cells[0].expand(size), fill_value, dtype=dtype)


def _filled(value: float) -> Callable[..., Tensor]:
    def fill(cells: Tensor, *size: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        size = options.get("size", size[0] if size and isinstance(size[0], tuple | list) else size)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return _full(cells, size, value, dtype)

    return fill


def _to(cells: Tensor, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Return `tensor.to` of all but its own device, None if it is to be moved to another."""
    device = kwargs.get("device", args[0] if args else None)
    if not isinstance(device, torch.device) or device != tensor.device:
        return None
    kwargs = {key: value for key, value in kwargs.items() if key != "device"}
    args = tuple(value for value in args if value is not device)
    return tensor.to(*args, **kwargs) if args or kwargs else tensor


MAKERS: dict[Any, Callable[..., Tensor | None]] = {
    torch.arange: _arange,
    torch.full: _full,
    torch.zeros: _filled(0),
    torch.empty: _filled(0),
    torch.ones: _filled(1),
    torch.Tensor.to: _to,
}
