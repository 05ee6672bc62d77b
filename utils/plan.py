"""What a hyp file plans: its schedule, built and checked over the whole run before the first step, printed and drawn.

`python -m utils.schedulers` is the command: it prints the turning points of one or more hyp files and draws their curves.
"""

import sys
import warnings
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from utils.cli import Parser, int_range
from utils.errors import UserError
from utils.hyp import Hyp, load_hyp
from utils.plots import draw_plan
from utils.schedulers import BatchWarmup, build_scheduler, plan
from utils.yamlfile import find_file

HYP = Path(__file__).resolve().parents[1] / "hyp"


def build_checked_scheduler(
    hyp: Hyp, hyp_file: Path, optimizer: Any, epochs: int, sizes: Sequence[int], batch_size: int
) -> tuple[BatchWarmup, list[array], list[str]]:
    """The schedule of `hyp` for a run of `epochs`, each parameter group's rate in every batch of it, and what to know about it.

    `sizes` are the samples in each batch of an epoch. The sentences at the end name the file and say which restarts are left
    out, and from which epoch the rate stays at 0. Raises UserError when the block gives no schedule, or gives a rate somewhere
    in the run that is not finite or is negative.
    """
    try:
        with warnings.catch_warnings(record=True, category=UserWarning) as left_out:
            warnings.simplefilter("always")
            scheduler = build_scheduler(hyp.scheduler, optimizer, epochs, len(sizes), batch_size)
        notes = [f"{hyp_file}: {warning.message}" for warning in left_out]
        curves = plan(scheduler, epochs, sizes)
    except ValueError as error:
        raise UserError(f"{hyp_file}: {error}") from None
    idle = max(
        next((i + 1 for i in reversed(range(len(curve))) if curve[i]), 0) for curve in curves
    )
    if (
        idle < len(curves[0]) - 1
    ):  # one batch at 0 is where a curve ends; more is a number that does not fit the data
        notes.append(
            f"{hyp_file}: scheduler: the rate is 0 from epoch {idle // len(sizes)} to the end"
        )
    return scheduler, curves, notes


def turning_points(
    scheduler: BatchWarmup, curve: Sequence[float], batches: int
) -> list[tuple[str, int]]:
    """Where a run's curve, `batches` an epoch, turns: (start, peak, restart or last; its batch from the run's start)."""
    points = [("start", 0), ("peak", max(range(len(curve)), key=curve.__getitem__))]
    restarts = getattr(scheduler, "steps", [])[1:-1]
    points += [
        ("restart", (int(step) + 1) * batches) for step in restarts
    ]  # the boundary itself ends the segment before
    return [*points, ("last", len(curve) - 1)]


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status: 0, or 2 after one sentence on stderr for a user's mistake."""
    p = Parser(
        "python -m utils.schedulers",
        description="Print and draw the learning rate that hyp files plan.",
    )
    p.add_argument(
        "--hyp",
        default="hyp.yaml",
        metavar="FILE",
        help="a hyp file, or the name of one in hyp/ (hyp.yaml)",
    )
    p.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="FILE",
        help="other hyp files, to stand beside it",
    )
    p.add_argument(
        "--epochs", type=int_range(1), default=100, metavar="N", help="length of the run (100)"
    )
    p.add_argument(
        "--batches", type=int_range(1), default=100, metavar="N", help="batches in an epoch (100)"
    )
    p.add_argument(
        "--batch-size", type=int_range(1), default=16, metavar="N", help="pictures in a batch (16)"
    )
    p.add_argument("--plot", metavar="PNG", help="draw the curves into this picture")
    try:
        args = p.parse_args(argv)
        names, curves, sizes = [args.hyp, *args.compare], [], [args.batch_size] * args.batches
        for name in names:
            path = find_file(name, HYP)
            hyp = load_hyp(path)
            group = SimpleNamespace(param_groups=[{"lr": hyp.lr0}])
            scheduler, [curve], notes = build_checked_scheduler(
                hyp, path, group, args.epochs, sizes, args.batch_size
            )
            for sentence in notes:
                print(sentence, file=sys.stderr)
            print(
                f"{name}: {hyp.scheduler.name}, {args.epochs} epochs of {args.batches} batches of {args.batch_size} pictures"
            )
            print("  point    epoch  batch  learning rate  just before")
            for what, i in turning_points(scheduler, curve, args.batches):
                before = f"{curve[i - 1]:.6g}" if i else ""
                print(
                    f"  {what:8} {i // args.batches:5} {i % args.batches:6}  {curve[i]:13.6g}  {before:>11}".rstrip()
                )
            curves.append(curve)
        if args.plot:
            try:
                draw_plan(curves, args.batches, args.plot, names)
            except (
                OSError,
                ValueError,
            ) as error:  # ValueError: a kind of picture that matplotlib does not write
                raise UserError(f"--plot {args.plot}: cannot be written: {error}") from None
    except UserError as error:
        print(f"python -m utils.schedulers: {error}", file=sys.stderr)
        return 2
    return 0
