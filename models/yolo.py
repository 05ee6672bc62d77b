"""The anchor-free YOLO, in the sizes n, s, m, l and x.

A CSP backbone, a path-aggregation neck (Liu et al., arXiv 1803.01534) and the head of head.py at
strides 8, 16 and 32. Widths and depths from stride 8 on follow YOLOv8, so that parameters and FLOPs
can be compared size by size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import ConvNormAct, CSPStage, PyramidPooling
from models.cuda_graph import CudaGraph
from models.detector import Detections, Detector, Sizes, Targets
from models.head import Head, Predictions
from models.loss import detection_loss, detection_loss_sums, loss_sums
from models.timm_backbones import PREFIX as TIMM_PREFIX
from models.timm_backbones import TimmBackbone
from models.torchvision_backbones import TorchvisionBackbone
from models.weights import PREFIX


class Size(NamedTuple):
    """How a size scales the network.

    depth multiplies the number of bottlenecks, width the channels; `max_channels` is the limit of
    the channels before that.
    """

    depth: float
    width: float
    max_channels: int

    def widths(self) -> list[int]:
        """Return the channels at strides 4, 8, 16 and 32."""
        return [
            int(min(channels, self.max_channels) * self.width) for channels in (128, 256, 512, 1024)
        ]


SIZES = {
    "n": Size(1 / 3, 0.25, 1024),
    "s": Size(1 / 3, 0.50, 1024),
    "m": Size(2 / 3, 0.75, 768),
    "l": Size(1.0, 1.00, 512),
    "x": Size(1.0, 1.25, 512),
}


class Backbone(nn.Module):
    """Map images (B, C, H, W) to feature maps at strides 8, 16 and 32, with `channels` channels."""

    def __init__(self, size: Size, in_channels: int = 3) -> None:
        super().__init__()
        c = size.widths()
        d = [max(1, round(depth * size.depth)) for depth in (3, 6, 6, 3)]
        # Directly to stride 4, with plain convolutions instead of a CSP stage there: at this
        # resolution batch norms and activations dominate the cost.
        self.stem = nn.Sequential(
            ConvNormAct(in_channels, c[0], 6, 4), *(ConvNormAct(c[0], c[0], 3) for _ in range(d[0]))
        )
        self.stage8 = nn.Sequential(
            ConvNormAct(c[0], c[1], 3, 2), CSPStage(c[1], c[1], d[1], shortcut=True)
        )
        self.stage16 = nn.Sequential(
            ConvNormAct(c[1], c[2], 3, 2), CSPStage(c[2], c[2], d[2], shortcut=True)
        )
        self.stage32 = nn.Sequential(
            ConvNormAct(c[2], c[3], 3, 2),
            CSPStage(c[3], c[3], d[3], shortcut=True),
            PyramidPooling(c[3], c[3]),
        )
        self.channels = tuple(c[1:])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p8 = self.stage8(self.stem(x))
        p16 = self.stage16(p8)
        return p8, p16, self.stage32(p16)


class Neck(nn.Module):
    """Path-aggregation neck: fuse the levels from coarse to fine, then from fine to coarse.

    Feature maps at strides 8, 16 and 32 with `channels` channels to maps of the same shapes.
    """

    def __init__(self, channels: Sequence[int], depth: int) -> None:
        super().__init__()
        c8, c16, c32 = channels
        self.up16 = CSPStage(c32 + c16, c16, depth, shortcut=False)
        self.up8 = CSPStage(c16 + c8, c8, depth, shortcut=False)
        self.shrink8 = ConvNormAct(c8, c8, 3, 2)
        self.down16 = CSPStage(c8 + c16, c16, depth, shortcut=False)
        self.shrink16 = ConvNormAct(c16, c16, 3, 2)
        self.down32 = CSPStage(c16 + c32, c32, depth, shortcut=False)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        p8, p16, p32 = features
        p16 = self.up16(torch.cat((F.interpolate(p32, scale_factor=2.0), p16), dim=1))
        n8 = self.up8(torch.cat((F.interpolate(p16, scale_factor=2.0), p8), dim=1))
        n16 = self.down16(torch.cat((self.shrink8(n8), p16), dim=1))
        n32 = self.down32(torch.cat((self.shrink16(n16), p32), dim=1))
        return n8, n16, n32


def _build_backbone(
    size: Size, name: str | None, in_channels: int
) -> Backbone | TorchvisionBackbone | TimmBackbone:
    if not name:
        return Backbone(size, in_channels)
    if name.startswith(TIMM_PREFIX):
        return TimmBackbone(name.removeprefix(TIMM_PREFIX), size.widths()[1:], in_channels)
    return TorchvisionBackbone(name.removeprefix(PREFIX), size.widths()[1:], in_channels)


class _Logits(nn.Module):
    """The tensors of the `Predictions` that a network makes."""

    def __init__(self, *network: nn.Module) -> None:
        super().__init__()
        self.network = nn.Sequential(*network)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        predictions = self.network(images)
        return predictions.box_logits, predictions.cls_logits


class YOLO(Detector):
    """The detector in one of the `SIZES`, for `num_classes` >= 1 classes.

    channels: of the images.
    backbone: torchvision/ and the name of a classifier in torchvision, or timm/ and the name of a
        network in timm, instead of our own backbone.
    Raises KeyError for an unknown size, UserError for a backbone without suitable feature maps.
    """

    def __init__(
        self,
        size: str = "n",
        num_classes: int = 80,
        backbone: str | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__()
        scale = SIZES[size]
        self.backbone = _build_backbone(scale, backbone, channels)
        if isinstance(self.backbone, TimmBackbone):
            self.libraries = ("timm",)
        self.neck = Neck(self.backbone.channels, max(1, round(3 * scale.depth)))
        self.head = Head(self.backbone.channels, (8, 16, 32), num_classes)
        self.loss_sums = loss_sums
        self.cuda_graph: CudaGraph | None = None
        self.register_buffer("class_weights", None, persistent=False)

    def raw_predictions(self, images: Tensor) -> Predictions:
        """Run the network on a batch, as `predict` takes it: logits and anchor points."""
        return self.head(self.neck(self.backbone(images)))

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return the unweighted losses of a batch: `box`, `cls` and `dfl`."""
        if self.cuda_graph is not None and self.training:
            predictions = Predictions(*self.cuda_graph(images), self.head.levels(images))
        else:
            predictions = self.raw_predictions(images)
        return detection_loss(predictions, targets, self.loss_sums, self.class_weights)

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Multiply the loss of each class's scores by its weight, for right and wrong alike."""
        self.class_weights = torch.tensor(weights, dtype=torch.float32)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return one box and its class scores for each anchor point."""
        return self._boxes_and_scores(self.raw_predictions(images))

    def _boxes_and_scores(self, predictions: Predictions) -> tuple[Tensor, Tensor]:
        return self.head.decode(predictions), predictions.cls_logits.sigmoid()

    def detect_and_sum_losses(
        self, images: Tensor | Sequence[Tensor], targets: Targets, sizes: Sizes | None = None
    ) -> tuple[Detections, dict[str, Tensor], Tensor | None]:
        """Return the detections in a batch, the sums of its losses, and of the target scores."""
        batch, sizes = self.prepare(images, sizes)
        predictions = self.raw_predictions(batch)
        detections = self.postprocess(*self._boxes_and_scores(predictions), sizes)
        losses = detection_loss_sums(predictions, targets, self.loss_sums, self.class_weights)
        return detections, *losses

    def prepare_export(self) -> None:
        """Compute anchor points from a buffer from now on."""
        self.head.prepare_export()

    def compile_network(self, backend: str) -> None:
        """Compile backbone, neck and head, each as one graph, and the loss."""
        for module in (self.backbone, self.neck, self.head):
            module.compile(backend=backend, fullgraph=True)
        self.loss_sums = torch.compile(loss_sums, backend=backend, fullgraph=True, dynamic=True)

    def capture_network(self, images: Tensor) -> None:
        """Record backbone, neck and head as a CUDA graph, which `losses` replays."""
        self.cuda_graph = CudaGraph(_Logits(self.backbone, self.neck, self.head), images)

    def backbone_modules(self) -> list[nn.Module]:
        """Return the backbone; of torchvision's and timm's only the features.

        Their projections to the neck have no pretrained weights.
        """
        return [getattr(self.backbone, "features", self.backbone)]

    def freezable_layers(self) -> list[nn.Module]:
        """Return the layers of the backbone and of the neck."""
        (backbone,) = self.backbone_modules()
        # Some networks have all of their layers in one child: torchvision's in `features`, timm's
        # in `model`.
        for child in ("features", "model"):
            backbone = getattr(backbone, child, backbone)
        return [*backbone.children(), *self.neck.children()]

    def class_tensors(self) -> set[str]:
        """Return the names of the weights and biases of the last convolutions for classes."""
        layers = [f"head.cls_branches.{i}.2" for i in range(len(self.head.cls_branches))]
        return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}

    def load_pretrained(self) -> str:
        """Load the published weights of a backbone of torchvision or timm; return a message."""
        if isinstance(self.backbone, Backbone):
            return super().load_pretrained()
        return self.backbone.load_pretrained()

    def load_backbone_file(self, path: str) -> str:
        """Load a safetensors file of a backbone of timm and return a message."""
        if isinstance(self.backbone, TimmBackbone):
            return self.backbone.load_file(path)
        return super().load_backbone_file(path)
