"""Batch norms folded into the convolutions before them: the same detections in less time."""

import copy
from itertools import pairwise

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.blocks import BatchNorm2d
from models.detector import Detector

NORMS = (nn.BatchNorm2d, BatchNorm2d)  # and no other subclass, which may do more


def fold_batch_norms(model: Detector, dtype: torch.dtype = torch.float32) -> Detector:
    """Return a copy of `model` for evaluation whose convolutions do what batch norms did.

    Folded are those that get the output of one convolution, which nothing else gets: neighbors in
    an `nn.Sequential` or in a graph of torch.fx, of which torchvision's backbones are made. Scores
    and boxes are those of `model` but for rounding. `model` stays as it is; the copy shares all
    other parameters and buffers with it.

    dtype: what autocast lets convolutions compute in. If it is not float32, the copy must be called
    under autocast, and its convolutions have their weights in that type, which autocast would
    otherwise cast anew for each image: a tenth of the time of a small one.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    folded = copy.deepcopy(model, shared).eval()
    _fold(folded)
    if dtype != torch.float32:
        _cast_convs(folded, dtype)
    return folded


def _cast_convs(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the convolutions parameters of `dtype`; `to` would change those that others share."""
    for conv in model.modules():
        if type(conv) is nn.Conv2d:
            for name, parameter in [*conv.named_parameters(recurse=False)]:
                setattr(conv, name, nn.Parameter(parameter.detach().to(dtype), False))


def _fold(module: nn.Module) -> None:
    if isinstance(module, fx.GraphModule):
        _fold_graph(module)
        return
    if type(module).forward is nn.Sequential.forward:
        for i, (conv, norm) in enumerate(pairwise([*module])):
            if _fit(conv, norm):
                module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    for child in module.children():
        _fold(child)


def _fold_graph(module: fx.GraphModule) -> None:
    calls = [node for node in module.graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    for node in calls:
        _fold(module.get_submodule(node.target))  # blocks of torchvision.ops are called whole
        before = node.args[0] if node.args else None
        if before not in calls or [*before.users] != [node]:
            continue
        if targets.count(before.target) > 1 or targets.count(node.target) > 1:
            continue
        conv, norm = map(module.get_submodule, (before.target, node.target))
        if _fit(conv, norm):
            module.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            module.set_submodule(node.target, nn.Identity())


def _fit(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a batch norm has statistics that can be folded into a convolution."""
    return type(conv) is nn.Conv2d and type(norm) in NORMS and norm.running_mean is not None
