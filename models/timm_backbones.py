"""timm's networks as YOLO backbones: `--model yolo-n --backbone timm/mobilenetv4_conv_small`.

timm is optional and imported only when such a backbone is asked for.
"""

import difflib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from models.blocks import ConvNormAct
from models.hub_check import check_hub
from models.weights import load_matching_weights
from utils.errors import UserError
from utils.log import warning

# Or else timm's messages, which name no argument, would be printed on stderr.
logging.getLogger("timm").addHandler(logging.NullHandler())

PREFIX = "timm/"
STRIDES = (8, 16, 32)
# The first version known to read every file of weights in a way that cannot run code in it.
MIN_VERSION = (1, 0, 26)
# The licenses in timm that allow commercial use without more conditions than to name the authors.
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")


def check_timm_name(name: str) -> None:
    """Raise UserError unless `name` (without the prefix) is one of timm's, with or without tag."""
    timm, arch = _import_timm(name), name.partition(".")[0]
    if not timm.is_model(arch):
        similar = difflib.get_close_matches(arch, timm.list_models())
        names = ", ".join(PREFIX + other for other in similar) or "a name of timm.list_models()"
        raise UserError(f"--backbone {PREFIX}{name}: timm has no such network (similar: {names})")
    tags = [tag for tag in timm.list_pretrained(arch + ".*") if tag.partition(".")[0] == arch]
    if name != arch and name not in tags:
        names = ", ".join(PREFIX + tag for tag in tags) or "none"
        raise UserError(f"--backbone {PREFIX}{name}: timm has no such weights (has: {names})")


class TimmBackbone(nn.Module):
    """The features of timm's network `name` (without the prefix), with random weights.

    Images (B, in_channels, H, W) in 0..1, with H and W multiples of 32, to feature maps at strides
    8, 16 and 32; a 1x1 convolution gives the i-th map `channels[i]` channels. The network takes
    images normalized as those that its published weights were trained on.
    Raises UserError for a network without such maps, and if timm is missing or too old. It never
    asks the hub.
    """

    def __init__(self, name: str, channels: Sequence[int], in_channels: int = 3) -> None:
        super().__init__()
        self.name, self.channels, self.in_channels = name, tuple(channels), in_channels
        timm = _import_timm(name)
        self.levels, unused = _find_levels(timm, name, in_channels)
        self.features = timm.create_model(name, **self._options())
        for parameter in unused:  # DistributedDataParallel would wait for their gradients
            self.features.get_parameter(parameter).requires_grad_(False)
        self.projections = nn.ModuleList(
            ConvNormAct(c_in, c_out)
            for c_in, c_out in zip(self.features.feature_info.channels(), channels, strict=True)
        )
        # Persistent: another version of timm may have other numbers for the same name.
        for key in ("mean", "std"):
            values = torch.tensor(self.features.default_cfg[key])[:, None, None]
            if in_channels != len(values):  # published for RGB: all channels are normalized alike
                values = values.mean(0, keepdim=True)
            self.register_buffer(key, values)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.features((x - self.mean) / self.std)
        return tuple(
            project(feature) for project, feature in zip(self.projections, features, strict=True)
        )

    def load_pretrained(self) -> str:
        """Load the weights that timm publishes, from the hub or its cache, and return a message.

        Their license is in it; one that may forbid commercial use is a warning. Raises UserError if
        there are no weights, or they cannot be downloaded.
        """
        flag, config = "--weights DEFAULT", self.features.default_cfg
        hub_id, tag = config.get("hf_hub_id"), config.get("tag")
        name = f"{PREFIX}{self.name}" + (f".{tag}" if tag and "." not in self.name else "")
        if not (hub_id or config.get("url")):
            raise UserError(f"{flag}: timm publishes no weights of {name}")
        page = f"{hub_id} on the Hugging Face hub" if hub_id else config["url"]
        message = self._load(
            flag,
            f"cannot be downloaded from {page}",
            "download model.safetensors from there, and give it as --weights",
            hub_id=hub_id,
        )
        license_ = config.get("license") or "unknown"
        if license_ not in PERMISSIVE:
            warning(
                f"{flag}: WARNING: the license of the weights of {name} is {license_}: commercial "
                f"use of them, and of what is trained from them, may be forbidden; read {page}"
            )
        return f"{message} from {name}, license {license_}"

    def load_file(self, path: str) -> str:
        """Load the weights of timm's network in a safetensors file, and return a message.

        Raises UserError if the file cannot be read, or is of another network.
        """
        flag = f"--weights {path}"
        if not Path(path).is_file():
            raise UserError(f"{flag}: not found")
        allowed = f"need those of the whole network {self.name}, as timm publishes them"
        return self._load(flag, "cannot be loaded", allowed, file=path, custom_load=False)

    def _options(self) -> dict[str, Any]:
        """Return the arguments of `timm.create_model` that make `features`."""
        channels = {} if self.in_channels == 3 else {"in_chans": self.in_channels}
        return {"features_only": True, "out_indices": self.levels, **channels}

    def _load(
        self, flag: str, problem: str, hint: str, hub_id: str | None = None, **config: object
    ) -> str:
        """Take all tensors of a network that timm loads, with its published `config` changed.

        hub_id: where on the hub they are, None: elsewhere. Returns a message. Raises UserError, of
        `flag`, `problem`, the reason, and `hint`.
        """
        timm = _import_timm(self.name)

        def load() -> dict[str, Tensor]:
            return timm.create_model(
                self.name, pretrained=True, pretrained_cfg_overlay=config, **self._options()
            ).state_dict()

        try:
            if hub_id:
                check_hub(hub_id, "model.safetensors", "pytorch_model.bin")
            saved = load()
            # What it does not find timm leaves random, which is something else each time.
            with torch.random.fork_rng(devices=[]):
                again = load()
        except Exception as error:  # network and damaged files raise many types
            raise UserError(f"{flag}: {problem}: {_first_line(error)} ({hint})") from None
        saved = {key: value for key, value in saved.items() if torch.equal(value, again[key])}
        message = load_matching_weights(self.features, saved, flag)
        if self.in_channels != 3:
            message += f" (timm adapts the first convolution from 3 channels to {self.in_channels})"
        return message


