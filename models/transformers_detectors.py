"""Detectors of Hugging Face transformers, trained and used like ours: `--model dfine-n`.

transformers is imported inside functions: it takes seconds, and most runs don't need it.
"""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from models.class_rows import copy_rows, matched_classes_message, rows_by_name
from models.detector import Detector, Sizes, Targets
from models.deterministic_sampling import DeterministicSampling
from models.portable_constants import PortableConstants
from models.transformers_hub import build, import_transformers, load_donor, read_architecture
from models.weights import load_matching_weights
from utils.letterbox import GRAY

PREFIX = "transformers/"
MAX_CELLS = 8192  # height and width of the largest feature map of an exported model
# Names for `--model`, and what they are called on the hub.
SHORTHANDS = {
    "dfine-n": "ustc-community/dfine-nano-coco",
    "dfine-s": "ustc-community/dfine-small-coco",
    "dfine-m": "ustc-community/dfine-medium-coco",
    "dfine-l": "ustc-community/dfine-large-coco",
    "dfine-x": "ustc-community/dfine-xlarge-coco",
    "rtdetrv2-r18": "PekingU/rtdetr_v2_r18vd",
    "rtdetrv2-r34": "PekingU/rtdetr_v2_r34vd",
    "rtdetrv2-r50": "PekingU/rtdetr_v2_r50vd",
    "rtdetrv2-r101": "PekingU/rtdetr_v2_r101vd",
}

# The kinds of losses of the model types whose losses transformers returns with their weights. What
# it returns differs from batch to batch: without boxes there are none of the denoising queries.
LOSS_KINDS = {
    "d_fine": ("vfl", "bbox", "giou", "fgl", "ddf"),
    "deimv2": ("mal", "bbox", "giou", "fgl", "ddf"),
    "rt_detr": ("vfl", "bbox", "giou"),
    "rt_detr_v2": ("vfl", "bbox", "giou"),
}

# What predicts boxes. In bfloat16, a coordinate above half of the image is a multiple of 1/256 of
# it.
FLOAT32_MODULES = ("decoder", "enc_output", "enc_score_head", "enc_bbox_head", "bbox_predictor")
FLOAT32_LISTS = ("decoder_input_proj", "bbox_embed")  # the anchors have the first one's dtype


def hub_id(name: str) -> str | None:
    """Return the hub id or folder that a `--model` argument stands for, None if it is another's."""
    name = name.removeprefix(PREFIX) if name.startswith(PREFIX) else SHORTHANDS.get(name, "")
    return SHORTHANDS.get(name, name) or None


