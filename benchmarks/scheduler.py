"""Time spent on the learning rate per batch: `step_batch()` here, compared with other libraries.

`python benchmarks/scheduler.py` (it needs timm, see benchmarks/requirements.txt). Each result is
the median of several rounds; in a round all candidates are timed one after the other, so that a
slow moment of the machine affects all of them.
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

WARMUP = 10**9  # batches: a warm-up that lasts longer than the measurement
BASELINE = "torch LambdaLR.step"


def optimizer(groups: int) -> torch.optim.Optimizer:
    """Return SGD with `groups` parameter groups of one number each."""
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=0.1
    )


def cawb(groups: int, **arguments: int | bool) -> CosineAnnealingWarmbootingLR:
    """Return CAWB over 10 epochs, at the start of the first."""
    scheduler = CosineAnnealingWarmbootingLR(optimizer(groups), epochs=10, **arguments)
    scheduler.step(0)
    return scheduler


def candidates(groups: int) -> dict[str, Callable[[], object]]:
    """Return the call that each candidate makes per batch."""
    annealing = AnnealingLR(optimizer(groups), batchs=WARMUP, warmup_epoch=1)
    poly = AnnealingLR(optimizer(groups), "poly", 1e-6, 0.75)
    lambda_lr = LambdaLR(optimizer(groups), lambda batch: batch / WARMUP)
    inner = optimizer(groups)
    parts = [LinearLR(inner, 1e-3, total_iters=WARMUP), CosineAnnealingLR(inner, T_max=WARMUP)]
    sequential = SequentialLR(inner, parts, milestones=[WARMUP])
    timm_cosine = CosineLRScheduler(
        optimizer(groups), t_initial=2 * WARMUP, warmup_t=WARMUP, t_in_epochs=False
    )
    batch = iter(range(WARMUP))
    return {
        "CAWB step_batch, in the warm-up": cawb(groups, batchs=WARMUP, warmup_epoch=1).step_batch,
        "CAWB step_batch, after it": cawb(groups, batchs=100).step_batch,
        "CAWB step_batch, per_batch, after it": cawb(
            groups, batchs=WARMUP, per_batch=True
        ).step_batch,
        "AnnealingLR step_batch, in the warm-up": annealing.step_batch,
        "AnnealingLR step_batch of poly, after it": poly.step_batch,
        BASELINE: lambda_lr.step,
        "torch SequentialLR.step": sequential.step,
        "timm step_update": lambda: timm_cosine.step_update(next(batch)),
    }


def nanoseconds(call: Callable[[], object], calls: int) -> float:
    """Return the mean duration of one of `calls` calls."""
    start_time = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start_time) / calls


def main() -> None:
    """Print a row per candidate and a column per number of groups, with the ratio to LambdaLR."""
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
    p.add_argument("--calls", type=int, default=5000, help="calls per round (5000)")
    args = p.parse_args()
    warnings.filterwarnings("ignore")  # torch's, about an optimizer that makes no step
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
        f"ns per call, median of {args.rounds} rounds of {args.calls} calls "
        f"(and the ratio to {BASELINE})\n"
    )
    print(f"{'parameter groups':42}" + "".join(f"{groups:>18}" for groups in args.groups))
    for name in columns[0]:
        cells = [f"{c[name]:.0f} ({c[name] / c[BASELINE]:.3f})" for c in columns]
        print(f"{name:42}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
