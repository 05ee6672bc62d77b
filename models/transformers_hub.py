"""Configurations and weights of transformers' detectors, from the hub, its cache or a folder.

transformers is imported inside functions: it takes seconds, and most runs don't need it.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.hub_check import check_hub
from utils.errors import UserError

# Before this version the last layer's loss of D-FINE and RT-DETR was computed over the denoising
# queries, too (https://github.com/huggingface/transformers/pull/48528).
MIN_VERSION = (5, 18)

# Those of transformers' model types whose loss is computed from boxes of objects.
MODEL_TYPES = (
    "conditional_detr", "d_fine", "dab-detr", "deformable_detr", "deimv2", "detr", "lw_detr",
    "rf_detr", "rt_detr", "rt_detr_v2", "yolos",
)  # fmt: skip

# In a config.json these could load code or other weights, or are set here.
DROPPED_KEYS = (
    "auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "quantization_config", "_name_or_path", "dtype", "torch_dtype",
    "transformers_version",
)  # fmt: skip


def import_transformers(name: str) -> Any:
    """Return the module transformers. Raises UserError if a package is missing or too old."""
    need = f"--model {name}: requires transformers >= {MIN_VERSION[0]}.{MIN_VERSION[1]} and scipy"
    install = f"(pip install 'transformers>={MIN_VERSION[0]}.{MIN_VERSION[1]}' scipy)"
    try:
        import scipy  # noqa: F401 - transformers' losses need it
        import transformers
    except ImportError:
        raise UserError(f"{need} {install}") from None
    installed = version("transformers")
    if tuple(map(int, installed.split(".")[:2])) < MIN_VERSION:
        raise UserError(f"{need}, but {installed} is installed {install}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def read_architecture(source: str) -> dict[str, Any]:
    """Return what a hub id or folder says of its detector, as plain data.

    `config`: transformers' configuration without its classes. `mean` and `std`: what images in
    0..1 are normalized by, or None. Raises UserError if it cannot be read, or is not a detector of
    `MODEL_TYPES` for images of 3 channels.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    config = _read_config(source)
    for key in ("id2label", "label2id"):
        config.pop(key, None)
    processor = _fetch(
        f"--model {source}", lambda: dict(ImageProcessingMixin.get_image_processor_dict(source)[0])
    )
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", False):
        return {"config": config, "mean": None, "std": None}
    if not (_is_rgb(mean) and _is_rgb(std) and all(std)):
        raise UserError(
            f"--model {source}: preprocessor_config.json: found image_mean {mean!r} and image_std "
            f"{std!r} (need three numbers each, and none of image_std 0)"
        )
    return {"config": config, "mean": [*map(float, mean)], "std": [*map(float, std)]}


def _is_rgb(values: Any) -> bool:
    """Return whether a value of a JSON file is a list of three numbers."""
    is_list = isinstance(values, list) and len(values) == 3
    return is_list and all(isinstance(value, int | float) for value in values)


def _read_config(source: str) -> dict[str, Any]:
    """Return config.json of a hub id or folder; raises UserError as `read_architecture` does."""
    from transformers import PreTrainedConfig

    if source[0] in "/.~" and not Path(source).is_dir():
        raise UserError(f"--model {source}: is not a directory")

    def read() -> Any:
        if not Path(source).is_dir():
            check_hub(source, "config.json")
        return dict(PreTrainedConfig.get_config_dict(source)[0])

    config = _fetch(f"--model {source}", read)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"--model {source}: model_type {model_type} cannot be trained here (allowed: "
            f"{', '.join(MODEL_TYPES)})"
        )
    config = _drop_keys(config)
    for part in (config, config.get("backbone_config")):
        if isinstance(part, dict) and part.get("num_channels", 3) != 3:
            channels = part["num_channels"]
            raise UserError(f"--model {source}: takes images of {channels} channels, not of 3")
    return config


def _drop_keys(value: Any) -> Any:
    """Return a configuration without the `DROPPED_KEYS` on every level."""
    if isinstance(value, dict):
        return {k: _drop_keys(v) for k, v in value.items() if k not in DROPPED_KEYS}
    return value


def _fetch(flag: str, read: Callable[[], Any]) -> Any:
    """Return what `read` reads from the hub, its cache or a folder.

    Raises UserError, which starts with `flag`, the argument that asked for it, if that fails.
    """
    try:
        return read()
    except Exception as error:  # network, proxy and damaged files raise exceptions of many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{flag}: cannot be read: {reason}") from None


def build(source: str, config: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Build the detector of a configuration with random weights; nothing is read from the hub."""
    from transformers import AutoConfig, AutoModelForObjectDetection

    changes = {
        # Of the sigmoids at the start, as in the papers. transformers' default, 1 / (classes + 1),
        # makes the first losses for a few classes many times larger.
        "initializer_bias_prior_prob": 0.01,
        # Frozen, a batch norm without trained weights does nothing.
        "freeze_backbone_batch_norms": False,
        # The configurations of some detectors leave the losses of the other layers out, with which
        # they were trained; transformers' code for YOLOS fails with them.
        "auxiliary_loss": config["model_type"] != "yolos",
        # Images may have any size.
        "anchor_image_size": None,
        "eval_size": None,
        "use_pretrained_backbone": False,
    }
    try:
        full = AutoConfig.for_model(**config, num_labels=num_classes)
        for key, value in changes.items():
            if hasattr(full, key):
                setattr(full, key, value)
        return AutoModelForObjectDetection.from_config(
            full, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:  # a wrong value of a configuration fails in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--model {source}: cannot be built: {reason[:200]}") from None


def load_donor(source: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the detector of a hub id or folder with its weights, and its state.

    What its file does not have is not in the state: transformers leaves it random. The file is not
    read directly, because transformers renames tensors of older ones to what its modules are called
    now.
    """
    from transformers import AutoConfig, AutoModelForObjectDetection

    config = AutoConfig.for_model(**_read_config(source))
    donor, loading = _fetch(
        f"--weights DEFAULT: {source}",
        lambda: AutoModelForObjectDetection.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        ),
    )
    missing = set(loading["missing_keys"])
    return donor, {k: v for k, v in donor.state_dict().items() if k not in missing}
