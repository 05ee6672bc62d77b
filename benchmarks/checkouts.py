"""Compare two checkouts of this repository: time of a training step, time to start, peak memory.

    python benchmarks/checkouts.py OTHER_CHECKOUT

Both train the same model on the same data in turn, as a user starts them; the order of each pair
alternates. Prints the medians of OTHER, of this checkout, and the median of the pairs' ratios.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("step, ms", "start and end, s", "peak memory, MB")


def measure(checkout: Path, args: argparse.Namespace, project: Path) -> tuple[float, ...]:
    """Train once with `checkout` and return the `FIGURES`."""
    command = [
        *(sys.executable, "train.py", "--data", ROOT / "data" / "shapes.yaml"),
        *("--epochs", args.epochs, "--batch-size", args.batch_size, "--imgsz", args.imgsz),
        *("--workers", 0, "--device", "cpu", "--noval", "--noplots", "--save-every", 0),
        *("--project", project),
    ]
    start = time.monotonic()
    process = subprocess.Popen([*map(str, command)], cwd=checkout, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    if status:
        raise SystemExit(f"{checkout}: train.py failed")
    with (project / "exp" / "results.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    num_steps = 400 / args.batch_size  # the built-in dataset has 400 training images
    # The first epoch warms up caches, the last one validates.
    step = 1000 * statistics.median(seconds[1:-1]) / num_steps
    return step, wall - sum(seconds), usage.ru_maxrss / 1000


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("other", type=Path, help="the checkout to compare with")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--imgsz", type=int, default=160)
    args = p.parse_args()
    checkouts = [args.other.resolve(), ROOT]
    figures: dict[Path, list[tuple[float, ...]]] = {checkout: [] for checkout in checkouts}
    for i in range(args.rounds):
        for checkout in checkouts if i % 2 else checkouts[::-1]:
            with tempfile.TemporaryDirectory() as project:
                figures[checkout].append(measure(checkout, args, Path(project)))
    for number, name in enumerate(FIGURES):
        other, this = ([values[number] for values in figures[c]] for c in checkouts)
        ratio = statistics.median(b / a for a, b in zip(other, this, strict=True))
        print(
            f"{name}: {statistics.median(other):.1f} other, {statistics.median(this):.1f} this, "
            f"ratio {ratio:.3f} (min {min(this):.1f}, max {max(this):.1f})"
        )


if __name__ == "__main__":
    main()
