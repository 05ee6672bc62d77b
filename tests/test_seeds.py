"""Random numbers are a function of the place in the run, for everything that draws any."""

import random

import numpy as np
import torch

from utils.seeds import seed_everything


def drawn() -> tuple[float, ...]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_the_same_place_gives_the_same_numbers_whatever_was_before():
    seed_everything(0, 3, 5, 1)
    expected = drawn()
    drawn()
    seed_everything(0, 3, 5, 1)
    assert drawn() == expected


def test_every_place_has_numbers_of_its_own():
    found = []
    for place in (
        (0, 3),
        (0, 3, 5, 1),
        (0, 3, 5, 0),
        (0, 5, 3, 1),
        (1, 3, 5, 1),
        (0, 3, 6, 1),
        (2**40, 3, 5, 1),
    ):
        seed_everything(*place)
        found.append(drawn())
    for numbers in zip(*found, strict=True):
        assert len(set(numbers)) == len(found)
