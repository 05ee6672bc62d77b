"""Constants that are made of a buffer have the values and types of torch's own."""

import pytest
import torch

from models.portable_constants import PortableConstants


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(5),
        lambda: torch.arange(2, 5, dtype=torch.float32),
        lambda: torch.arange(end=5),
        lambda: torch.arange(start=2, end=5),
        lambda: torch.arange(0, 9, step=2),
        lambda: torch.arange(2, 9, 3),
        lambda: torch.arange(0.5, 4),
        lambda: torch.arange(100),
        lambda: torch.zeros(2, 3),
        lambda: torch.ones(size=(2,), dtype=torch.bool),
        lambda: torch.full((2,), -1e9),
        lambda: torch.full((), 3),
        lambda: torch.ones(2).to(torch.device("cpu"), torch.float16),
    ],
)
def test_same_as_torch(make):
    with PortableConstants(torch.arange(10, dtype=torch.int32)):
        made = make()
    expected = make()
    assert made.dtype == expected.dtype and torch.equal(made, expected)