def _import_timm(name: str) -> ModuleType:
    """Import timm. Raises UserError, naming the backbone, if it is missing or too old."""
    minimum = ".".join(map(str, MIN_VERSION))
    try:
        import timm
    except ImportError:
        raise UserError(f"--backbone {PREFIX}{name}: requires timm (pip install timm)") from None
    version = tuple(int(number) for number in re.findall(r"\d+", timm.__version__)[:3])
    if version < MIN_VERSION:
        raise UserError(
            f"--backbone {PREFIX}{name}: requires timm {minimum} or later, found "
            f"{timm.__version__} (pip install -U timm)"
        )
    return timm


def _find_levels(
    timm: ModuleType, name: str, in_channels: int
) -> tuple[tuple[int, ...], list[str]]:
    """Return the index of timm's last feature map at each of the strides 8, 16 and 32.

    And the names of the parameters that none of the three depends on, as some of HRNet's. Found on
    the meta device, without computing anything. Raises UserError if one is missing, or the
    network does not take images of any size.
    """
    flag = f"--backbone {PREFIX}{name}"
    # Gradients are needed here even where a model is loaded to be used only.
    with torch.inference_mode(False), torch.enable_grad(), torch.device("meta"):
        try:
            strides = timm.create_model(name, features_only=True).feature_info.reduction()
        except Exception as error:  # each network has its own reason why it has none
            raise UserError(f"{flag}: has no feature maps (timm: {_first_line(error)})") from None
        last = {stride: index for index, stride in enumerate(strides)}
        if missing := [str(stride) for stride in STRIDES if stride not in last]:
            text = ", ".join(map(str, sorted(last)))
            raise UserError(
                f"{flag}: has no feature map at stride {' and '.join(missing)} (has {text})"
            )
        levels = tuple(last[stride] for stride in STRIDES)
        options = {"features_only": True, "out_indices": levels, "in_chans": in_channels}
        try:
            network = timm.create_model(name, **options).eval()
            maps = network(torch.empty(1, in_channels, 64, 96))
            shapes = [tuple(m.shape) for m in maps]
            parameters = dict(network.named_parameters())
            total = sum(m.sum() for m in maps)
            gradients = torch.autograd.grad(total, [*parameters.values()], allow_unused=True)
        except Exception as error:  # as above: images of one size, of 3 channels only
            raise UserError(
                f"{flag}: does not take images of {in_channels} channels and any size that is a "
                f"multiple of 32 (timm: {_first_line(error)})"
            ) from None
    widths = network.feature_info.channels()
    expected = [(1, width, 64 // s, 96 // s) for width, s in zip(widths, STRIDES, strict=True)]
    if shapes != expected:
        raise UserError(
            f"{flag}: its feature maps of an image of 64 x 96 have the shapes {shapes}, need "
            f"{expected}"
        )
    pairs = zip(parameters, gradients, strict=True)
    return levels, [parameter for parameter, gradient in pairs if gradient is None]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
