"""Keeps the first layers of a detector as they are: `--freeze backbone`, or `--freeze N` for the first N layers."""

from torch import nn

from models.torchvision_backbones import TorchvisionBackbone
from utils.errors import UserError


def layers(model: nn.Module) -> list[nn.Module]:
    """The parts of the backbone and, in our own detector, of the neck, in the order in which a picture passes them."""
    backbone = _backbone(model)
    for name in (
        "body",
        "features",
    ):  # what torchvision's detectors have beside a pyramid or more layers
        backbone = getattr(backbone, name, backbone)
    return [*backbone.children(), *(model.neck.children() if hasattr(model, "neck") else ())]


def _backbone(model: nn.Module) -> nn.Module:
    backbone = getattr(model, "detector", model).backbone  # of torchvision's the one inside
    # Under our own neck a classifier's maps pass convolutions that nothing has trained yet.
    return backbone.features if isinstance(backbone, TorchvisionBackbone) else backbone


def freeze(model: nn.Module, what: str) -> list[nn.Module]:
    """Take the gradients from the `backbone`, or from the first so many `layers`; the modules, to be kept in evaluation mode.

    In evaluation mode their batch norms keep their statistics, so that no tensor of theirs changes. Raises UserError when the
    model has fewer layers.
    """
    parts = layers(model)
    if what == "backbone":
        frozen = [_backbone(model)]
    elif int(what) <= len(parts):
        frozen = parts[: int(what)]
    else:
        raise UserError(
            f"--freeze {what}: allowed are backbone, or 1 to {len(parts)}, the layers before the head"
        )
    for part in frozen:
        part.eval().requires_grad_(False)
    return frozen
