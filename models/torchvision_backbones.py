"""torchvision's classifiers as YOLO backbones: `--model yolo-n --backbone torchvision/resnet18`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from models.blocks import ConvNormAct, set_in_channels
from models.weights import PREFIX, load_torchvision_weights
from utils.errors import UserError

STRIDES = (8, 16, 32)
# ImageNet's mean and standard deviation of R, G and B in 0..1: torchvision trained all of its
# classifiers on images normalized by them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def backbone_names() -> tuple[str, ...]:
    """Return the names for `--backbone`; some have no feature maps at strides 8, 16 and 32."""
    return tuple(PREFIX + name for name in models.list_models(module=models))


class TorchvisionBackbone(nn.Module):
    """The features of torchvision's classifier `name` (without the prefix), with random weights.

    Images (B, in_channels, H, W) in 0..1, with H and W multiples of 32, to feature maps at strides
    8, 16 and 32; a 1x1 convolution gives the i-th map `channels[i]` channels.
    Raises UserError for a classifier without such maps, for example a vision transformer.
    """

    def __init__(self, name: str, channels: Sequence[int], in_channels: int = 3) -> None:
        super().__init__()
        self.name, self.channels = name, tuple(channels)
        classifier = models.get_model(name, weights=None)
        if in_channels != 3:
            set_in_channels(classifier, in_channels)
        nodes, map_channels = _find_stride_nodes(classifier, name, in_channels)
        self.features = create_feature_extractor(
            classifier, dict(zip(nodes, map(str, STRIDES), strict=True))
        )
        self.projections = nn.ModuleList(
            ConvNormAct(c_in, c_out) for c_in, c_out in zip(map_channels, channels, strict=True)
        )
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        if in_channels != 3:  # no ImageNet has them: all are normalized alike
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.features((x - self.mean) / self.std)
        return tuple(
            project(features[str(stride)])
            for project, stride in zip(self.projections, STRIDES, strict=True)
        )

    def load_pretrained(self) -> str:
        """Load torchvision's ImageNet weights and return a message.

        Raises UserError if they cannot be downloaded.
        """
        return load_torchvision_weights(self.features, self.name, "--weights DEFAULT")


def _find_stride_nodes(
    classifier: nn.Module, name: str, in_channels: int
) -> tuple[list[str], list[int]]:
    """Return the last graph node at each of the strides 8, 16 and 32, and its channels.

    Only the ends of the classifier's parts count, which are its children, or those of its
    `features`. Found by running it on one small image.
    """
    size = 64
    try:
        extractor = create_feature_extractor(
            classifier, get_graph_node_names(classifier)[1], suppress_diff_warning=True
        ).eval()
        with torch.no_grad():
            outputs = extractor(torch.zeros(1, in_channels, size, size))
    except (RuntimeError, AssertionError):  # it takes images of one size only
        outputs = {}
    for depth in (1, 2):  # of the parts' names: "layer1", or "features.1"
        part_ends = {".".join(node.split(".")[:depth]): node for node in outputs}
        maps = {
            node: outputs[node]
            for node in part_ends.values()
            if isinstance(outputs[node], Tensor) and outputs[node].ndim == 4
        }
        last = {
            size // output.shape[2]: (node, output.shape[1])
            for node, output in maps.items()
            if output.shape[2] == output.shape[3]
        }
        if set(STRIDES) <= set(last):
            return [last[stride][0] for stride in STRIDES], [last[stride][1] for stride in STRIDES]
    raise UserError(
        f"--backbone {PREFIX}{name}: has no feature maps at strides 8, 16 and 32 (choose another "
        f"one, such as {PREFIX}resnet18 or {PREFIX}mobilenet_v3_large)"
    )
