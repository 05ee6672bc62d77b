"""The optimizers of a hyp file, and Muon for convolutions, which torch has for matrices only."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from utils import compat
from utils.hyp import Hyp

# Coefficients (a, b, c, d, e) of an odd polynomial a x + b x^3 + c x^5 + d x^7 + e x^9 for each
# iteration; together they bring singular values of 0.025 to 1 within 10% of 1. Each is the best
# (minimax) for the range that the one before it leaves (Amsel et al., "The Polar Express", arXiv
# 2505.16932, with degree 5). Two of degree 9 reach as far as three of degree 5, with 7 instead of
# 9 matrix products. Muon as published uses one polynomial of degree 5 five times (Jordan et al.,
# "Muon: An optimizer for hidden layers in neural networks", 2024).
NEWTON_SCHULZ_COEFFS = (
    (12.3167, -111.9743, 364.3190, -463.1943, 200.2267),
    (3.5107, -6.6507, 6.1464, -2.4427, 0.3441),
)

# Root mean square of an update before it is multiplied by the learning rate. AdamW's is between 0.2
# and 0.4.
UPDATE_RMS = 0.4


def build_optimizer(model: nn.Module, hyp: Hyp) -> torch.optim.Optimizer:
    """Build the optimizer that `hyp` names for the trainable parameters of `model`.

    `model.param_groups()` returns three lists of them: `matrices`, which Muon can update (kernels
    of hidden convolutions), other `weights`, and `no_decay` (biases and norms). With muon each is a
    group of its own; with sgd and adamw the first two are one group. If `backbone_lr` is not 1,
    those of `model.backbone_modules()` follow in groups of their own.
    """
    parameters = model.param_groups()
    no_decay = {"params": parameters["no_decay"], "weight_decay": 0.0}
    betas = (hyp.momentum, 0.999)
    if hyp.optimizer == "muon":
        decay = hyp.weight_decay
        matrices = {"params": parameters["matrices"], "weight_decay": decay, "muon": True}
        weights = {"params": parameters["weights"], "weight_decay": decay}
        groups = _split_backbone([matrices, weights, no_decay], model, hyp)
        return Muon(groups, lr=hyp.lr0, betas=betas, fused=True)
    decayed = {*parameters["matrices"], *parameters["weights"]}
    weights = [p for p in model.parameters() if p in decayed]
    groups = [{"params": weights, "weight_decay": hyp.weight_decay}, no_decay]
    groups = _split_backbone(groups, model, hyp)
    if hyp.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=hyp.lr0, betas=betas, fused=True)
    nesterov = hyp.momentum > 0
    return torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=nesterov, fused=True)


def _split_backbone(
    groups: list[dict[str, Any]], model: nn.Module, hyp: Hyp
) -> list[dict[str, Any]]:
    """Return `groups` without the backbone's parameters, and those in groups at the end.

    Their rate is `backbone_lr` of the others'; if that is 1, `groups` are returned as they are.
    """
    if hyp.backbone_lr == 1:
        return groups
    backbone = {p for module in model.backbone_modules() for p in module.parameters()}
    others, slower = [], []
    for group in groups:
        others.append(group | {"params": [p for p in group["params"] if p not in backbone]})
        of_backbone = [p for p in group["params"] if p in backbone]
        if of_backbone:  # none if they are frozen
            slower.append(group | {"params": of_backbone, "lr": hyp.backbone_lr * hyp.lr0})
    return others + slower


class Muon(torch.optim.AdamW):
    """AdamW in which groups with `muon: True` are updated by their orthogonalized momentum.

    A convolution kernel (out, in, height, width) of such a group is read as a matrix (out, height *
    width * in), and `betas[0]` is its Nesterov momentum. Updates are scaled to the size of AdamW's,
    so that one learning rate and weight decay fit both (Liu et al., "Muon is Scalable for LLM
    Training", arXiv 2502.16982, which takes the lower end of that size; short runs need the upper
    one). It computes in float32: the gradients' small singular values are lost in anything less.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters by their gradients; return what `closure` returns, if given."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        gradients: dict[nn.Parameter, Tensor] = {}
        for group in self.param_groups:
            if group.get("muon"):
                gradients |= {p: p.grad for p in group["params"] if p.grad is not None}
                self._step_muon(group)
                for p in group["params"]:
                    p.grad = None  # AdamW skips parameters without a gradient
        super().step()
        for p, gradient in gradients.items():
            p.grad = gradient
        return result

    def _step_muon(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                # AdamW's load_state_dict expects every state to have a step, on this device.
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p].update(step=step, momentum=torch.zeros_like(p))
        gradients = [p.grad for p in parameters]
        momenta = [self.state[p]["momentum"] for p in parameters]
        beta, lr = group["betas"][0], group["lr"]
        compat.foreach_lerp_(momenta, gradients, 1 - beta)
        updates = compat.foreach_lerp(gradients, momenta, beta)
        compat.foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        # Matrices of one shape are orthogonalized together.
        matrices = [_as_matrix(update) for update in updates]
        by_shape: dict[torch.Size, list[int]] = {}
        for i, matrix in enumerate(matrices):
            by_shape.setdefault(matrix.shape, []).append(i)
        stacks = orthogonalize(
            [torch.stack([matrices[i] for i in indices]) for indices in by_shape.values()],
            [max(shape) ** 0.5 for shape in by_shape],
        )
        for indices, steps in zip(by_shape.values(), stacks, strict=True):
            for i, step in zip(indices, steps, strict=True):
                out, in_channels, height, width = updates[i].shape
                updates[i] = step.view(out, height, width, in_channels).permute(0, 3, 1, 2)
        compat.foreach_add_(parameters, updates, -lr * UPDATE_RMS)


