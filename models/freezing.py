"""`--freeze`: training leaves the backbone, or the first N layers, unchanged."""

from torch import nn

from models.detector import Detector
from utils.errors import UserError
from utils.log import plural


def freeze(model: Detector, spec: str) -> list[nn.Module]:
    """Freeze the modules of `spec`, "backbone" or a number of layers, and return them.

    They no longer require gradients, and are in evaluation mode: the training loop must keep them
    there, or their batch norms would update their statistics.
    Raises UserError if the model has no backbone or fewer layers.
    """
    layers = model.freezable_layers()
    if spec == "backbone":
        modules = model.backbone_modules()
    else:
        modules = layers[: int(spec)] if int(spec) <= len(layers) else []
    if not modules:
        allowed = f"backbone, or 1 to {len(layers)}" if layers else "nothing"
        raise UserError(
            f"--freeze {spec}: the model has {plural(len(layers), 'layer')} before the head "
            f"(allowed: {allowed})"
        )
    for module in modules:
        module.eval().requires_grad_(False)
    return modules
