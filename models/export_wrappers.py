"""A detector as other programs run it: tensors in, tensors out, nothing else."""

from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms

from models.head import decode_boxes
from models.yolo import YOLO


class ExportModel(nn.Module):
    """What every cell of a batch of pictures says.

    (B, 3, H, W) in 0..1, sides divisible by 32, to `boxes` (B, A, 4), xyxy in pixels, and `scores` (B, A, classes), 0..1.
    """

    def __init__(self, model: YOLO) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        predictions = model.head(model.neck(model.backbone(images)))
        return decode_boxes(
            predictions.sides, predictions.centers, predictions.strides
        ), predictions.logits.sigmoid()


class ExportModelWithNMS(ExportModel):
    """The detections in one picture, as the detector gives them, by its own thresholds.

    (1, 3, H, W) in 0..1, sides divisible by 32, to `boxes` (k, 4), xyxy in pixels, `scores` (k,), descending, and `labels` (k,).
    """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores = super().forward(images)
        model, (height, width) = self.model, images.shape[-2:]
        score, index = (
            scores[0].flatten().topk(min(model.topk_candidates, boxes.shape[1] * scores.shape[2]))
        )
        sure = score > model.score_thresh
        score, index = score[sure], index[sure]
        label = index % scores.shape[2]
        box = clip_boxes_to_image(boxes[0, index // scores.shape[2]], (height, width))
        # Classes are moved apart, so that none hides another's.
        keep = nms(
            box + (label * (height + width))[:, None].to(box.dtype), score, model.nms_thresh
        )[: model.detections_per_img]
        return box[keep], score[keep], label[keep]
