"""Random numbers as a function of the position in the run: no RNG state is checkpointed."""

import random

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Seed torch (CPU and CUDA), numpy and random from `key`.

    The key is some integers >= 0, such as (seed, epoch, batch, rank). Called before every batch, it
    makes dropout and any other random numbers in the loop the same in a resumed run.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    seed = int(words[0]) << 32 | int(words[1])
    # torch.manual_seed would spend 0.1 ms per call on a CUDA that is not in use.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(words[2])
    random.seed(int(words[3]))