class TransformersDetector(Detector):
    """transformers' detector `source`, a hub id or a folder, with random weights.

    `architecture` is what `read_architecture` returns, read from `source` if it is None. The names
    of the losses are transformers' own, and the hyp file has no weights for them. A detector
    predicts a set of boxes: detections are the best of them, without NMS unless `set_thresholds`
    gives an IoU threshold.
    Raises UserError if transformers is missing or too old, or `source` cannot be read or built.
    """

    nms_thresh = None
    default_iou = None
    dynamic_export = False

    def __init__(
        self, source: str, num_classes: int, architecture: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.source = source
        import_transformers(source)
        self.libraries = ("transformers",)
        if architecture is None:
            architecture = read_architecture(source)
        self.architecture = dict(architecture)
        self.detector = build(source, self.architecture["config"], num_classes)
        config = self.detector.config
        for name, parameter in self.detector.named_parameters():
            if name.endswith("mask_token"):  # of DINOv2's own training: it never has a gradient
                parameter.requires_grad_(False)
        _keep_boxes_in_float32(self.detector)
        if self.architecture["mean"] is not None:
            for name in ("mean", "std"):
                values = torch.tensor(self.architecture[name])[:, None, None]
                self.register_buffer(name, values, persistent=False)
        self.register_buffer("cells", None)  # see `prepare_export`
        self.stride = _stride(config)
        self._map_strides = _map_strides(config)
        self.topk_candidates = self.detections_per_img = (
            config.num_queries if hasattr(config, "num_queries") else config.num_detection_tokens
        )
        self.min_size = self.stride
        while not self._has_enough_cells(self.min_size, self.min_size):
            self.min_size += self.stride

    def _has_enough_cells(self, height: int, width: int) -> bool:
        """Return whether feature maps of an image have as many cells as queries are chosen from."""
        if not self._map_strides:
            return True
        cells = sum((height // stride) * (width // stride) for stride in self._map_strides)
        return cells >= self.detector.config.num_queries

    def prepare(
        self, images: Tensor | Sequence[Tensor], sizes: Sizes | None = None
    ) -> tuple[Tensor, Sizes]:
        """Return a batch and sizes as `Detector` does; a batch of few cells is padded further."""
        batch, sizes = super().prepare(images, sizes)
        height, width = old = batch.shape[-2:]
        while not self._has_enough_cells(height, width):
            if height < width:
                height += self.stride
            else:
                width += self.stride
        if (height, width) != old:
            batch = F.pad(batch, (0, width - old[1], 0, height - old[0]), value=GRAY / 255)
            batch = batch.contiguous(memory_format=torch.channels_last)
        return batch, sizes

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return transformers' losses, already weighted, the sum of each kind over all layers.

        The kinds are those of `LOSS_KINDS`, or one, `loss`. Their sum is transformers' own loss.
        """
        height, width = images.shape[-2:]
        # Not copied from the CPU, which would wait for the device.
        scale = torch.full((4,), width, device=images.device)
        scale[1::2] = height
        labels = [
            {
                "class_labels": target["labels"].to(images.device, non_blocking=True),
                "boxes": box_convert(
                    target["boxes"].to(images.device, non_blocking=True).float() / scale,
                    "xyxy",
                    "cxcywh",
                ),
            }
            for target in targets
        ]
        exact = torch.are_deterministic_algorithms_enabled() and images.is_cuda
        kinds = LOSS_KINDS.get(self.detector.config.model_type)
        try:
            with DeterministicSampling() if exact else nullcontext():
                outputs = self.detector(self._normalize(images), labels=labels)
        except ValueError as error:
            if "(corner) format" not in str(error):
                raise
            # transformers' check of the predicted boxes; it fails on NaN. The training loop skips
            # such a step, on all processes.
            nan = sum(p.sum() for p in self.parameters() if p.requires_grad) * torch.nan
            return dict.fromkeys(kinds or ("loss",), nan)
        if kinds is None:
            losses = {"loss": outputs.loss}
        else:
            losses = dict.fromkeys(kinds, outputs.loss.new_zeros(()))
            for name, value in outputs.loss_dict.items():
                kind = name.removeprefix("loss_").partition("_")[0]
                losses[kind] = losses[kind] + value
        # A batch without boxes does not use the classes' embedding for denoising, and DDP would
        # wait for its gradient.
        embedding = getattr(getattr(self.detector, "model", None), "denoising_class_embed", None)
        if embedding is not None:
            first = next(iter(losses))
            losses[first] = losses[first] + 0.0 * embedding.weight.sum()
        return losses

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the box (B, queries, 4) and the scores (B, queries, num_classes) of each query."""
        height, width = images.shape[-2:]
        with nullcontext() if self.cells is None else PortableConstants(self.cells):
            outputs = self.detector(self._normalize(images))
        logits = outputs.logits.float()
        if logits.shape[-1] == self.detector.config.num_labels:
            scores = logits.sigmoid()
        else:  # the last class is "no object", and a query stands for the best of the others
            scores = logits.softmax(-1)[..., :-1]
            scores = scores * (scores == scores.amax(-1, keepdim=True))
        left, top, right, bottom = box_convert(outputs.pred_boxes.float(), "cxcywh", "xyxy").unbind(
            -1
        )
        # A tensor of the four factors would be copied to the device, and traced with it.
        boxes = torch.stack((left * width, top * height, right * width, bottom * height), -1)
        return boxes, scores

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std if hasattr(self, "mean") else images

    def allow_detections(self, count: int) -> None:
        """Let an image have up to `count` detections, if that is more than now.

        Each is a class of a query; how many queries there are is given by the weights.
        """
        self.detections_per_img = max(self.detections_per_img, count)
        self.topk_candidates = max(self.topk_candidates, count)

    def backbone_modules(self) -> list[nn.Module]:
        """Return the backbone."""
        inner = getattr(self.detector, "model", self.detector)
        backbone = getattr(inner, "backbone", getattr(inner, "vit", None))
        return [] if backbone is None else [backbone]

    def freezable_layers(self) -> list[nn.Module]:
        """Return the backbone's stem and stages, as `Detector` does."""
        layers = self.backbone_modules()
        while len(layers) == 1 and len([*layers[0].children()]):
            layers = [*layers[0].children()]
        stages = getattr(layers[-1], "stages", None) if layers else None
        return layers if stages is None else [*layers[:-1], *stages]

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters as `Detector` does, but none for Muon.

        These detectors are published with AdamW's recipes; Muon would change the trained weights
        of the backbone far more in a step than those of the decoder.
        """
        groups = super().param_groups()
        matrices = {*groups["matrices"], *groups["weights"]}
        return groups | {
            "matrices": [],
            "weights": [p for p in self.parameters() if p in matrices],
        }

    def prepare_export(self) -> None:
        """Make transformers' constants of a buffer from now on.

        And leave out its checks of shapes, which ONNX has no operator for.
        """
        os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"
        self.cells = torch.arange(MAX_CELLS, dtype=torch.int32)  # exact after .half(), too

    def load_pretrained(self) -> str:
        """Load the published weights, with the rows of classes that have the same name here.

        `class_names` must be set. A row is what a tensor holds for one class.
        """
        donor, saved = load_donor(self.source)
        saved = _with_prefix(saved)
        rows = rows_by_name(self.class_names, donor.config.id2label)
        donors = {name: saved.pop(name) for name in self.class_tensors() & saved.keys()}
        message = load_matching_weights(self, saved, "--weights DEFAULT")
        state = self.state_dict()  # shares its memory with the detector
        here, there = self.detector.config.num_labels, donor.config.num_labels
        for name, values in donors.items():
            copy_rows(state[name], values, rows, here, there)
        message += f" from {self.source}"
        if not donors:
            return f"{message}; those of the {here} classes are not in the file"
        if rows:
            return f"{message}; {matched_classes_message(self.class_names, rows)}"
        return f"{message}; none of the {here} classes is one of its {there}"

    def class_tensors(self) -> set[str]:
        """Return the names of the tensors whose shape depends on the number of classes."""
        with torch.random.fork_rng(devices=[]):
            config = self.architecture["config"]
            larger = build(self.source, config, self.detector.config.num_labels + 1)
        shapes = {name: value.shape for name, value in _with_prefix(larger.state_dict()).items()}
        return {k for k, v in self.state_dict().items() if v.shape != shapes.get(k, v.shape)}


def _with_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"detector.{name}": value for name, value in state.items()}


def _stride(config: Any) -> int:
    """Return what height and width must be a multiple of."""
    backbone = getattr(config, "backbone_config", None)
    windows = getattr(backbone, "num_windows_side", getattr(backbone, "num_windows", None))
    return 32 if windows is None else windows * backbone.patch_size


def _map_strides(config: Any) -> list[int]:
    """Return the strides of the feature maps whose cells queries are chosen from, [] if none."""
    if strides := getattr(config, "feat_strides", None):
        return [*strides]
    if factors := getattr(config, "projector_scale_factors", None):
        return [math.ceil(config.backbone_config.patch_size / factor) for factor in factors]
    return []


def _keep_boxes_in_float32(detector: nn.Module) -> None:
    """Compute boxes in float32 under autocast.

    By hooks, because a deep copy of a module whose `forward` is replaced would still call the
    original.
    """
    for name, module in detector.named_modules():
        *parents, last = name.split(".")
        if last in FLOAT32_MODULES or (parents and parents[-1] in FLOAT32_LISTS):
            module.register_forward_pre_hook(_leave_autocast, with_kwargs=True)
            module.register_forward_hook(_enter_autocast, always_call=True)


def _leave_autocast(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook: turn autocast off, with all floating-point inputs in float32."""
    device = next((p.device.type for p in module.parameters()), None)
    device = args[0].device.type if device is None else device
    module.autocast_device = device if torch.is_autocast_enabled(device) else None
    if module.autocast_device is None:
        return None
    torch.set_autocast_enabled(device, False)
    return tuple(map(_float, args)), {name: _float(value) for name, value in kwargs.items()}


def _enter_autocast(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook: turn autocast on again if it was."""
    if module.autocast_device is not None:
        torch.set_autocast_enabled(module.autocast_device, True)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
