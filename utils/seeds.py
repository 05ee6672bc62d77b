"""Random numbers as a function of where a run is, so that there is no state of theirs to save, and none to lose."""

import random

import numpy as np
import torch


def seed_everything(*place: int) -> None:
    """Seed torch (CPU and CUDA), numpy and random from `place`, whole numbers >= 0 such as (seed, epoch, batch, process).

    Called before every batch, it makes dropout, or whatever a loop draws, the same in a resumed run.
    """
    words = np.random.SeedSequence(place).generate_state(4)
    seed = int(words[0]) << 32 | int(words[1])
    torch.default_generator.manual_seed(
        seed
    )  # torch.manual_seed would spend 0.1 ms on a CUDA that is not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(words[2])
    random.seed(int(words[3]))
