"""Every way in which tensors get into a model: from a checkpoint, or weights of torchvision."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from models.detector import Detector
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

PREFIX = "torchvision/"  # of the models and backbones that torchvision provides


def load_initial_weights(model: Detector, weights: str | None, pretrained: bool) -> list[str]:
    """Initialize `model` before training and return a message for each source of weights.

    pretrained: load published weights of the backbone. weights: the path of a checkpoint, or
    DEFAULT for published weights of the whole model; loaded after those of the backbone.
    Raises UserError if the model has no such weights, or they cannot be read.
    """
    messages = []
    if pretrained:
        messages.append(model.load_pretrained_backbone())
    if weights == "DEFAULT":
        messages.append(model.load_pretrained())
    elif weights:
        messages.append(load_checkpoint_weights(model, Path(weights)))
    return messages


def load_checkpoint_weights(model: nn.Module, path: Path) -> str:
    """Load the EMA tensors of the checkpoint `path` that fit `model` and return a message.

    Raises UserError if the file is not a checkpoint of this project.
    """
    checkpoint = load_checkpoint(path)
    try:
        return f"--weights {path}: {load_matching_weights(model, checkpoint['ema']['model'])}"
    except (LookupError, TypeError, AttributeError, RuntimeError):
        raise UserError(f"--weights {path}: holds no weights that this version can read") from None


def load_torchvision_weights(module: nn.Module, name: str, flag: str) -> str:
    """Load the tensors of torchvision's weights of its model `name` that fit `module`.

    Returns a message. Raises UserError as `fetch_state_dict` does.
    """
    weights = get_model_weights(name).DEFAULT
    loaded = load_matching_weights(module, fetch_state_dict(weights, flag))
    return f"{flag}: {loaded} from {weights}"


def load_matching_weights(module: nn.Module, saved: Mapping[str, Tensor]) -> str:
    """Load those of the tensors `saved` whose name and shape match, and return how many did."""
    current = module.state_dict()
    matching = {k: v for k, v in saved.items() if k in current and current[k].shape == v.shape}
    module.load_state_dict(matching, strict=False)
    return f"loaded {len(matching)} of the model's {len(current)} tensors"


def fetch_state_dict(weights: WeightsEnum, flag: str) -> dict[str, Tensor]:
    """Return torchvision's `weights`, from torch's download cache or else downloaded into it.

    Raises UserError, which starts with `flag`, the argument that asked for them, if that fails.
    """
    try:
        return weights.get_state_dict(progress=False, weights_only=True)
    except Exception as error:  # network, proxy and damaged files raise exceptions of many types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{flag}: failed to load {weights.url}: {reason}") from None
