"""utils/optimizers.py: Muon on kernels agrees with torch's on matrices; the rest is AdamW."""

import copy

import pytest
import torch
from torch import nn

from models import YOLO, build_model
from utils.hyp import Hyp
from utils.optimizers import NEWTON_SCHULZ_COEFFS, Muon, build_optimizer, orthogonalize


class TinyModel(nn.Sequential):
    param_groups = YOLO.param_groups


@pytest.mark.parametrize("shape", [(3, 16, 144), (1, 64, 16), (2, 8, 8)])
def test_orthogonalize_keeps_directions_and_brings_singular_values_near_1(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    (orthogonal,) = orthogonalize([matrices], [1.0])
    inner = u.mT @ orthogonal @ vh.mT  # diagonal in the singular vectors of the input
    values = inner.diagonal(dim1=1, dim2=2)
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-3
    assert values.max() < 1.3 and values.median() > 0.65


def test_orthogonalize_equals_the_iteration_as_published():
    """One polynomial after the other, in double precision; also of stacks of different sizes."""
    torch.manual_seed(0)
    stacks = [torch.randn(3, 16, 144), torch.randn(1, 40, 16), torch.randn(2, 16, 16)]
    scales = [1.0, 2.0, 0.5]
    results = orthogonalize(stacks, scales)
    for matrices, orthogonal, scale in zip(stacks, results, scales, strict=True):
        x = matrices.double()
        x = x / (1.05 * torch.linalg.matrix_norm(x @ x.mT)[:, None, None].sqrt())
        for coeffs in NEWTON_SCHULZ_COEFFS:
            powers = [x]
            for _ in coeffs[1:]:
                powers.append(x @ x.mT @ powers[-1])
            x = sum(c * power for c, power in zip(coeffs, powers, strict=True))
        torch.testing.assert_close(orthogonal, scale * x.float(), rtol=1e-4, atol=1e-5)


def test_coefficients_bring_the_singular_values_that_they_name_near_1():
    x = torch.linspace(0.025, 1, 10001, dtype=torch.float64)
    for coeffs in NEWTON_SCHULZ_COEFFS:
        x = sum(c * x ** (2 * i + 1) for i, c in enumerate(coeffs))
    assert (x - 1).abs().max() < 0.102


@pytest.mark.parametrize("rank", [1, 2, 16])
def test_orthogonalize_low_rank_does_not_diverge(rank):
    """The polynomials grow steeply above 1, and rank 1 is scaled to almost exactly 1."""
    torch.manual_seed(0)
    for size in (1e-6, 1.0, 1e6):
        matrices = torch.randn(20, 64, rank) @ torch.randn(20, rank, 288) * size
        (orthogonal,) = orthogonalize([matrices], [1.0])
        values = torch.linalg.svdvals(orthogonal)
        assert values.max() < 1.3 and values[:, 0].min() > 0.8
    assert not orthogonalize([torch.zeros(1, 8, 16)], [1.0])[0].any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_updates_a_kernel_like_torch_muon_its_matrix(memory_format):
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(16, 8, 3, 3).to(memory_format=memory_format))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    muon = Muon(
        [{"params": [kernel], "muon": True}],
        lr=0.02,
        betas=(0.9, 0.999),
        weight_decay=0.1,
    )
    # For the same lr its update has half the size of ours; both decay by lr * weight_decay. With
    # these coefficients and steps its iteration converges, where ours stops within 10%.
    converged = {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 20}
    reference = torch.optim.Muon(
        [matrix],
        lr=0.04,
        momentum=0.9,
        weight_decay=0.05,
        adjust_lr_fn="match_rms_adamw",
        **converged,
    )
    start = matrix.detach().clone()
    for _ in range(5):
        kernel.grad = torch.randn(16, 8, 3, 3).to(memory_format=memory_format)
        matrix.grad = kernel.grad.flatten(1)
        muon.step()
        reference.step()
    distance = (matrix - start).norm()
    assert (kernel.flatten(1) - matrix).norm() < 0.05 * distance
    assert kernel.grad is not None


def test_muon_updates_all_but_hidden_convolutions_like_adamw():
    torch.manual_seed(0)
    model = build_model("yolo-n", 3)
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    build_optimizer(model, Hyp(optimizer="muon")).step()
    build_optimizer(other, Hyp(optimizer="adamw")).step()
    hidden_convs = {
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is None
    }
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) == (name.rpartition(".")[0] not in hidden_convs), name


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_build_optimizer_has_every_parameter_once_and_decays_weights_only(name):
    model = build_model("yolo-n", 3)
    optimizer = build_optimizer(model, Hyp(optimizer=name))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_backbone_lr_is_the_share_of_the_backbone(name):
    """Of the same gradients the backbone's steps are a quarter as long, all others the same."""
    torch.manual_seed(0)
    model = build_model("yolo-n", 3)
    slower, before = copy.deepcopy(model), copy.deepcopy(model)
    for p, q in zip(model.parameters(), slower.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    hyp = {"optimizer": name, "weight_decay": 0.0, "lr0": 0.25}
    optimizer = build_optimizer(model, Hyp(**hyp))
    quarter = build_optimizer(slower, Hyp(**hyp, backbone_lr=0.25))
    count = len(optimizer.param_groups)
    rates = [group["lr"] for group in quarter.param_groups]
    assert rates[:count] == [0.25] * count and set(rates[count:]) == {0.0625}
    parameters = [p for group in quarter.param_groups for p in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(slower.parameters()))
    optimizer.step()
    quarter.step()
    trios = zip(before.named_parameters(), model.parameters(), slower.parameters(), strict=True)
    for (key, start), p, q in trios:
        factor = 0.25 if key.startswith("backbone.") else 1.0
        torch.testing.assert_close(q - start, factor * (p - start), rtol=1e-3, atol=1e-5)
        assert factor < 1 or torch.equal(p, q)


def test_backbone_lr_without_a_trainable_backbone_has_no_groups():
    model = build_model("yolo-n", 3)
    model.backbone.requires_grad_(False)
    groups = build_optimizer(model, Hyp(backbone_lr=0.1)).param_groups
    assert len(groups) == 3 and all(group["params"] for group in groups)


def test_muon_resumes_bitwise_identically():
    def take_steps(model, optimizer, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()

    torch.manual_seed(0)
    model = TinyModel(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    optimizer = build_optimizer(model, Hyp())
    take_steps(model, optimizer, range(2))
    resumed_model = copy.deepcopy(model)
    resumed = build_optimizer(resumed_model, Hyp())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(model, optimizer, range(2, 4))
    take_steps(resumed_model, resumed, range(2, 4))
    assert all(
        torch.equal(p, q)
        for p, q in zip(model.parameters(), resumed_model.parameters(), strict=True)
    )
