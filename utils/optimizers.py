"""The optimizers of a hyp file, and Muon for convolutions, which torch has for matrices only."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from utils import compat
from utils.hyp import Hyp

# Coefficients (a, b, c) of an odd polynomial a x + b x^3 + c x^5 for each iteration; together they
# bring singular values of 0.02 to 1 within 10% of 1. Each is the best (minimax) for the range that
# the one before it leaves (Amsel et al., "The Polar Express", arXiv 2505.16932). Muon as published
# uses one polynomial five times (Jordan et al., "Muon: An optimizer for hidden layers in neural
# networks", 2024).
NEWTON_SCHULZ_COEFFS = (
    (7.7110, -22.1138, 16.2487),
    (3.2153, -2.4112, 0.5013),
    (2.2183, -1.5940, 0.4107),
)

# Root mean square of an update before it is multiplied by the learning rate. AdamW's is between 0.2
# and 0.4.
UPDATE_RMS = 0.4


def build_optimizer(model: nn.Module, hyp: Hyp, dtype: torch.dtype) -> torch.optim.Optimizer:
    """Build the optimizer that `hyp` names for the trainable parameters of `model`.

    `model.param_groups()` returns three lists of them: `matrices`, which Muon can update (kernels
    of hidden convolutions), other `weights`, and `no_decay` (biases and norms). With muon each is a
    group of its own; with sgd and adamw the first two are one group. Muon iterates in `dtype`.
    """
    parameters = model.param_groups()
    no_decay = {"params": parameters["no_decay"], "weight_decay": 0.0}
    betas = (hyp.momentum, 0.999)
    if hyp.optimizer == "muon":
        decay = hyp.weight_decay
        matrices = {"params": parameters["matrices"], "weight_decay": decay, "muon": True}
        weights = {"params": parameters["weights"], "weight_decay": decay}
        return Muon([matrices, weights, no_decay], dtype, lr=hyp.lr0, betas=betas, fused=True)
    decayed = {*parameters["matrices"], *parameters["weights"]}
    weights = [p for p in model.parameters() if p in decayed]
    groups = [{"params": weights, "weight_decay": hyp.weight_decay}, no_decay]
    if hyp.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=hyp.lr0, betas=betas, fused=True)
    nesterov = hyp.momentum > 0
    return torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=nesterov, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW in which groups with `muon: True` are updated by their orthogonalized momentum.

    A convolution kernel (out, in, height, width) of such a group is read as a matrix (out, height *
    width * in), and `betas[0]` is its Nesterov momentum. Updates are scaled to the size of AdamW's,
    so that one learning rate and weight decay fit both (Liu et al., "Muon is Scalable for LLM
    Training", arXiv 2502.16982, which takes the lower end of that size; short runs need the upper
    one). The Newton-Schulz iteration runs in `dtype`.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], dtype: torch.dtype = torch.float32, **options: Any
    ) -> None:
        super().__init__(params, **options)
        self.dtype = dtype

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
                # AdamW's load_state_dict expects every state to have a step.
                self.state[p].update(step=torch.tensor(0.0), momentum=torch.zeros_like(p))
            self.state[p]["step"] += 1
        gradients = [p.grad for p in parameters]
        momenta = [self.state[p]["momentum"] for p in parameters]
        beta, lr = group["betas"][0], group["lr"]
        compat.foreach_lerp_(momenta, gradients, 1 - beta)
        updates = compat.foreach_lerp(gradients, momenta, beta)
        compat.foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        # Matrices of one shape are orthogonalized together.
        by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
        for p, update in zip(parameters, updates, strict=True):
            matrix = _as_matrix(update)
            by_shape.setdefault(matrix.shape, []).append((p, matrix))
        for shape, pairs in by_shape.items():
            stacked = torch.stack([matrix for _, matrix in pairs]).to(self.dtype)
            steps = orthogonalize(stacked).to(torch.float32)
            steps *= -lr * UPDATE_RMS * max(shape) ** 0.5
            for (p, _), step in zip(pairs, steps, strict=True):
                p.add_(step.unflatten(1, (*p.shape[2:], p.shape[1])).permute(0, 3, 1, 2))


def _as_matrix(kernel: Tensor) -> Tensor:
    """Return a kernel (out, in, h, w) as (out, h * w * in), a view if it is channels-last."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices (n, rows, columns) with all singular values brought close to 1.

    The singular vectors stay the same (Newton-Schulz iteration).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    gram = x @ x.mT
    # The fourth root of the sum of the singular values' fourth powers: not below the largest one,
    # and much nearer to it than the Frobenius norm. The polynomials grow steeply above 1, so
    # rounding must not lift a singular value over it.
    norm = 1.05 * gram.norm(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-7)
    x, gram = x / norm, gram / norm**2
    for i, (a, b, c) in enumerate(NEWTON_SCHULZ_COEFFS):
        gram = x @ x.mT if i else gram
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
