"""The training loss: which cells answer for which object, and how wrong they are.

Assignment is task-aligned (Feng et al., TOOD, arXiv 2108.07755): an object goes to the `TOP_K` cells inside it that score best at
class and box together. The errors are complete IoU (arXiv 1911.08287), distribution focal loss (arXiv 2006.04388) and binary
cross-entropy against the alignment itself.

Only the pairs (object, cell inside it) are computed, not the full objects x cells grid: an object covers few cells of a picture
and none of the other pictures of its batch. Which pairs there are is found on the CPU, where targets arrive: every size is known
before the device has answered, so that no step waits for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from models.head import BINS, Predictions, decode_boxes

TOP_K = 10
ALPHA, BETA = 0.5, 6.0  # alignment = score**ALPHA * iou**BETA


class Assignment(NamedTuple):
    """Chosen pairs, P of them; those with `target` 0 are padding and count nothing."""

    cell: Tensor  # (P,) index into the B * A cells of the batch
    center: Tensor  # (P, 2) of the cell: x, y, in pixels
    stride: Tensor  # (P,) of the cell, in pixels
    box: Tensor  # (P, 4) the object's xyxy, in pixels
    label: Tensor  # (P,) its class
    target: Tensor  # (P,) the class score that the cell should give, 0..1


def candidate_pairs(boxes: Tensor, centers: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (object, cell) of every cell whose centre lies inside an object, objects in ascending order.

    boxes (N, 4) xyxy in pixels; centers (A, 2); strides (A,). An object narrower or lower than the finest cell is taken as wide
    or high as that cell, so that even a single pixel has a candidate.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp(min=strides.min() / 2)
    (left, top), (right, bottom) = (middle - half).T[..., None], (middle + half).T[..., None]
    x, y = centers.T
    inside = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    objects, cells = inside.nonzero(as_tuple=True)
    return objects, cells


def _paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of a[i] with b[i], for xyxy boxes (P, 4) -> (P,). (torchvision's `box_iou` gives every pair, P x P.)"""
    overlap = (
        (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    )
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (area_a + area_b - overlap).clamp(min=1e-9)


def _sent(device: torch.device, *tensors: Tensor) -> Sequence[Tensor]:
    """Tensors of one kind and length, copied to the device together and without waiting for it."""
    together = torch.stack(tensors)
    return (
        (together.pin_memory() if device.type == "cuda" else together)
        .to(device, non_blocking=True)
        .unbind()
    )


@torch.no_grad()
def assign(predictions: Predictions, boxes: Tensor, labels: Tensor, image: Tensor) -> Assignment:
    """Task-aligned assignment of N objects to the cells of a batch.

    boxes (N, 4) xyxy in pixels, labels (N,), image (N,): which picture of the batch each object is in; all on the CPU.
    """
    count, cells_per_image, device = len(boxes), len(predictions.centers), predictions.logits.device
    total = predictions.logits.shape[0] * cells_per_image
    obj, cell = candidate_pairs(boxes, predictions.centers, predictions.strides)
    if not len(obj):  # no object, or none with a cell inside: nothing to choose from
        numbers, points, rows = (
            torch.zeros(0, *shape, device=device) for shape in ((), (2,), (4,))
        )
        return Assignment(numbers.long(), points, numbers, rows, numbers.long(), numbers)
    *corners, x, y, stride = _sent(
        device, *boxes[obj].T, *predictions.centers[cell].T, predictions.strides[cell]
    )
    obj, label, flat = _sent(device, obj, labels[obj], image[obj] * cells_per_image + cell)
    box, center = torch.stack(corners, dim=1), torch.stack((x, y), dim=1)
    predicted = decode_boxes(predictions.sides.flatten(0, 1)[flat], center, stride)
    iou = _paired_iou(predicted, box)
    score = predictions.logits.flatten(0, 1)[flat, label].sigmoid()
    alignment = score**ALPHA * iou**BETA

    # Rank within each object: sort by alignment, then, keeping that order, by object.
    order = alignment.argsort(descending=True, stable=True)
    order = order[obj[order].argsort(stable=True)]
    per_object = torch.zeros(count, dtype=torch.long, device=obj.device).index_add_(
        0, obj, torch.ones_like(obj)
    )
    first = per_object.cumsum(0) - per_object
    rank = torch.arange(len(order), device=obj.device) - first[obj[order]]
    # A table of fixed size (N, TOP_K), filled by rank, what ranks lower falls into the extra column: no wait for the device.
    table = torch.full((count, TOP_K + 1), -1, dtype=torch.long, device=obj.device)
    table[obj[order], rank.clamp(max=TOP_K)] = order
    chosen = table[:, :TOP_K].reshape(-1)
    valid = chosen >= 0
    chosen = chosen.clamp(min=0)
    owner = torch.arange(count, device=obj.device).repeat_interleave(TOP_K)
    cell, iou, alignment = flat[chosen], iou[chosen] * valid, alignment[chosen] * valid

    # A cell that several objects chose goes to the one it overlaps most, and between equals to the first.
    best = iou.new_zeros(total).scatter_reduce_(0, cell, iou, "amax")
    valid &= iou == best[cell]
    winner = torch.full((total,), count, dtype=torch.long, device=obj.device)
    winner.scatter_reduce_(0, cell, owner.where(valid, count), "amin")
    valid &= winner[cell] == owner

    # The target is the alignment, scaled so that each object's best cell is asked for its best IoU.
    table_shape = (count, TOP_K)
    peak_alignment = (alignment * valid).view(table_shape).amax(1)
    peak_iou = (iou * valid).view(table_shape).amax(1)
    scale = peak_iou / peak_alignment.clamp(min=1e-12)
    target = (alignment * valid * scale[owner]).clamp(max=1)
    return Assignment(cell, center[chosen], stride[chosen], box[chosen], label[chosen], target)


def _mean_over_processes(total: Tensor) -> Tensor:
    """The sum of the processes' totals, at least 1, divided by how many they are; of a process alone, its total."""
    if not (dist.is_available() and dist.is_initialized()):
        return total.clamp(min=1)
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()


def detection_loss(
    predictions: Predictions, targets: Sequence[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The three losses of a batch, each a scalar, without gains.

    Of several processes each gives its part, so that their mean is the loss of the whole batch, however it is divided.

    `targets` holds for each picture `boxes` (n, 4), xyxy in pixels, and `labels` (n,), 0-based; n may be 0.
    Returns `box` (1 - complete IoU), `cls` and `dfl`, each summed and divided by the sum of the whole batch's targets (at
    least 1).
    """
    boxes = torch.cat([t["boxes"] for t in targets]).to("cpu", torch.float32)
    labels = torch.cat([t["labels"] for t in targets]).cpu()
    counts = torch.tensor([len(t["labels"]) for t in targets])
    image = torch.arange(len(targets)).repeat_interleave(counts)
    found = assign(predictions, boxes, labels, image)

    logits = predictions.logits.flatten(0, 1)
    wanted = torch.zeros_like(logits)
    wanted.index_put_((found.cell, found.label), found.target, accumulate=True)
    total = _mean_over_processes(wanted.sum())
    classes = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / total

    sides = predictions.sides.flatten(0, 1)[found.cell]
    ciou = complete_box_iou_loss(decode_boxes(sides, found.center, found.stride), found.box)
    distances = (
        torch.cat((found.center - found.box[:, :2], found.box[:, 2:] - found.center), dim=1)
        / found.stride[:, None]
    )
    distances = distances.clamp(0, BINS - 1 - 0.01)
    lower = distances.floor()
    share = distances - lower
    log_p = sides.log_softmax(-1)
    at_lower = log_p.gather(-1, lower.long()[..., None])[..., 0]
    at_upper = log_p.gather(-1, lower.long()[..., None] + 1)[..., 0]
    focal = -(at_lower * (1 - share) + at_upper * share).mean(-1)
    return {
        "box": (ciou * found.target).sum() / total,
        "cls": classes,
        "dfl": (focal * found.target).sum() / total,
    }
