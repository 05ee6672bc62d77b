"""Whether a model can be trained on batches of one image."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from models.detector import Detector
from utils.errors import UserError


def check_batch_of_one(
    model: Detector, imgsz: int, frozen_modules: Sequence[nn.Module], batch_size: int
) -> None:
    """Raise UserError if batch norm cannot train on one image of `imgsz` pixels.

    It needs two values per channel, and one image has one if a feature map is only 1 x 1. Found by
    passing an image through a copy of `model`, which is on the CPU; model and random state stay as
    they are. `batch_size` is for the message.
    """
    probe, frozen = copy.deepcopy((model, list(frozen_modules)))
    probe.train()
    for module in frozen:
        module.eval()
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * imgsz
    target = {"boxes": box, "labels": torch.zeros(1, dtype=torch.long)}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            probe(torch.rand(1, model.channels, imgsz, imgsz), [target])
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"--batch-size {batch_size}: a batch has only one image, of which batch norm sees "
                f"a single value at --imgsz {imgsz} (use batches of at least 2 images, or a model "
                "or --imgsz whose feature maps are larger than 1 x 1)"
            ) from None
