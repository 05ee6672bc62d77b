"""The cost of `--deterministic`: time of a training step with deterministic algorithms, as a ratio.

    python benchmarks/deterministic.py

On the CPU (`--device cpu`) a run is always deterministic. Both modes take turns in every round,
each after a few steps that are not counted, in which cuDNN can search for its fastest convolutions;
the ratio is the median over the rounds.
"""

import argparse
import math
import statistics

import torch
from checkpoint import Run, milliseconds

from utils.device import select_device, set_deterministic


def main() -> None:
    """Print a line for each model."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--models", nargs="+", default=["yolo-n", "yolo-l"], help="(yolo-n yolo-l)")
    p.add_argument("--device", default="auto", help="(%(default)s)")
    p.add_argument("--batch-size", type=int, default=16, help="(%(default)s)")
    p.add_argument("--imgsz", type=int, default=640, help="(%(default)s)")
    p.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    p.add_argument(
        "--steps",
        type=int,
        default=20,
        help="steps per round, after a quarter as many that are not counted (%(default)s)",
    )
    args = p.parse_args()
    device = select_device(args.device)
    print(
        f"torch {torch.__version__}, {device}; batch size {args.batch_size}, {args.imgsz} px; "
        f"median of {args.rounds} rounds"
    )
    for name in args.models:
        run = Run(name, "adamw", device, args.batch_size, args.imgsz)
        step_times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(args.rounds):
            for deterministic, times in step_times.items():
                set_deterministic(deterministic)
                for _ in range(math.ceil(args.steps / 4)):
                    run.step()
                times.append(statistics.fmean(milliseconds(run.step) for _ in range(args.steps)))
        ratios = [a / b for a, b in zip(step_times[True], step_times[False], strict=True)]
        with_it, without_it = (statistics.median(step_times[key]) for key in (True, False))
        print(
            f"{name}: {with_it:.1f} ms per step deterministic, {without_it:.1f} ms otherwise: "
            f"ratio {statistics.median(ratios):.3f}"
        )


if __name__ == "__main__":
    main()
