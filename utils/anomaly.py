"""`--detect-anomaly`: find the first module with a non-finite output."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from utils.errors import UserError

ForwardHook = Callable[[nn.Module, tuple[object, ...], object], None]


def detect_anomaly(model: nn.Module) -> None:
    """Make forward passes of `model` raise UserError, naming the first non-finite output's module.

    For a nan that arises in the backward pass, `torch.autograd.set_detect_anomaly` names the
    function.
    """
    for name, module in model.named_modules():
        module.register_forward_hook(_check_output(name or "the model"))


def _check_output(name: str) -> ForwardHook:
    def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        for index, tensor in enumerate(_float_tensors(output)):
            num_bad = int((~tensor.isfinite()).sum())
            if num_bad:
                raise UserError(
                    f"--detect-anomaly: {name} ({type(module).__name__}): {num_bad} of the "
                    f"{tensor.numel()} values of output {index} are not finite "
                    f"(its input was {_finiteness(_float_tensors(inputs))}, "
                    f"its weights are {_finiteness(module.parameters())})"
                )

    return hook


def _finiteness(tensors: Iterable[Tensor]) -> str:
    return "finite" if all(tensor.isfinite().all() for tensor in tensors) else "not finite"


def _float_tensors(value: object) -> list[Tensor]:
    """Return the floating-point tensors in `value`, searching tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = [*value.values()]
    if not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in _float_tensors(part)]