def _as_matrix(kernel: Tensor) -> Tensor:
    """Return a kernel (out, in, h, w) as (out, h * w * in), a view if it is channels-last."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def orthogonalize(stacks: Sequence[Tensor], scales: Sequence[float]) -> list[Tensor]:
    """Return each stack of matrices (n, rows, columns) with singular values close to its scale.

    The singular vectors stay the same (Newton-Schulz iteration). Each polynomial of a matrix X is a
    matrix polynomial of its Gram matrix G = X X' times X. So all of them are multiplied up in the
    smaller space of G, where the matrices with as many rows are iterated together, and X is
    multiplied once, instead of once for each polynomial.
    """
    wide = [x.mT if x.shape[1] > x.shape[2] else x for x in stacks]
    by_rows: dict[int, list[int]] = {}
    for i, x in enumerate(wide):
        by_rows.setdefault(x.shape[1], []).append(i)
    results = list(stacks)
    for indices in by_rows.values():
        factors = _polynomial(torch.cat([wide[i] @ wide[i].mT for i in indices]))
        factors = list(factors.split([len(wide[i]) for i in indices]))
        compat.foreach_mul_(factors, [scales[i] for i in indices])
        for i, factor in zip(indices, factors, strict=True):
            is_tall = stacks[i].shape[1] > stacks[i].shape[2]
            # Written so that the result is contiguous, as the parameters are.
            results[i] = stacks[i] @ factor if is_tall else factor @ stacks[i]
    return results


def _polynomial(gram: Tensor) -> Tensor:
    """Return the polynomials of NEWTON_SCHULZ_COEFFS, as factors of X, for G = X X' (n, r, r)."""
    # The fourth root of the sum of the singular values' fourth powers: not below the largest one,
    # and much nearer to it than the Frobenius norm. The polynomials grow steeply above 1, so
    # rounding must not lift a singular value over it.
    norm = 1.05 * gram.norm(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-7)
    gram = gram / norm**2
    factors = []
    for a, b, c, d, e in NEWTON_SCHULZ_COEFFS:
        if factors:
            gram = (gram @ factors[-1]) @ factors[-1]
        square = gram @ gram
        # a + b G + c G^2 + (d G + e G^2) G^2
        high = torch.add(gram * d, square, alpha=e)
        factor = (gram * b).add_(square, alpha=c).baddbmm_(high, square)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        factors.append(factor)
    return reduce(torch.matmul, factors) / norm
