"""Nanoseconds per batch for the learning rate: `step_batch()` compared with other schedulers.

`python benchmarks/scheduler.py` (timm is in benchmarks/requirements.txt). Each figure is the median
of several rounds; in a round every candidate is timed in turn, so that a slow moment of the machine
affects all of them.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.schedulers import AnnealingLR, CosineAnnealingWarmbootingLR

WARMUP = 10**9  # batches: a warm-up that outlasts the measurement
BASELINE = "torch LambdaLR.step"


def optimizer(groups: int) -> torch.optim.Optimizer:
    """SGD with `groups` parameter groups of one number each."""
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=0.1
    )


def candidates(groups: int) -> dict[str, Callable[[], object]]:
    """A call for each candidate, to be made once a batch."""
    in_warmup = CosineAnnealingWarmbootingLR(
        optimizer(groups), epochs=10, batchs=WARMUP, warmup_epoch=1
    )
    after = CosineAnnealingWarmbootingLR(optimizer(groups), epochs=10, batchs=100)
    after.step(0)
    lambda_lr = LambdaLR(optimizer(groups), lambda batch: batch / WARMUP)
    inner = optimizer(groups)
    parts = [LinearLR(inner, 1e-3, total_iters=WARMUP), CosineAnnealingLR(inner, T_max=WARMUP)]
    sequential = SequentialLR(inner, parts, milestones=[WARMUP])
    of_timm = CosineLRScheduler(
        optimizer(groups), t_initial=2 * WARMUP, warmup_t=WARMUP, t_in_epochs=False
    )
    batch = iter(range(WARMUP))
    return {
        "step_batch, in warm-up": in_warmup.step_batch,
        "step_batch, after it": after.step_batch,
        "step_batch of AnnealingLR, in warm-up": AnnealingLR(
            optimizer(groups), batchs=WARMUP, warmup_epoch=1
        ).step_batch,
        "step_batch of AnnealingLR poly, after it": AnnealingLR(
            optimizer(groups), "poly", 1e-6, 0.75
        ).step_batch,
        BASELINE: lambda_lr.step,
        "torch SequentialLR.step": sequential.step,
        "timm step_update": lambda: of_timm.step_update(next(batch)),
    }


def nanoseconds(call: Callable[[], object], times: int) -> float:
    """Mean duration of one of `times` calls."""
    began = time.perf_counter_ns()
    for _ in range(times):
        call()
    return (time.perf_counter_ns() - began) / times


def main() -> None:
    """Print a line per candidate, a column per number of groups, with the ratio to LambdaLR."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--groups",
        type=int,
        nargs="+",
        default=[1, 3, 50],
        help="numbers of parameter groups (1 3 50)",
    )
    p.add_argument("--rounds", type=int, default=15, help="rounds to take the median of (15)")
    p.add_argument("--calls", type=int, default=5000, help="calls in a round (5000)")
    args = p.parse_args()
    warnings.filterwarnings("ignore")  # torch's, of an optimizer that takes no step
    columns = []
    for groups in args.groups:
        calls = candidates(groups)
        rounds = [
            {name: nanoseconds(call, args.calls) for name, call in calls.items()}
            for _ in range(args.rounds)
        ]
        columns.append({name: statistics.median(r[name] for r in rounds) for name in calls})
    print(f"torch {torch.__version__}, timm {timm.__version__}, Python {sys.version.split()[0]}")
    print(
        f"ns per call, median of {args.rounds} rounds of {args.calls} calls; "
        f"in brackets relative to {BASELINE}\n"
    )
    print(f"{'parameter groups':42}" + "".join(f"{groups:>18}" for groups in args.groups))
    for name in columns[0]:
        print(
            f"{name:42}"
            + "".join(f"{c[name]:10.0f} ({c[name] / c[BASELINE]:.3f})".rjust(18) for c in columns)
        )


if __name__ == "__main__":
    main()
