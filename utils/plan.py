"""From a hyp file's `scheduler` block to a schedule that is checked over the whole run.

`python -m utils.plan` prints the turning points of one or more hyp files and draws their curves.
"""

import math
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from utils.cli import Parser, int_range, run_cli
from utils.errors import UserError
from utils.hyp import Hyp, load_hyp
from utils.log import info, plural, warning
from utils.plots import draw_plan
from utils.schedulers import SCHEDULERS, SCHEDULES, AnnealingLR, BatchWarmup, restart_epoch
from utils.yamlfile import find_file

HYP_DIR = Path(__file__).resolve().parents[1] / "hyp"


def build_scheduler(
    block: BaseModel, optimizer: Any, epochs: int, batches_per_epoch: int, batch_size: int
) -> tuple[BatchWarmup, list[str]]:
    """Build the schedule of a hyp file's `scheduler` block.

    `batch_size` is what the sample-count schedules count if `step_batch` is not given a number.
    Returns the scheduler and messages: one for each restart that is skipped, because it falls
    outside the run or on another one, and one if the warm-up is as long as the run. Raises
    ValueError for arguments that give no schedule.
    """
    arguments = dict(block)
    name = arguments.pop("name")
    messages = []
    if name == "cawb":
        steps = arguments["steps"]
        messages = _skipped_restarts(steps, arguments["warmup_epoch"], epochs)
        arguments["steps"] = list(dict.fromkeys(steps))  # an epoch that is listed twice
    if name in SCHEDULES:
        scheduler_class = AnnealingLR
        arguments |= {"learning_rate_schedule": name, "batch_size": batch_size}
    else:
        scheduler_class = SCHEDULERS[name]
        arguments["epochs"] = epochs
    try:
        scheduler = scheduler_class(optimizer, batchs=batches_per_epoch, **arguments)
    except ValueError as error:
        raise ValueError(f"scheduler: {error}") from None
    if scheduler.warmup_epoch >= epochs:
        messages.append(
            f"scheduler: warmup_epoch {scheduler.warmup_epoch}: the run has only "
            f"{plural(epochs, 'epoch')}, so the learning rate never gets to its peak"
        )
    return scheduler, messages


def _skipped_restarts(steps: Sequence[int | str], warmup_epoch: int, epochs: int) -> list[str]:
    messages, used = [], set()
    for step in steps:
        epoch = restart_epoch(step, epochs)
        if epoch in used:
            reason = "which has one already"
        elif not warmup_epoch < epoch < epochs:
            reason = f"but the warm-up ends at {warmup_epoch} and the run at {epochs}"
        else:
            used.add(epoch)
            continue
        messages.append(f"scheduler: steps: {step} is skipped: it falls on epoch {epoch}, {reason}")
    return messages


def plan(scheduler: BatchWarmup, epochs: int, batch_sizes: Sequence[int]) -> list[array]:
    """Return each parameter group's curve: its rate in every batch of a run of `epochs`.

    `batch_sizes` are the samples in each batch of an epoch. Raises ValueError, naming the epoch,
    where a rate is not finite or is negative.
    """
    curves = [array("d") for _ in scheduler.base_lr]
    samples, samples_of_epoch = 0, sum(batch_sizes)
    for epoch in range(epochs):
        if scheduler.changes_every_batch or epoch < scheduler.warmup_epoch:
            rates = _checked_rates_of_epoch(scheduler, epoch, batch_sizes, samples)
        else:  # one rate for all batches of the epoch
            lrs = _checked_rates(scheduler, epoch, 0, samples)
            rates = [array("d", [lr]) * len(batch_sizes) for lr in lrs]
        for curve, of_group in zip(curves, rates, strict=True):
            curve.extend(of_group)
        samples += samples_of_epoch
    return curves


def _checked_rates_of_epoch(
    scheduler: BatchWarmup, epoch: int, batch_sizes: Sequence[int], samples: int
) -> list[array]:
    try:
        rates = [array("d", lrs) for lrs in scheduler.lrs_of_epoch(epoch, batch_sizes, samples)]
    except ValueError as error:
        raise ValueError(f"scheduler: epoch {epoch}: {error}") from None
    if all(min(lrs) >= 0 and math.isfinite(sum(lrs)) for lrs in rates):
        return rates
    # Some rate is not finite or is negative, or their sum overflows.
    for batch, size in enumerate(batch_sizes):
        _checked_rates(scheduler, epoch, batch, samples)
        samples += size
    return rates


def _checked_rates(scheduler: BatchWarmup, epoch: int, batch: int, samples: int) -> list[float]:
    try:
        rates = scheduler.lr_at(epoch, batch, samples)
    except ValueError as error:
        raise ValueError(f"scheduler: epoch {epoch}: {error}") from None
    if not all(0 <= lr < math.inf for lr in rates):
        raise ValueError(
            f"scheduler: epoch {epoch}: the learning rate would be {rates} "
            "(it must be finite and not negative)"
        )
    return rates


