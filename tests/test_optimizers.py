"""Muon does for filter banks what torch's does for matrices, and what is not a filter bank is AdamW's."""

import copy

import pytest
import torch
from torch import nn

from models import build_model
from utils.hyp import Hyp
from utils.optimizers import Muon, build_optimizer, orthogonalized


@pytest.mark.parametrize("shape", [(3, 16, 144), (1, 64, 16), (2, 8, 8)])
def test_the_update_has_the_directions_of_the_matrix_and_singular_values_about_1(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalized(matrices) @ vh.mT  # diagonal in the matrix's own directions
    values = inner.diagonal(dim1=1, dim2=2)
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-3
    assert values.max() < 1.3 and values.median() > 0.65


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 2, 16])
def test_a_gradient_of_few_directions_does_not_run_away(rank, dtype):
    """The polynomials grow steeply above 1, where a matrix of rank 1 stands to the last digit."""
    torch.manual_seed(0)
    for size in (1e-6, 1.0, 1e6):
        matrices = (torch.randn(20, 64, rank) @ torch.randn(20, rank, 288) * size).to(dtype)
        values = torch.linalg.svdvals(orthogonalized(matrices).float())
        assert values.max() < 1.3 and values[:, 0].min() > 0.8
    assert not orthogonalized(torch.zeros(1, 8, 16, dtype=dtype)).any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_filter_bank_moves_as_torchs_muon_moves_its_matrix(memory_format):
    torch.manual_seed(0)
    bank = nn.Parameter(torch.randn(16, 8, 3, 3).to(memory_format=memory_format))
    matrix = nn.Parameter(bank.detach().flatten(1).clone())
    ours = Muon(
        [{"params": [bank], "orthogonal": True}],
        torch.bfloat16,
        lr=0.02,
        betas=(0.9, 0.999),
        weight_decay=0.1,
    )
    # Its update has half the size of ours for the same rate; decay is rate times weight_decay for both. With these coefficients
    # and steps its iteration has converged, where ours stops within a tenth.
    exact = {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 20}
    theirs = torch.optim.Muon(
        [matrix], lr=0.04, momentum=0.9, weight_decay=0.05, adjust_lr_fn="match_rms_adamw", **exact
    )
    start = matrix.detach().clone()
    for _ in range(5):
        bank.grad = torch.randn(16, 8, 3, 3).to(memory_format=memory_format)
        matrix.grad = bank.grad.flatten(1)
        ours.step()
        theirs.step()
    moved = (matrix - start).norm()
    assert (bank.flatten(1) - matrix).norm() < 0.05 * moved
    assert bank.grad is not None


def test_what_is_no_hidden_filter_bank_is_adamws():
    torch.manual_seed(0)
    model = build_model("yolo-n", 3)
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    build_optimizer(model, Hyp(optimizer="muon"), torch.float32).step()
    build_optimizer(other, Hyp(optimizer="adamw"), torch.float32).step()
    convolutions = {
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is None
    }
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) == (name.rpartition(".")[0] not in convolutions), name


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_every_parameter_is_optimized_once_and_only_weights_decay(name):
    model = build_model("yolo-n", 3)
    optimizer = build_optimizer(model, Hyp(optimizer=name), torch.float32)
    found = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(set(found)) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_a_loaded_muon_goes_on_to_the_bit():
    def stepped(model, optimizer, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    whole = build_optimizer(model, Hyp(), torch.float32)
    stepped(model, whole, range(2))
    again = copy.deepcopy(model)
    resumed = build_optimizer(again, Hyp(), torch.float32)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    stepped(model, whole, range(2, 4))
    stepped(again, resumed, range(2, 4))
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True)
    )
