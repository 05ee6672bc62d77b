"""The interface that every detector family implements, with the code that all families share.

A new family is one file with a subclass of `Detector` and one line in `models.MODELS`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from utils.errors import UserError
from utils.letterbox import GRAY, round_up

Targets = Sequence[dict[str, Tensor]]
Sizes = Sequence[tuple[int, int]]  # height and width of each image
Detections = list[dict[str, Tensor]]
NMS = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Detector(nn.Module):
    """A detector, called as torchvision's detectors are.

    In training mode `model(images, targets)` returns a dict of losses, in evaluation mode
    `model(images)` returns one dict of `boxes`, `scores` and `labels` for each image.

    A family must implement two methods. Their images are a float batch (B, C, H, W) in 0..1, with
    C `channels` (3: RGB) and with H and W multiples of `stride`:
        losses(images, targets)  the unweighted losses by name, scalars. The training loop
            multiplies each by its weight in the hyp file (1 if it has none) and minimizes the sum.
        predict(images)  boxes (B, A, 4), xyxy in pixels, and scores (B, A, num_classes) in 0..1:
            every prediction, before any threshold. Exported models return this too.

    Its constructor takes `num_classes`, if a backbone can be chosen, `backbone: str | None`, and if
    images may have other channels than RGB, `channels: int`.

    A family may override:
        stride  what H and W must be a multiple of
        min_size  the smallest image size in pixels that it can be trained and used at
        detect_and_sum_losses  if one forward pass gives both, for validation
        prepare_export  if `predict` makes constants, which are traced with their device
        exportable  whether export.py can write it: False if `predict` is not implemented
        score_thresh, nms_thresh, detections_per_img, topk_candidates  the defaults of `postprocess`
        set_thresholds, allow_detections, postprocess  if detections are not selected by NMS
        backbone_modules, freezable_layers  what --freeze can freeze
        compile_network  what --compile compiles
        capture_network  what --cuda-graphs records
        default_iou  the IoU threshold of NMS in detect.py and in export.py with --nms; None: no NMS
        dynamic_export  whether export.py can write it for images of any size
        architecture  plain data from elsewhere that it is built from; given to the constructor, by
            this name, when it is rebuilt
        param_groups  which parameters the optimizer treats how
        set_class_weights  if its class loss can be weighted
        load_pretrained, load_backbone_file  if there are published weights
        class_tensors  if some have a row for each class
        libraries  which ones, besides torch, its numbers depend on the versions of
        forward  if it does its own batching and post-processing

    Set from outside, not by the family:
        config  by `build_model`, which rebuilds the same architecture as `build_model(**config)`;
            plain data, stored in every checkpoint
        channels  by `build_model`: of an image
        class_names  by train.py and `models.load`
        imgsz, data, amp, single_cls  by `models.load`: the image size, data.yaml, --amp and
            --single-cls of the run
    """

    stride = 32
    min_size = 32
    exportable = True
    dynamic_export = True
    libraries: tuple[str, ...] = ()
    score_thresh = 0.001
    nms_thresh: float | None = 0.7
    default_iou: float | None = 0.45
    detections_per_img = 300
    topk_candidates = 1000

    channels = 3
    architecture: dict[str, Any] | None = None
    config: dict[str, Any]
    class_names: tuple[str, ...]
    imgsz: int
    data: str
    amp = "auto"
    single_cls: bool

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return the unweighted losses of a batch, scalars by name. `targets` as in `forward`."""
        raise NotImplementedError(f"{type(self).__name__} does not implement losses()")

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, A, 4), xyxy in pixels, and scores (B, A, num_classes) in 0..1."""
        raise NotImplementedError(f"{type(self).__name__} does not implement predict()")

    def detect_and_sum_losses(
        self, images: Tensor | Sequence[Tensor], targets: Targets, sizes: Sizes | None = None
    ) -> tuple[Detections, dict[str, Tensor], Tensor | None]:
        """Return the detections in a batch and, without a second forward pass, its losses.

        For evaluation mode; arguments as of `forward`. The losses are unweighted sums over the
        batch, scalars by name, and last comes what to divide them by: the total of the sums of a
        dataset divided by the total of the divisors does not depend on how the data are divided
        into batches. A family that has no losses in evaluation mode returns {} and None.
        """
        return self(images, sizes=sizes), {}, None

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Targets | None = None,
        sizes: Sizes | None = None,
    ) -> dict[str, Tensor] | Detections:
        """Return the losses in training mode, the detections in evaluation mode.

        images: (B, C, H, W), or B images (C, h, w) of any sizes; uint8 in 0..255 or float in 0..1.
        targets, in training mode only: for each image `boxes` (n, 4), xyxy in pixels, and `labels`
        (n,), int64 from 0; n may be 0, and the tensors may be on the CPU.
        sizes, in evaluation mode only: height and width of each image at the top left of its part
        of `images`, if the rest is padding, in which nothing is detected.
        Losses are as `losses` returns them, detections as `postprocess` does.
        Raises ValueError in training mode without targets.
        """
        if self.training and targets is None:
            raise ValueError("targets are required in training mode")
        batch, sizes = self.prepare(images, sizes)
        if self.training:
            return self.losses(batch, targets)
        return self.postprocess(*self.predict(batch), sizes)

    def prepare(
        self, images: Tensor | Sequence[Tensor], sizes: Sizes | None = None
    ) -> tuple[Tensor, Sizes]:
        """Return images, as `forward` takes them, as one batch, and their heights and widths.

        The batch is float in 0..1 and padded with gray at the right and the bottom, so that height
        and width are multiples of `stride`. `sizes` are returned if they are given.
        """
        shapes = [tuple(image.shape[-2:]) for image in images]
        height = round_up(max(h for h, _ in shapes), self.stride)
        width = round_up(max(w for _, w in shapes), self.stride)
        if not (isinstance(images, Tensor) and images.shape[-2:] == (height, width)):
            gray = GRAY / 255 if images[0].is_floating_point() else GRAY
            images = torch.stack(
                [
                    F.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2]), value=gray)
                    for i in images
                ]
            )
        images = images.to(memory_format=torch.channels_last)
        images = images if images.is_floating_point() else images.float() / 255
        return images, sizes or shapes

    def postprocess(
        self,
        boxes: Tensor,
        scores: Tensor,
        sizes: Sizes,
        nms: NMS = batched_nms,
    ) -> Detections:
        """Select the detections of each image from the predictions of a batch.

        boxes (B, A, 4) and scores (B, A, num_classes) as `predict` returns them; sizes: the height
        and width of each image. `nms` takes boxes, scores, labels and an IoU threshold and returns
        the indices of the boxes to keep, best first; export needs another one than the default,
        with which detections are on the CPU.
        Returns for each image `boxes` (k, 4), xyxy in pixels within the image, `scores` (k,) in
        0..1, descending, and `labels` (k,): at most `detections_per_img`, scored above
        `score_thresh`, from the `topk_candidates` best, after non-maximum suppression within each
        class at IoU `nms_thresh` (None: without it).
        """
        num_classes = scores.shape[-1]
        # One box may be a detection of several classes, as COCO's metrics expect.
        candidates = scores.flatten(1)
        scores, index = candidates.topk(min(self.topk_candidates, candidates.shape[1]))
        labels = index % num_classes
        boxes = boxes.gather(1, (index // num_classes)[..., None].expand(-1, -1, 4))
        if boxes.device.type != "cpu" and nms is batched_nms:
            boxes, scores, labels = _to_cpu(boxes, scores, labels)
        detections = []
        for box, score, label, size in zip(boxes, scores, labels, sizes, strict=True):
            index = (score > self.score_thresh).nonzero().flatten()
            box, score, label = clip_boxes_to_image(box[index], size), score[index], label[index]
            keep = slice(self.detections_per_img)
            if self.nms_thresh is not None:
                keep = nms(box, score, label, self.nms_thresh)[keep]
            detections.append({"boxes": box[keep], "scores": score[keep], "labels": label[keep]})
        return detections

    def set_thresholds(self, score: float | None = None, iou: float | None = None) -> None:
        """Set the lowest score of a detection and the IoU threshold of NMS; None keeps a value."""
        self.score_thresh = self.score_thresh if score is None else score
        self.nms_thresh = self.nms_thresh if iou is None else iou

    def allow_detections(self, count: int) -> None:
        """Let an image have up to `count` detections, if that is more than now.

        An object has about ten predictions before NMS, because the loss assigns it that many.
        """
        self.detections_per_img = max(self.detections_per_img, count)
        self.topk_candidates = max(self.topk_candidates, 10 * count)

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Set the factor of each class in the class loss. Raises UserError if there is no such."""
        raise UserError(
            f"class_weights: the losses of {self.config['name']} take none (need --model yolo-n, "
            "-s, -m, -l or -x)"
        )

    def backbone_modules(self) -> list[nn.Module]:
        """Return the modules that `--freeze backbone` freezes: `self.backbone`, if there is one."""
        return [self.backbone] if hasattr(self, "backbone") else []

    def freezable_layers(self) -> list[nn.Module]:
        """Return the modules that `--freeze N` counts, in the order in which an image passes."""
        return [layer for module in self.backbone_modules() for layer in module.children()]

    def prepare_export(self) -> None:
        """Make constants of `predict` buffers, which move to another device with the export."""

    def compile_network(self, backend: str) -> None:
        """Compile the modules with most of the computation, in place (`torch.compile`).

        Names and values of the state stay as they are. Evaluation mode is compiled, too, if used.
        """
        for module in self.backbone_modules():
            module.compile(backend=backend)

    def capture_network(self, images: Tensor) -> None:
        """Record the network in training mode as a CUDA graph, for batches like `images`.

        Raises UserError if the family does not support it.
        """
        raise UserError("--cuda-graphs: requires a model of our own (such as --model yolo-n)")

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that require gradients, grouped by how they are optimized.

        "matrices": the weights of ungrouped convolutions without bias, the ones Muon is for (a
        convolution with a bias predicts, and Muon is not used for the last layer).
        "weights": the other weights. "no_decay": biases and norms, which have no weight decay.
        Each list is in the order of `parameters()`.
        """
        hidden_convs = {
            module.weight
            for module in self.modules()
            if isinstance(module, nn.Conv2d) and module.bias is None and module.groups == 1
        }
        groups: dict[str, list[nn.Parameter]] = {"matrices": [], "weights": [], "no_decay": []}
        for p in self.parameters():
            if p.requires_grad:
                decay_group = "matrices" if p in hidden_convs else "weights"
                groups[decay_group if p.ndim > 1 else "no_decay"].append(p)
        return groups

    def class_tensors(self) -> set[str]:
        """Return the names of the tensors of the state with a row for each class.

        Of a checkpoint with other classes, `--weights` takes their rows by the classes' names. The
        other tensors are taken where the shapes are the same.
        """
        return set()

    def load_pretrained(self) -> str:
        """Load the published weights of the model, or of its backbone, and return a message.

        Raises UserError if there are none, or they cannot be downloaded (`--weights DEFAULT`).
        """
        raise UserError(
            "--weights DEFAULT: requires --backbone timm/NAME or torchvision/NAME, or --model "
            "torchvision/NAME or transformers/NAME, such as dfine-n (or give a checkpoint)"
        )

    def load_backbone_file(self, path: str) -> str:
        """Load the weights of the backbone in a safetensors file (`--weights`); return a message.

        Raises UserError if the backbone cannot be loaded from one.
        """
        raise UserError(f"--weights {path}: safetensors require --backbone timm/NAME")


def _to_cpu(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copy boxes (B, k, 4), scores and labels (B, k) of a batch to the CPU, and wait once for it.

    torchvision's NMS would wait for the device several times for each image.
    """
    # Labels are exact in float32 up to 2**24.
    columns = (boxes.float(), scores.float()[..., None], labels.float()[..., None])
    rows = torch.cat(columns, dim=-1).cpu()
    return rows[..., :4], rows[..., 4], rows[..., 5].long()
