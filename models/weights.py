"""Every way in which tensors get into a model: from a checkpoint, or published weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from models.class_rows import copy_rows, matched_classes_message, rows_by_name
from models.detector import Detector
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.log import plural

PREFIX = "torchvision/"  # of the models and backbones that torchvision provides
SAFETENSORS = ".safetensors"  # the suffix of weights that other libraries write

PUBLISHED = re.compile(r"yolo(v?\d+|_)")  # the names of YOLOv5's and Ultralytics' weights

# Of a model's parameters. Of another size or family at most a few percent happen to fit; of a model
# with the same backbone, for other classes, far more than this.
MIN_LOADED = 0.1


def load_initial_weights(model: Detector, weights: str | None, pretrained: bool) -> list[str]:
    """Initialize `model` before training and return a message for each source of weights.

    weights: DEFAULT for the published weights of the model or of its backbone, the path of a
    checkpoint, or of a backbone's safetensors. pretrained: load the published ones before it.
    Raises UserError if the model has no such weights, or they cannot be read.
    """
    messages = []
    if pretrained or weights == "DEFAULT":
        messages.append(model.load_pretrained())
    if weights and weights.endswith(SAFETENSORS):
        messages.append(model.load_backbone_file(weights))
    elif weights and weights != "DEFAULT":
        messages.append(load_checkpoint_weights(model, Path(weights)))
    return messages


def load_checkpoint_weights(model: Detector, path: Path) -> str:
    """Load the EMA tensors of the checkpoint `path` that fit `model` and return a message.

    Of the classes, where they are not the same in the same order, those of the same name.

    Raises UserError if the file is not a checkpoint of this project, or of a model that has too
    little in common with `model`.
    """
    if PUBLISHED.match(path.name) and not path.exists():
        raise UserError(
            f"--weights {path.name}: not found, and no weights are downloaded (leave --weights "
            "out, or give a best.pt of this repository)"
        )
    checkpoint = load_checkpoint(path)
    try:
        return _load_average(model, checkpoint, f"--weights {path}")
    except (LookupError, TypeError, AttributeError, RuntimeError):
        raise UserError(
            f"--weights {path}: holds no weights that this version can read (need best.pt or "
            "last.pt of a run of this version)"
        ) from None


def _load_average(model: Detector, checkpoint: Mapping[str, Any], flag: str) -> str:
    """Load the EMA tensors of `checkpoint` that fit `model`; return a message."""
    saved, state = dict(checkpoint["ema"]["model"]), model.state_dict()
    donor_names = checkpoint.get("class_names") or []
    names = getattr(model, "class_names", donor_names)
    rows = rows_by_name(names, dict(enumerate(donor_names)))
    has_same_classes = len(names) == len(donor_names) and rows == {k: k for k in range(len(names))}
    donors = {}
    if rows and not has_same_classes:
        for name in model.class_tensors() & saved.keys():
            if state[name].shape[1:] == saved[name].shape[1:]:
                donors[name] = saved.pop(name)
    message = load_matching_weights(model, saved, flag)
    for name, values in donors.items():
        copy_rows(state[name], values, rows, len(names), len(donor_names))
    return f"{message}; {matched_classes_message(names, rows)}" if donors else message


def load_torchvision_weights(module: nn.Module, name: str, flag: str) -> str:
    """Load the tensors of torchvision's weights of its model `name` that fit `module`.

    Returns a message. Raises UserError as `fetch_state_dict` and `load_matching_weights` do.
    """
    weights = get_model_weights(name).DEFAULT
    return f"{load_matching_weights(module, fetch_state_dict(weights, flag), flag)} from {weights}"


def load_matching_weights(module: nn.Module, saved: Mapping[str, Tensor], flag: str) -> str:
    """Load those of the tensors `saved` whose name and shape match.

    Returns a message that says how many parameters were loaded; buffers do not count. It starts
    with `flag`, the argument that asked for them. Raises UserError, and loads nothing, if they are
    less than `MIN_LOADED` of the parameters of `module`.
    """
    current = module.state_dict()
    matching = {k: v for k, v in saved.items() if k in current and current[k].shape == v.shape}
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    total, loaded = sum(sizes.values()), sum(sizes[name] for name in sizes.keys() & matching.keys())
    if loaded < MIN_LOADED * total:
        raise UserError(
            f"{flag}: {loaded:,} of the model's {total:,} parameters fit "
            "(need weights of the same --model and --backbone)"
        )
    module.load_state_dict(matching, strict=False)
    message = f"{flag}: loaded {loaded:,} of the model's {total:,} parameters"
    if missing := len(sizes.keys() - matching.keys()):
        message += f" ({missing} of {len(sizes)} tensors do not fit)"
    convs = (f"{k}.weight" for k, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    first = next(convs, "")
    if first in saved and saved[first].shape[1] != (channels := current[first].shape[1]):
        message += (
            f"; the first convolution stays random: it is for {plural(channels, 'channel')}, that "
            f"of the weights for {saved[first].shape[1]}"
        )
    return message


def fetch_state_dict(weights: WeightsEnum, flag: str) -> dict[str, Tensor]:
    """Return torchvision's `weights`, from torch's download cache or else downloaded into it.

    Raises UserError, which starts with `flag`, the argument that asked for them, if that fails.
    """
    try:
        return weights.get_state_dict(progress=False, weights_only=True)
    except Exception as error:  # network, proxy and damaged files raise exceptions of many types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{flag}: failed to load {weights.url}: {reason} (without a network, put the file into "
            f"{torch.hub.get_dir()}/checkpoints)"
        ) from None
