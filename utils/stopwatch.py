"""Where the time of an evaluation goes, stage by stage."""

import time
from collections import defaultdict

import torch


class Timer:
    """Adds up the seconds of named stages, which follow one another; each `lap` waits for what the device still has to do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """What has passed since the last lap was `stage`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now
