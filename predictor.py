"""What `load` returns and detect.py uses: images of any size in, boxes in their pixels out."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.augment import resize
from data.images import checked_image, pil_to_tensor
from models import load as load_model
from models.detector import Detections, Detector
from models.folding import fold_batch_norms
from utils.amp import autocast, inference_dtype
from utils.device import select_device
from utils.errors import UserError
from utils.letterbox import check_imgsz, letterbox_size

CONF = 0.25  # the default threshold of detect.py
ImageInput = str | Path | Image.Image | np.ndarray | Tensor
IMAGE_KINDS = "a path, a PIL image, an (h, w, C) uint8 array, a (C, h, w) tensor, or a list of them"


class Predictor:
    """A detector for images as they are: `predictor(image)` does what detect.py does.

    Attributes:
        model: the torch module, a `Detector` in evaluation mode; to train or export it, or to have
            gradients, call it. Until somebody asks for it, a predictor of `load` computes with a
            copy whose batch norms are folded into its convolutions, and from then on with this one.
        channels: of an image; 3 are RGB.
        names: the class names; the name of label k is `names[k]`.
        imgsz: pixels of the longer side of the images that the model gets.
        conf, iou: lowest score of a detection, and the IoU threshold of NMS (None: no NMS).
        classes: names or indices of the only classes to detect; None for all.
        device: where the model is.
    """

    # Also an error for an attribute that it does not have, such as YOLOv5's `max_det`.
    __slots__ = (
        *("_folded", "_model"),
        *("channels", "classes", "conf", "device", "imgsz", "iou", "names"),
    )

    def __init__(
        self,
        model: Detector,
        device: str = "auto",
        conf: float = CONF,
        iou: float | None = None,
        imgsz: int | None = None,
        classes: Iterable[str | int] | None = None,
    ) -> None:
        """Move `model`, as `models.load` returns it, to `device`.

        imgsz: by default as trained. iou: by default the model's, 0.45, or None for a model that
        needs no NMS. Raises UserError if the device is not available, a threshold
        is not in 0..1, `imgsz` is below what the model can take, or a class is unknown.
        """
        for name, value in {"conf": conf, "iou": iou}.items():
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name}: found {value}, need a number from 0 to 1")
        self.device = select_device(device)
        self._model = model.to(self.device, memory_format=torch.channels_last)
        self._folded: Detector | None = None  # others may have the model, and change it
        self.names, self.channels = model.class_names, model.channels
        self.imgsz = imgsz or model.imgsz
        check_imgsz(self.imgsz, model.min_size)
        self.conf, self.iou = conf, model.default_iou if iou is None else iou
        model.set_thresholds(self.conf, self.iou)
        self.classes = None if classes is None else [*classes]
        select_classes(self.classes, self.names)

    @property
    def model(self) -> Detector:
        """The torch module; see above."""
        self._folded = None
        return self._model

    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> Detections:
        """Return the detections in each image, as a list with one dict for every image.

        images: a path; a PIL image; an array (h, w, C) uint8; a tensor (C, h, w), uint8 in 0..255
        or float in 0..1; or a list of these, of any sizes. C is the model's number of channels; 3
        are RGB. A dict has `boxes` (k, 4) xyxy
        in pixels of the image, `scores` (k,), descending, and `labels` (k,): float32 and int64,
        without gradients, on the CPU. Images are processed one by one, so that the detections in
        one do not depend on the others. Raises UserError for a file that is not a valid image,
        TypeError and ValueError for what is not an image.
        """
        if not isinstance(images, list | tuple):
            images = [images]
        return [self._detect(to_tensor(image, self.channels)) for image in images]

    @torch.no_grad()
    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        """Return the detections in an image (C, h, w) uint8, which is resized as in validation."""
        height, width = image.shape[-2:]
        new_height, new_width = letterbox_size(height, width, self.imgsz)
        resized = resize(image, new_height, new_width).to(self.device)
        self._model.set_thresholds(self.conf, self.iou)
        with autocast(self.device, inference_dtype(self._model.amp, self.device)):
            (detections,) = self._run([resized])
        scale = torch.tensor([new_width / width, new_height / height])
        boxes = detections["boxes"].float().cpu() / scale.repeat(2)
        scores, labels = detections["scores"].float().cpu(), detections["labels"].cpu()
        class_ids = select_classes(self.classes, self.names)
        if class_ids is not None:
            selected = torch.isin(labels, torch.tensor(sorted(class_ids)))
            boxes, scores, labels = boxes[selected], scores[selected], labels[selected]
        return {"boxes": boxes, "scores": scores, "labels": labels}

    def _run(self, images: list[Tensor]) -> Detections:
        """Return what the model, in evaluation mode, does; with its own post-processing."""
        if self._folded is None:
            return self._model.eval()(images)
        batch, sizes = self._model.prepare(images)
        return self._model.postprocess(*self._folded.predict(batch), sizes)


def load(
    path: str | Path,
    device: str = "auto",
    conf: float = CONF,
    iou: float | None = None,
    imgsz: int | None = None,
    classes: Iterable[str | int] | None = None,
) -> Predictor:
    """Load the detector in a checkpoint, `best.pt` or `last.pt`, with its EMA weights.

    The other arguments are those of `Predictor`. Raises UserError as it and `models.load` do.
    """
    predictor = Predictor(load_model(path), device, conf, iou, imgsz, classes)
    model = predictor._model  # nobody else has it, until it is asked for
    if model.exportable:  # its network can be called separately
        dtype = inference_dtype(model.amp, predictor.device)
        predictor._folded = fold_batch_norms(model, dtype)
    return predictor


def to_tensor(image: ImageInput, channels: int = 3) -> Tensor:
    """Return an image, as `Predictor` takes it, as (channels, h, w) uint8 on the CPU.

    Raises UserError, TypeError and ValueError as `Predictor` does.
    """
    if isinstance(image, str | Path):
        return checked_image(str(image), channels)
    if isinstance(image, Image.Image):
        return pil_to_tensor(image, channels)
    if isinstance(image, np.ndarray):
        is_image = image.ndim == 3 and image.shape[2] == channels and image.size
        if not is_image or image.dtype != np.uint8:
            raise ValueError(
                f"found an array {image.shape} of {image.dtype} (need (h, w, {channels}) of uint8"
                f"{', in RGB' if channels == 3 else ''})"
            )
        # Contiguous: torch takes no negative strides, as of `image[..., ::-1]`.
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if isinstance(image, Tensor):
        return _bytes_of(image, channels)
    raise TypeError(f"found {type(image).__name__} (need {IMAGE_KINDS})")


def _bytes_of(image: Tensor, channels: int) -> Tensor:
    """Return a tensor (channels, h, w), uint8 or float in 0..1, as uint8 on the CPU."""
    is_image = image.ndim == 3 and image.shape[0] == channels and image.numel()
    if not is_image or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(
            f"found a tensor {tuple(image.shape)} of {image.dtype} (need ({channels}, h, w), uint8 "
            "or float; for several images a list; `model.model` takes batches)"
        )
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        return image
    low, high = image.aminmax()
    if not (low >= 0 and high <= 1):  # false for nan, too
        raise ValueError(f"found a float tensor from {low:g} to {high:g} (need 0 to 1)")
    return (image.float() * 255).round().to(torch.uint8)


def select_classes(
    classes: Iterable[str | int] | None, class_names: Sequence[str]
) -> set[int] | None:
    """Return the indices of `classes`, given by name or index; None for None, which means all.

    A name that is a number goes before an index. Raises UserError for an unknown class.
    """
    if classes is None:
        return None
    index = {str(k): k for k in range(len(class_names))}
    index |= {name: k for k, name in enumerate(class_names)}
    names = [str(name) for name in classes]
    for name in names:
        if name not in index:
            raise UserError(
                f"--classes {name}: not a class of the model (choose from "
                f"{', '.join(class_names)}, or 0 to {len(class_names) - 1})"
            )
    return {index[name] for name in names}
