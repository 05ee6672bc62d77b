"""What `--deterministic` costs: a training step with deterministic algorithms, as a ratio to one without.

`python benchmarks/deterministic.py` (on the CPU, where a run is always deterministic, `--device cpu`). Both take their turn in
every round, each after a few steps that are not counted, in which cuDNN may look for its fastest convolutions; the figure is the
median over the rounds.
"""

import argparse
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
    p.add_argument("--device", default="auto", help="(auto)")
    p.add_argument("--batch-size", type=int, default=16, help="(16)")
    p.add_argument("--imgsz", type=int, default=640, help="(640)")
    p.add_argument("--rounds", type=int, default=7, help="rounds to take the median of (7)")
    p.add_argument(
        "--steps", type=int, default=20, help="steps in a round, and a quarter as many before (20)"
    )
    args = p.parse_args()
    device = select_device(args.device)
    print(
        f"torch {torch.__version__}, {device}; {args.batch_size} pictures of {args.imgsz} px; median of {args.rounds} rounds"
    )
    for name in args.models:
        run = Run(name, "adamw", device, args.batch_size, args.imgsz)
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(args.rounds):
            for exact, found in times.items():
                set_deterministic(exact)
                for _ in range(-(-args.steps // 4)):
                    run.step()
                found.append(statistics.fmean(milliseconds(run.step) for _ in range(args.steps)))
        ratio = statistics.median(a / b for a, b in zip(times[True], times[False], strict=True))
        exact, free = (statistics.median(found) for found in times.values())
        print(f"{name}: {exact:.1f} ms a step deterministic, {free:.1f} ms without: {ratio:.3f}")


if __name__ == "__main__":
    main()
