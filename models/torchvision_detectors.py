"""torchvision's detectors, trained and used like ours: `--model torchvision/fcos_resnet50_fpn`."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model, list_models
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from models.blocks import set_in_channels
from models.detector import Detections, Detector, Sizes, Targets
from models.weights import PREFIX, load_torchvision_weights


def detector_names() -> tuple[str, ...]:
    """Return the names for `--model`; detectors that also need masks or keypoints are omitted."""
    names = list_models(module=detection)
    return tuple(
        PREFIX + name for name in names if not name.startswith(("maskrcnn", "keypointrcnn"))
    )


class NoResizeTransform(GeneralizedRCNNTransform):
    """Normalize and batch images without resizing them: `--imgsz` is what sets their size."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class TorchvisionDetector(Detector):
    """torchvision's detector `name` (without the prefix), with random weights.

    torchvision's own forward does the batching and the post-processing, so `losses` and `predict`
    are not implemented. The names of the losses are torchvision's too, and the hyp file has no
    weights for them. SSDs resize every image to the size that they are built for.
    """

    exportable = False

    def __init__(self, name: str, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.name = name
        self.detector = get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes + 1
        )  # torchvision's class 0 is the background
        if not name.startswith("ssd"):
            original = self.detector.transform
            self.detector.transform = NoResizeTransform(
                original.min_size,
                original.max_size,
                original.image_mean,
                original.image_std,
                size_divisible=original.size_divisible,
            )
        if channels != 3:  # all are normalized alike
            set_in_channels(self.detector.backbone, channels)
            transform = self.detector.transform
            transform.image_mean = [sum(transform.image_mean) / len(transform.image_mean)]
            transform.image_std = [sum(transform.image_std) / len(transform.image_std)]
        _keep_boxes_in_float32(self.detector)
        self.set_thresholds(score=self.score_thresh)

    def set_thresholds(self, score: float | None = None, iou: float | None = None) -> None:
        """Set the lowest score of a detection and the IoU threshold of NMS; None keeps a value."""
        # The last stage selects the detections: of two-stage detectors, the second.
        last_stage = getattr(self.detector, "roi_heads", self.detector)
        last_stage.score_thresh = last_stage.score_thresh if score is None else score
        last_stage.nms_thresh = last_stage.nms_thresh if iou is None else iou

    def allow_detections(self, count: int) -> None:
        """Let an image have up to `count` detections, if that is more than now.

        What they are selected from grows by the same factor.
        """
        last_stage = getattr(self.detector, "roi_heads", self.detector)
        factor = count / last_stage.detections_per_img
        if factor <= 1:
            return
        last_stage.detections_per_img = count
        if hasattr(self.detector, "rpn"):
            rpn = self.detector.rpn
            for limits in (rpn._pre_nms_top_n, rpn._post_nms_top_n):
                limits["testing"] = math.ceil(factor * limits["testing"])
        else:
            self.detector.topk_candidates = math.ceil(factor * self.detector.topk_candidates)

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Targets | None = None,
        sizes: Sizes | None = None,
    ) -> dict[str, Tensor] | Detections:
        """Return the losses in training mode, the detections in evaluation mode, as `Detector`."""
        images = [
            image.float() if image.is_floating_point() else image.float() / 255 for image in images
        ]
        if not self.training:
            if sizes is not None:
                images = [image[:, :h, :w] for image, (h, w) in zip(images, sizes, strict=True)]
            return [_drop_background(detections) for detections in self.detector(images)]
        if targets is None:
            raise ValueError("targets are required in training mode")
        device = images[0].device
        shifted_targets = [
            {
                "boxes": target["boxes"].to(device, non_blocking=True),
                "labels": target["labels"].to(device, non_blocking=True) + 1,
            }
            for target in targets
        ]
        return self.detector(images, shifted_targets)

    def backbone_modules(self) -> list[nn.Module]:
        """Return the backbone, with its feature pyramid if it has one."""
        return [self.detector.backbone]

    def freezable_layers(self) -> list[nn.Module]:
        """Return the layers of the backbone without feature pyramid or extra layers."""
        backbone = self.detector.backbone
        for name in ("body", "features"):  # of those with a pyramid, and of SSDs
            backbone = getattr(backbone, name, backbone)
        return [*backbone.children()]

    def load_pretrained(self) -> str:
        """Load torchvision's trained weights, except those whose shape depends on the classes."""
        return load_torchvision_weights(self.detector, self.name, "--weights DEFAULT")


def _keep_boxes_in_float32(detector: nn.Module) -> None:
    """Compute anchors, boxes and scores of torchvision's `detector` in float32 under autocast.

    Its anchors have the dtype of the feature maps, and its boxes that of its last convolutions. As
    bfloat16, coordinates above 512 would be multiples of 4 pixels.
    """
    rpn, roi_heads = getattr(detector, "rpn", None), getattr(detector, "roi_heads", None)
    first_stage = detector if rpn is None else rpn
    first_stage.anchor_generator.register_forward_pre_hook(_float_features)
    first_stage.head.register_forward_hook(_float_output)
    if roi_heads is not None:
        roi_heads.box_predictor.register_forward_hook(_float_output)


def _float_features(module: nn.Module, args: tuple[Any, list[Tensor]]) -> tuple[Any, list[Tensor]]:
    """Forward pre-hook of an anchor generator: float32 stand-ins for the feature maps.

    It reads only their shapes, dtype and device.
    """
    images, features = args
    return images, [f.new_empty((), dtype=torch.float32).expand(f.shape) for f in features]


def _float_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a head: its output, which may be nested, in float32."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {key: _float_output(module, args, value) for key, value in output.items()}
    return type(output)(_float_output(module, args, value) for value in output)


def _drop_background(detections: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop detections of the background, which one-stage detectors score like any other class.

    The labels of the others are shifted to start from 0.
    """
    keep = detections["labels"] > 0
    return {
        "boxes": detections["boxes"][keep],
        "scores": detections["scores"][keep],
        "labels": detections["labels"][keep] - 1,
    }
