"""The weights that torchvision offers for its own models, out of torch's folder of downloads, or into it."""

from torch import Tensor
from torchvision.models import WeightsEnum

from utils.errors import UserError


def fetch_state_dict(weights: WeightsEnum, flag: str) -> dict[str, Tensor]:
    """The tensors of `weights`. Raises UserError, which names the `flag` that asked for them, when they cannot be had."""
    try:
        return weights.get_state_dict(progress=False, weights_only=True)
    except Exception as error:  # whatever a network, a proxy or a damaged file can fail with
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{flag}: {weights.url} cannot be had: {reason}") from None
