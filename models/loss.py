"""The YOLO training loss: task-aligned assignment of objects to anchor points, and three losses.

Assignment (Feng et al., TOOD, arXiv 2108.07755): an object is assigned to the `TOP_K` anchor points
inside it whose predictions align best with it in class and box. The losses are complete IoU (arXiv
1911.08287), distribution focal loss (arXiv 2006.04388) and binary cross-entropy with the alignment
as the target.

Only the pairs of an object and an anchor point inside it are computed (candidates.py). All sizes
are known on the CPU, where the targets arrive, so that nothing here waits for the device.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from models.candidates import Candidates, find_candidates
from models.head import REG_MAX, Predictions, decode_boxes

TOP_K = 10
ALPHA, BETA = 0.5, 6.0  # alignment = score**ALPHA * iou**BETA


class Assignment(NamedTuple):
    """P pairs of an anchor point and the ground-truth object assigned to it.

    Pairs with `score` 0 are padding, and contribute nothing to the losses.
    """

    point_index: Tensor  # (P,): into the B * A anchor points of the batch
    point: Tensor  # (P, 2): x, y of the anchor point, in pixels
    stride: Tensor  # (P,): of the anchor point, in pixels
    box: Tensor  # (P, 4): the object's box, xyxy in pixels
    label: Tensor  # (P,): the object's class
    score: Tensor  # (P,): the classification target, 0..1


def _areas(boxes: Tensor) -> Tensor:
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    return width * height


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of a[i] with b[i], for xyxy boxes (P, 4) -> (P,).

    torchvision's `box_iou` computes all P x P of them.
    """
    sides = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    width, height = sides.clamp(min=0).unbind(1)
    intersection = width * height
    return intersection / (_areas(a) + _areas(b) - intersection).clamp(min=1e-9)


