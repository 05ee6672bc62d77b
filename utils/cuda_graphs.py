"""What `--cuda-graphs` cannot be combined with."""

from argparse import Namespace

import torch

from utils.errors import UserError
from utils.hyp import Hyp


def check_cuda_graphs(
    args: Namespace, hyp: Hyp, device: torch.device, imgsz: tuple[int, int], world_size: int
) -> None:
    """Raise UserError if `--cuda-graphs` is given with what it excludes.

    Graphs are recorded for one shape of a batch (`imgsz`: the smallest and the largest), and they
    overwrite the gradients of the batch before. DDP would wait for the whole backward pass before
    it sends the first gradient.
    """
    if not args.cuda_graphs:
        return
    excluded = {
        f"--device {device} (it needs a CUDA device)": device.type != "cuda",
        f"{world_size} processes (it is for one)": world_size > 1,
        f"--imgsz {args.imgsz} (give one size)": imgsz[0] != imgsz[1],
        f"accumulate: {hyp.accumulate} in {args.hyp} (it must be 1)": hyp.accumulate > 1,
        "--detect-anomaly (use one of the two)": args.detect_anomaly,
        f"--compile {args.compile} (use one of the two)": args.compile is not None,
    }
    for what, is_given in excluded.items():
        if is_given:
            raise UserError(f"--cuda-graphs: does not work with {what}")
