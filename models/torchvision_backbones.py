"""torchvision's classifiers as backbones under our own neck and head: `--model yolo-n --backbone torchvision/resnet18`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from models.blocks import ConvNormAct
from models.weights import fetch_state_dict
from utils.checkpoint import load_matching_weights
from utils.errors import UserError

PREFIX = "torchvision/"
STRIDES = (8, 16, 32)
# What all of torchvision's classifiers were trained on: ImageNet's mean and deviation of red, green and blue, pictures in 0..1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def backbone_names() -> tuple[str, ...]:
    """The names of torchvision's classifiers; not each has maps at strides 8, 16 and 32."""
    return tuple(PREFIX + name for name in models.list_models(module=models))


class TorchvisionBackbone(nn.Module):
    """The features of torchvision's classifier `name` (without the prefix), with random weights, at strides 8, 16 and 32.

    Pictures (B, 3, H, W) in 0..1, sides divisible by 32, to three maps, each brought to `channels[i]` channels by a 1x1
    convolution. Raises UserError for a classifier that has no such maps, as those that cut pictures into patches.
    """

    def __init__(self, name: str, channels: Sequence[int]) -> None:
        super().__init__()
        self.name, self.channels = name, tuple(channels)
        classifier = models.get_model(name, weights=None)
        nodes, widths = _pyramid(classifier, name)
        self.features = create_feature_extractor(
            classifier, dict(zip(nodes, map(str, STRIDES), strict=True))
        )
        self.to_neck = nn.ModuleList(
            ConvNormAct(width, wanted) for width, wanted in zip(widths, channels, strict=True)
        )
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.features((x - self.mean) / self.deviation)
        return tuple(
            convolve(maps[str(stride)])
            for convolve, stride in zip(self.to_neck, STRIDES, strict=True)
        )

    def load_pretrained(self) -> str:
        """Take the weights that torchvision trained on ImageNet; a sentence that says how many tensors.

        They come from torch's folder of downloads, or into it. Raises UserError when they cannot be had.
        """
        weights = models.get_model_weights(self.name).DEFAULT
        return f"--pretrained: {load_matching_weights(self.features, fetch_state_dict(weights, '--pretrained'))} from {weights}"


def _pyramid(classifier: nn.Module, name: str) -> tuple[list[str], list[int]]:
    """The nodes of the classifier's graph where its parts end that are the last at strides 8, 16 and 32, and their channels."""
    side = 64
    try:
        every = create_feature_extractor(
            classifier, get_graph_node_names(classifier)[1], suppress_diff_warning=True
        ).eval()
        with torch.no_grad():
            values = every(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError):  # it takes pictures of one size only
        values = {}
    for depth in (
        1,
        2,
    ):  # in some the parts are children of the classifier, in others of its `features`
        ends = {".".join(node.split(".")[:depth]): node for node in values}
        maps = {
            node: values[node]
            for node in ends.values()
            if isinstance(values[node], Tensor) and values[node].ndim == 4
        }
        last = {
            side // value.shape[2]: (node, value.shape[1])
            for node, value in maps.items()
            if value.shape[2] == value.shape[3]
        }
        if set(STRIDES) <= set(last):
            return [last[stride][0] for stride in STRIDES], [last[stride][1] for stride in STRIDES]
    raise UserError(f"--backbone {PREFIX}{name}: has no feature maps at strides 8, 16 and 32")
