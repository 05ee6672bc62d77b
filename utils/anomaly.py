"""`--detect-anomaly`: finds the layer in which numbers go wrong."""

from torch import Tensor, nn

from utils.errors import UserError


def detect_anomaly(model: nn.Module) -> None:
    """Make `model` raise UserError, naming the first module whose output is not finite, in every forward pass.

    A backward pass in which a nan arises is for `torch.autograd.set_detect_anomaly`, which names the function that it arose in.
    """
    for name, module in model.named_modules():
        module.register_forward_hook(_raising(name or "the model"))


def _raising(name: str) -> object:
    def check(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        for number, tensor in enumerate(_tensors(output)):
            if wrong := int((~tensor.isfinite()).sum()):
                came = (
                    "finite"
                    if all(t.isfinite().all() for t in _tensors(inputs))
                    else "not finite either"
                )
                raise UserError(
                    f"--detect-anomaly: {name} ({type(module).__name__}): {wrong} of the {tensor.numel()} numbers in its output "
                    f"{number} are not finite; its input was {came}, its weights are "
                    f"{'finite' if all(t.isfinite().all() for t in module.parameters()) else 'not finite'}"
                )

    return check


def _tensors(value: object) -> list[Tensor]:
    """The tensors of numbers with a fraction in `value`, through tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, list | tuple)
        else ()
    )
    return [tensor for part in parts for tensor in _tensors(part)]
