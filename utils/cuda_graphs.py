"""What `--cuda-graphs` cannot be combined with."""

from argparse import Namespace
from collections.abc import Collection

import torch

from utils.errors import UserError
from utils.hyp import Hyp
from utils.log import warning


def check_cuda_graphs(
    args: Namespace,
    hyp: Hyp,
    device: torch.device,
    imgsz: tuple[int, int],
    world_size: int,
    overrides: Collection[str],
) -> bool:
    """Return whether to record CUDA graphs. Raises UserError for what `--cuda-graphs` excludes.

    A run that was started with it may be resumed on another device, or by more processes. If it is
    among the `overrides` of that command, too, it is an error; otherwise a warning, and this start
    does without graphs. `args` stay as they are, so that a later one has them again.

    Graphs are recorded for one shape of a batch (`imgsz`: the smallest and the largest), and they
    overwrite the gradients of the batch before. DDP would wait for the whole backward pass before
    it sends the first gradient.
    """
    if not args.cuda_graphs:
        return False
    num_small = hyp.num_small_epochs(args.epochs)
    excluded = {
        f"--device {device} (it needs a CUDA device)": device.type != "cuda",
        f"{world_size} processes (it is for one)": world_size > 1,
        f"--imgsz {args.imgsz} (give one size)": imgsz[0] != imgsz[1],
        f"small_epochs: {hyp.small_epochs} in {args.hyp} (it must be 0)": num_small > 0,
        f"accumulate: {hyp.accumulate} in {args.hyp} (it must be 1)": hyp.accumulate > 1,
        "--detect-anomaly (use one of the two)": args.detect_anomaly,
        f"--compile {args.compile} (use one of the two)": args.compile is not None,
    }
    conflicts = [what for what, is_there in excluded.items() if is_there]
    if not conflicts:
        return True
    problem = f"--cuda-graphs: does not work with {conflicts[0]}"
    if "cuda_graphs" in overrides:
        raise UserError(problem)
    warning(f"{problem}; the run continues without")
    return False