def complete_iou_loss(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - CIoU of a[i] with b[i] (arXiv 1911.08287), for xyxy boxes (P, 4) -> (P,).

    torchvision's `complete_box_iou_loss` selects by masks, and its forward and backward passes wait
    for a GPU ten times.
    """
    iou = paired_iou(a, b)
    enclosing = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    offset = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2  # of the centers
    distance = offset.square().sum(1) / enclosing.square().sum(1).clamp(min=1e-9)
    angle = torch.atan2(*(b[:, 2:] - b[:, :2]).unbind(1)) - torch.atan2(
        *(a[:, 2:] - a[:, :2]).unbind(1)
    )
    aspect = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect).clamp(min=1e-9)
    return 1 - iou + distance + weight * aspect


@torch.no_grad()
def assign(
    box_logits: Tensor, cls_logits: Tensor, candidates: Candidates, num_gts: int
) -> Assignment:
    """Assign the `num_gts` objects of a batch to anchor points.

    box_logits (B * A, 4, REG_MAX) and cls_logits (B * A, num_classes) of all anchor points. There
    must be at least one candidate.
    """
    gt_index, point_index, point, stride, box, label = candidates
    device = cls_logits.device
    predicted_box = decode_boxes(box_logits[point_index], point, stride)
    iou = paired_iou(predicted_box, box)
    score = cls_logits[point_index, label].sigmoid()
    alignment = score**ALPHA * iou**BETA

    # The rank of each pair within its object: sort by alignment, then stably by object.
    order = alignment.argsort(descending=True, stable=True)
    order = order[gt_index[order].argsort(stable=True)]
    pairs_per_gt = torch.zeros(num_gts, dtype=torch.long, device=device).index_add_(
        0, gt_index, torch.ones_like(gt_index)
    )
    first_pair = pairs_per_gt.cumsum(0) - pairs_per_gt
    rank = torch.arange(len(order), device=device) - first_pair[gt_index[order]]
    # A table (N, TOP_K) of pairs, filled by rank; lower ranks end in an extra column. Its size does
    # not depend on the predictions, so nothing waits for the device.
    table = torch.full((num_gts, TOP_K + 1), -1, dtype=torch.long, device=device)
    table[gt_index[order], rank.clamp(max=TOP_K)] = order
    top = table[:, :TOP_K].reshape(-1)
    valid = top >= 0
    # Padding is spread over the pairs: the gradients of one that many shared would be added one by
    # one.
    top = top.where(valid, torch.arange(len(top), device=device) % len(order))
    gt_of_pair = torch.arange(num_gts, device=device).repeat_interleave(TOP_K)
    point_index, iou, alignment = point_index[top], iou[top] * valid, alignment[top] * valid

    # An anchor point chosen by several objects goes to the one with the highest IoU, and among
    # equals to the first.
    best_iou = iou.new_zeros(len(cls_logits)).scatter_reduce_(0, point_index, iou, "amax")
    valid &= iou == best_iou[point_index]
    assigned_gt = torch.full((len(cls_logits),), num_gts, dtype=torch.long, device=device)
    assigned_gt.scatter_reduce_(0, point_index, gt_of_pair.where(valid, num_gts), "amin")
    valid &= assigned_gt[point_index] == gt_of_pair

    # The target score is the alignment, scaled so that the best one of an object is its best IoU.
    max_alignment = (alignment * valid).view(num_gts, TOP_K).amax(1)
    max_iou = (iou * valid).view(num_gts, TOP_K).amax(1)
    scale = max_iou / max_alignment.clamp(min=1e-12)
    target_score = (alignment * valid * scale[gt_of_pair]).clamp(max=1)
    return Assignment(point_index, point[top], stride[top], box[top], label[top], target_score)


def _empty_assignment(device: torch.device) -> Assignment:
    """Return the assignment of a batch without an object, or without one over an anchor point."""
    floats = torch.zeros(0, device=device)
    points, boxes = torch.zeros(0, 2, device=device), torch.zeros(0, 4, device=device)
    return Assignment(floats.long(), points, floats, boxes, floats.long(), floats)


def loss_sums(
    box_logits: Tensor,
    cls_logits: Tensor,
    candidates: Candidates,
    num_gts: int,
    class_weights: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the sum of each loss over a batch, and the sum of the target scores.

    Arguments as of `assign`, but there may be no candidate; class_weights (num_classes,) are
    factors of each class's part of the class loss.
    """
    if len(candidates.gt_index):
        assignment = assign(box_logits, cls_logits, candidates, num_gts)
    else:
        assignment = _empty_assignment(cls_logits.device)
    point_index, point, stride, box, label, score = assignment

    cls_targets = torch.zeros_like(cls_logits)
    cls_targets.index_put_((point_index, label), score, accumulate=True)
    cls_loss = F.binary_cross_entropy_with_logits(
        cls_logits, cls_targets, class_weights, reduction="sum"
    )

    box_logits = box_logits[point_index]
    box_loss = complete_iou_loss(decode_boxes(box_logits, point, stride), box)

    # A distance, in strides, lies between two bins: cross-entropy with both, by how near each is.
    distances = torch.cat((point - box[:, :2], box[:, 2:] - point), dim=1) / stride[:, None]
    distances = distances.clamp(0, REG_MAX - 1 - 0.01)
    lower = distances.floor()
    upper_weight = distances - lower
    log_p = box_logits.log_softmax(-1)
    lower_log_p = log_p.gather(-1, lower.long()[..., None])[..., 0]
    upper_log_p = log_p.gather(-1, lower.long()[..., None] + 1)[..., 0]
    dfl_loss = -(lower_log_p * (1 - upper_weight) + upper_log_p * upper_weight).mean(-1)
    losses = {"box": (box_loss * score).sum(), "cls": cls_loss, "dfl": (dfl_loss * score).sum()}
    return losses, cls_targets.sum()


def _mean_over_processes(total: Tensor) -> Tensor:
    """Return the sum over all processes, at least 1, divided by the number of processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return total.clamp(min=1)
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()


def detection_loss(
    predictions: Predictions,
    targets: Sequence[dict[str, Tensor]],
    sums: Callable[..., tuple[dict[str, Tensor], Tensor]] = loss_sums,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the unweighted losses of a batch, scalars: `box` (1 - CIoU), `cls` and `dfl`.

    Arguments as of `detection_loss_sums`. Each loss is a sum divided by the sum of the target
    scores, at least 1. With several processes that is the sum over all of them, so that the mean of
    the processes' losses is the loss of the whole batch, however it is divided.
    """
    losses, score_sum = detection_loss_sums(predictions, targets, sums, class_weights)
    score_sum = _mean_over_processes(score_sum)
    return {name: loss / score_sum for name, loss in losses.items()}


def detection_loss_sums(
    predictions: Predictions,
    targets: Sequence[dict[str, Tensor]],
    sums: Callable[..., tuple[dict[str, Tensor], Tensor]] = loss_sums,
    class_weights: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the sum of each loss over a batch, and the sum of the target scores, scalars.

    targets: for each image `boxes` (n, 4), xyxy in pixels, and `labels` (n,), from 0; n may be 0.
    `sums` is `loss_sums`, or what it was compiled to; class_weights as it takes them. Processes do
    not communicate.
    """
    boxes = torch.cat([target["boxes"] for target in targets]).to("cpu", torch.float32)
    labels = torch.cat([target["labels"] for target in targets]).cpu()
    gts_per_image = torch.tensor([len(target["labels"]) for target in targets])
    image_index = torch.arange(len(targets)).repeat_interleave(gts_per_image)
    box_logits, cls_logits, levels = predictions
    candidates = find_candidates(boxes, labels, image_index, levels, cls_logits.device)
    return sums(
        box_logits.flatten(0, 1), cls_logits.flatten(0, 1), candidates, len(boxes), class_weights
    )
