"""The optimizers of a hyp file, and Muon for convolutions, which torch has for matrices alone."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from utils.hyp import Hyp

# An odd polynomial of degree 5 for each iteration; together they bring singular values of 0.02 to 1 within 10% of 1. Each is the
# best (minimax) for what the one before it leaves (Amsel et al., "The Polar Express", arXiv 2505.16932), where Muon as published
# has five of one kind (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024).
NEWTON_SCHULZ_COEFFS = (
    (7.7110, -22.1138, 16.2487),
    (3.2153, -2.4112, 0.5013),
    (2.2183, -1.5940, 0.4107),
)

UPDATE_RMS = (
    0.4  # root mean square of an update, before the learning rate; AdamW's lies between 0.2 and 0.4
)


def build_optimizer(model: nn.Module, hyp: Hyp, dtype: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer that `hyp` names, over those of the model's parameters that learn; Muon iterates in `dtype`.

    Biases and norms do not decay. With Muon the convolutions' weights are a group of their own; those with a bias, which predict,
    are AdamW's, as the last layer is wherever Muon is used.
    """
    by_kind = model.param_groups()
    orthogonal = set(by_kind["matrices"]) if hyp.optimizer == "muon" else set()
    decaying = {*by_kind["matrices"], *by_kind["weights"]} - orthogonal
    weights = [p for p in model.parameters() if p in decaying]
    others = by_kind["no_decay"]
    groups = [
        {"params": weights, "weight_decay": hyp.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if hyp.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=hyp.momentum > 0, fused=True
        )
    if hyp.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=hyp.lr0, betas=(hyp.momentum, 0.999), fused=True)
    matrices = by_kind["matrices"]
    groups.insert(0, {"params": matrices, "weight_decay": hyp.weight_decay, "orthogonal": True})
    return Muon(groups, dtype, lr=hyp.lr0, betas=(hyp.momentum, 0.999), fused=True)


class Muon(torch.optim.AdamW):
    """AdamW, but in groups with `orthogonal: True` the update is the momentum made orthogonal, as one matrix a filter bank.

    Such a group's tensors are read as matrices (out, height * width * in), `betas[0]` is their Nesterov momentum. The update is
    scaled to the size that AdamW's would have, so that one learning rate and weight decay fit both (Liu et al., "Muon is Scalable
    for LLM Training", arXiv 2502.16982, which takes the lower end of that size; few steps need the upper). The iteration runs
    in `dtype`.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], dtype: torch.dtype = torch.float32, **options: Any
    ) -> None:
        super().__init__(params, **options)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients as they are; what `closure` returns, if there is one to make them."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        gradients: dict[nn.Parameter, Tensor] = {}
        for group in self.param_groups:
            if group.get("orthogonal"):
                gradients |= {p: p.grad for p in group["params"] if p.grad is not None}
                self._step_orthogonal(group)
                for p in group["params"]:
                    p.grad = None  # which makes AdamW pass over it
        super().step()
        for p, gradient in gradients.items():
            p.grad = gradient
        return result

    def _step_orthogonal(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            if not self.state[p]:  # AdamW wants to see a step when a state is loaded
                self.state[p].update(step=torch.tensor(0.0), momentum=torch.zeros_like(p))
            self.state[p]["step"] += 1
        if not parameters:
            return
        gradients, momenta = (
            [p.grad for p in parameters],
            [self.state[p]["momentum"] for p in parameters],
        )
        torch._foreach_lerp_(momenta, gradients, 1 - group["betas"][0])
        updates = torch._foreach_lerp(gradients, momenta, group["betas"][0])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
        for p, update in zip(parameters, updates, strict=True):
            alike.setdefault(_matrix(update).shape, []).append((p, _matrix(update)))
        for shape, pairs in alike.items():
            found = orthogonalized(torch.stack([update for _, update in pairs]).to(self.dtype)).to(
                torch.float32
            )
            found *= -group["lr"] * UPDATE_RMS * max(shape) ** 0.5
            for (p, _), update in zip(pairs, found, strict=True):
                p.add_(update.unflatten(1, (*p.shape[2:], p.shape[1])).permute(0, 3, 1, 2))


def _matrix(bank: Tensor) -> Tensor:
    """A filter bank (out, in, height, width) as (out, height * width * in): a view where it lies channels-last in memory."""
    return bank.permute(0, 2, 3, 1).flatten(1)


def orthogonalized(matrices: Tensor) -> Tensor:
    """For each of the matrices (n, rows, columns) the nearest one with all singular values about 1, by Newton and Schulz."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    gram = x @ x.mT
    # The fourth root of the sum of the singular values' fourth powers: no less than the largest, and much nearer to it than the
    # Frobenius norm. The polynomials grow steeply above 1, which rounding must not reach.
    size = 1.05 * gram.norm(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-7)
    x, gram = x / size, gram / size**2
    for i, (a, b, c) in enumerate(NEWTON_SCHULZ_COEFFS):
        gram = x @ x.mT if i else gram
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