def build_checked_scheduler(
    hyp: Hyp,
    hyp_file: Path,
    optimizer: Any,
    epochs: int,
    batch_sizes: Sequence[int],
    batch_size: int,
) -> tuple[BatchWarmup, list[array], list[str]]:
    """Build the schedule of `hyp` for a run of `epochs`, and check its whole curve.

    `batch_sizes` are the samples in each batch of an epoch, `batch_size` those of a full one.
    Returns the scheduler, each parameter group's rate in every batch of the run, and messages that
    name the file: which restarts are skipped, whether the run ends in the warm-up, and from which
    epoch the rate stays at 0. Raises UserError if the block gives no schedule, or a rate that is
    not finite or is negative.
    """
    batches = len(batch_sizes)
    try:
        scheduler, messages = build_scheduler(hyp.scheduler, optimizer, epochs, batches, batch_size)
        curves = plan(scheduler, epochs, batch_sizes)
    except ValueError as error:
        raise UserError(f"{hyp_file}: {error}") from None
    first_zero = max(_end_of_positive(curve) for curve in curves)
    # A curve may end with one batch at 0; more means that a number does not fit the data.
    if first_zero < len(curves[0]) - 1:
        epoch = first_zero // batches
        messages.append(f"scheduler: the learning rate is 0 from epoch {epoch} to the end")
    return scheduler, curves, [f"{hyp_file}: {message}" for message in messages]


def _end_of_positive(curve: Sequence[float]) -> int:
    """Return the index of the first of the zeros that a curve ends with, its length if none."""
    end = len(curve)
    while end and curve[end - 1] == 0:
        end -= 1
    return end


def check_lr(scheduler: BatchWarmup, curves: Sequence[array], epoch: int, batch: int) -> None:
    """Raise RuntimeError unless every group's current rate is the planned one.

    `curves` are those of `plan`. To be called after each `step_batch`: it finds a schedule whose
    curve depends on something else than its position, so that lr.png shows another one than the
    run follows.
    """
    index = epoch * scheduler.batchs + batch
    for group, (lr, curve) in enumerate(zip(scheduler.get_last_lr(), curves, strict=True)):
        if lr != curve[index]:
            raise RuntimeError(
                f"{type(scheduler).__name__}: epoch {epoch}, batch {batch}: the learning rate of "
                f"group {group} is {lr!r}, but {curve[index]!r} was planned (_rates must depend on "
                "its arguments only; a rate that changes within an epoch needs changes_every_batch)"
            )


def turning_points(
    scheduler: BatchWarmup, curve: Sequence[float], batches_per_epoch: int
) -> list[tuple[str, int]]:
    """Return where a run's curve turns: start, peak, restart or last, and its batch in the run."""
    points = [("start", 0), ("peak", max(range(len(curve)), key=curve.__getitem__))]
    for boundary in getattr(scheduler, "steps", [])[1:-1]:
        # The boundary itself still belongs to the segment that it ends.
        if scheduler.changes_every_batch:
            restart = math.floor(boundary * batches_per_epoch) + 1
        else:
            restart = (math.floor(boundary) + 1) * batches_per_epoch
        points.append(("restart", restart))
    return [*points, ("last", len(curve) - 1)]


def _parse_args(argv: list[str] | None) -> Any:
    p = Parser(
        "python -m utils.plan",
        description="Print and draw the learning-rate schedules of hyp files. "
        "Defaults in parentheses.",
    )
    p.add_argument(
        "--hyp",
        default="hyp.yaml",
        metavar="FILE",
        help="hyp file, or the name of one in hyp/ (hyp.yaml)",
    )
    p.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="FILE",
        help="other hyp files to compare it with",
    )
    p.add_argument(
        "--epochs", type=int_range(1), default=100, metavar="N", help="length of the run (100)"
    )
    p.add_argument(
        "--batches", type=int_range(1), default=100, metavar="N", help="batches per epoch (100)"
    )
    p.add_argument(
        "--batch-size", type=int_range(1), default=16, metavar="N", help="images per batch (16)"
    )
    p.add_argument("--plot", metavar="PNG", help="draw the curves to this file")
    return p.parse_args(argv)


def _print_plan(
    name: str, hyp: Hyp, scheduler: BatchWarmup, curve: Sequence[float], args: Any
) -> None:
    info(
        f"{name}: {hyp.scheduler.name}, epochs: {args.epochs}, batches per epoch: {args.batches}, "
        f"batch size: {args.batch_size}"
    )
    info("  point    epoch  batch  learning rate  just before")
    for point, i in turning_points(scheduler, curve, args.batches):
        epoch, batch = divmod(i, args.batches)
        before = f"{curve[i - 1]:.6g}" if i else ""
        info(f"  {point:8} {epoch:5} {batch:6}  {curve[i]:13.6g}  {before:>11}".rstrip())


def _run(argv: list[str] | None) -> None:
    args = _parse_args(argv)
    names = [args.hyp, *args.compare]
    curves = []
    for name in names:
        path = find_file(name, HYP_DIR, "--hyp" if name == args.hyp else "--compare")
        hyp = load_hyp(path)
        optimizer = SimpleNamespace(param_groups=[{"lr": hyp.lr0}])
        scheduler, [curve], messages = build_checked_scheduler(
            hyp, path, optimizer, args.epochs, [args.batch_size] * args.batches, args.batch_size
        )
        warning(*messages)
        _print_plan(name, hyp, scheduler, curve, args)
        curves.append(curve)
    if args.plot:
        try:
            draw_plan(curves, args.batches, args.plot, names)
        except (OSError, ValueError) as error:  # ValueError: not a format of matplotlib
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--plot {args.plot}: cannot be written: {reason}") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 for a user's error."""
    return run_cli("python -m utils.plan", lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main())
