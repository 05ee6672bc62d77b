"""Batch norms folded into the convolutions before them: the same detections in less time."""

import copy
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.blocks import BatchNorm2d
from models.detector import Detector

NORMS = (nn.BatchNorm2d, BatchNorm2d)  # and no other subclass, which may do more
Slot = tuple[nn.Module, str]  # a module and the name of one of its children


def fold_batch_norms(model: Detector) -> Detector:
    """Return a copy of `model` for evaluation whose convolutions do what batch norms did.

    Folded are those that get the output of one convolution, which nothing else gets: neighbors in
    an `nn.Sequential` or in a graph of torch.fx, of which torchvision's backbones are made. Scores
    and boxes are those of `model` but for rounding. `model` stays as it is; the copy shares all
    other parameters and buffers with it, or is `model` itself if there is nothing to fold.
    """
    if not any(True for _ in _pairs(model)):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    folded = copy.deepcopy(model, shared).eval()
    for (conv_parent, conv), (norm_parent, norm) in [*_pairs(folded)]:
        fused = fuse_conv_bn_eval(getattr(conv_parent, conv), getattr(norm_parent, norm))
        setattr(conv_parent, conv, fused)
        setattr(norm_parent, norm, nn.Identity())
    return folded


def _pairs(module: nn.Module) -> Iterator[tuple[Slot, Slot]]:
    """Yield where each convolution and the batch norm are that can be folded into one."""
    if isinstance(module, fx.GraphModule):
        yield from _graph_pairs(module)
        return
    if type(module).forward is nn.Sequential.forward:
        names = [*module._modules]
        for conv, norm in pairwise(names):
            if _fit(getattr(module, conv), getattr(module, norm)):
                yield (module, conv), (module, norm)
    for child in module.children():
        yield from _pairs(child)


def _graph_pairs(module: fx.GraphModule) -> Iterator[tuple[Slot, Slot]]:
    calls = [node for node in module.graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    for norm in calls:
        conv = norm.args[0] if norm.args else None
        if (
            isinstance(conv, fx.Node)
            and conv.op == "call_module"
            and [*conv.users] == [norm]
            and targets.count(conv.target) == targets.count(norm.target) == 1
            and _fit(module.get_submodule(conv.target), module.get_submodule(norm.target))
        ):
            yield _slot(module, conv.target), _slot(module, norm.target)


def _slot(module: nn.Module, path: str) -> Slot:
    parent, _, name = path.rpartition(".")
    return module.get_submodule(parent), name


def _fit(conv: nn.Module, norm: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and type(norm) in NORMS and norm.running_mean is not None


class FoldedCopy:
    """The folded copy of a detector, made anew when the detector has changed since."""

    def __init__(self) -> None:
        self._copy: Detector | None = None
        self._versions: list[tuple[int, ...]] = []

    def of(self, model: Detector) -> Detector:
        """Return the folded copy of `model`, which is in evaluation mode.

        A model with hooks, which want to see its own layers, is returned itself.
        """
        if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
            return model
        versions = [_version(tensor) for tensor in (*model.parameters(), *model.buffers())]
        if self._copy is None or versions != self._versions:
            self._copy, self._versions = fold_batch_norms(model), versions
        return self._copy


def _version(tensor: Tensor) -> tuple[int, ...]:
    """Return numbers that change when the tensor is written to, moved or replaced."""
    return id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
