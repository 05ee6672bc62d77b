"""torchvision's detectors, trained, validated and loaded like our own: `--model torchvision/fcos_resnet50_fpn`."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import detection, get_model, get_model_weights, list_models
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from models.weights import fetch_state_dict
from models.yolo import YOLO
from utils.checkpoint import load_matching_weights

PREFIX = "torchvision/"


def detector_names() -> tuple[str, ...]:
    """The names that `--model` takes; those that need more than boxes to learn from are left out."""
    names = list_models(module=detection)
    return tuple(
        PREFIX + name for name in names if not name.startswith(("maskrcnn", "keypointrcnn"))
    )


class _AsTheyAre(GeneralizedRCNNTransform):
    """Normalizes pictures and makes a batch of them, but leaves their size as it is: it is `--imgsz` that decides."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class TorchvisionDetector(nn.Module):
    """torchvision's detector `name`, with random weights, for labels from 0 to `num_classes` - 1.

    The interface is that of `models.yolo.YOLO`. SSD's resize every picture to the size they are built for.
    """

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.name = name
        self.detector = get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes + 1
        )  # 0: background
        made = self.detector.transform
        if not name.startswith("ssd"):
            self.detector.transform = _AsTheyAre(
                made.min_size,
                made.max_size,
                made.image_mean,
                made.image_std,
                size_divisible=made.size_divisible,
            )
        self.set_thresholds(score=0.001)

    def set_thresholds(self, score: float | None = None, iou: float | None = None) -> None:
        """The lowest score of a detection, and the overlap above which the one with the lower score is dropped."""
        last = getattr(self.detector, "roi_heads", self.detector)  # of two stages the second
        last.score_thresh = last.score_thresh if score is None else score
        last.nms_thresh = last.nms_thresh if iou is None else iou

    param_groups = YOLO.param_groups

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode, as `models.yolo.YOLO.forward` has them; the losses' names are
        the detector's own."""
        pictures = [
            image.float() if image.is_floating_point() else image.float() / 255 for image in images
        ]
        if not self.training:
            return [_without_background(found) for found in self.detector(pictures)]
        if targets is None:
            raise ValueError("in training mode the model needs targets")
        device = pictures[0].device
        theirs = [
            {
                "boxes": t["boxes"].to(device, non_blocking=True),
                "labels": t["labels"].to(device, non_blocking=True) + 1,
            }
            for t in targets
        ]
        return self.detector(pictures, theirs)

    def load_pretrained(self) -> str:
        """Take torchvision's own trained weights, but those whose shape depends on the classes; a sentence that says how many.

        They come from torch's folder of downloads, or into it. Raises UserError when they cannot be had.
        """
        weights = get_model_weights(self.name).DEFAULT
        return f"--weights DEFAULT: {load_matching_weights(self.detector, fetch_state_dict(weights, '--weights DEFAULT'))} from {weights}"


def _without_background(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detections with labels from 0; those of the background, which one-stage detectors score like any class, are no objects."""
    kept = found["labels"] > 0
    return {
        "boxes": found["boxes"][kept],
        "scores": found["scores"][kept],
        "labels": found["labels"][kept] - 1,
    }
