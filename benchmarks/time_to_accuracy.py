"""mAP50-95 over minutes, from random weights: this repository and others, one after the other.

`python benchmarks/time_to_accuracy.py --data DATA.yaml ... --peer BIN [--plot OUT.png]`, where BIN
is the bin directory of a virtual environment with Ultralytics. It trains yolov8n with its defaults,
and again with `nbs=16`: by default it takes an optimizer step every 64 images. `--libreyolo BIN` is
that of one with LibreYOLO, which trains yolo9-t with its defaults. Each trainer has the whole
machine, validates after every epoch, and draws no plots. Minutes are those of its results.csv: from
the first batch on, validation included, imports and the scan of the data not. With `--busy` a
peer's are epochs times its fastest epoch on the dataset, for a machine that runs other programs
next to it during some of its epochs.

Printed for every dataset: the best mAP of the peer's whole run and when it had it, when this
repository first had as much, and the ratio of the two times.
"""

import argparse
import csv
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from peer_data import copy_dataset

ROOT = Path(__file__).resolve().parents[1]
OURS = "this repository, yolo-n"


class Curve(NamedTuple):
    """The validation of a run after each of its epochs."""

    minutes: list[float]  # since the first batch
    scores: list[float]  # mAP50-95


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a results.csv; Ultralytics pads its columns' names and adds (B) to the metrics."""
    with path.open(encoding="utf-8") as file:
        return [
            {key.strip().removesuffix("(B)"): value for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def run_train(data: Path, args: argparse.Namespace, project: Path) -> Curve:
    """Train with train.py."""
    options = {
        "--data": data,
        "--imgsz": args.imgsz,
        "--batch-size": args.batch_size,
        "--epochs": args.epochs,
        "--seed": args.seed,
        "--project": project,
    }
    pairs = [str(word) for option in options.items() for word in option]
    command = [sys.executable, str(ROOT / "train.py"), *pairs, "--noplots", *args.options]
    subprocess.run(command, check=True, capture_output=True)
    rows = read_rows(project / "exp" / "results.csv")
    seconds = itertools.accumulate(float(row["seconds"]) for row in rows)
    return Curve([s / 60 for s in seconds], [float(row["metrics/mAP50-95"]) for row in rows])


def run_ultralytics(data: Path, args: argparse.Namespace, project: Path, *options: str) -> Curve:
    """Train yolov8n with Ultralytics."""
    values = {
        "model": "yolov8n.yaml",
        "data": data,
        "imgsz": args.imgsz,
        "batch": args.batch_size,
        "epochs": args.peer_epochs,
        "seed": args.seed,
        "device": "cpu",
        "plots": False,
        "project": project,
        "name": "exp",
    }
    pairs = [f"{key}={value}" for key, value in values.items()]
    command = [str(args.peer / "yolo"), "detect", "train", *pairs, *options]
    subprocess.run(command, check=True, capture_output=True)
    rows = read_rows(project / "exp" / "results.csv")
    time = [float(row["time"]) / 60 for row in rows]  # cumulative
    return Curve(time, [float(row["metrics/mAP50-95"]) for row in rows])


def run_libreyolo(data: Path, args: argparse.Namespace, project: Path) -> Curve:
    """Train yolo9-t with LibreYOLO."""
    options = {
        "--model": "yolo9-t",
        "--data": data,
        "--imgsz": args.imgsz,
        "--batch": args.batch_size,
        "--epochs": args.peer_epochs,
        "--seed": args.seed,
        "--device": "cpu",
        "--eval-interval": 1,
        "--project": project,
    }
    pairs = [str(word) for option in options.items() for word in option]
    command = [str(args.libreyolo / "libreyolo"), "train", *pairs, "--no-pretrained"]
    subprocess.run(command, check=True, capture_output=True)
    rows = read_rows(project / "exp" / "results.csv")
    seconds = itertools.accumulate(float(row["time"]) for row in rows)
    return Curve([s / 60 for s in seconds], [float(row["metrics/mAP50-95"]) for row in rows])


def at_full_speed(curves: list[Curve]) -> list[Curve]:
    """Return the curves as if each epoch had taken as long as the fastest of all of them."""
    epochs = [pair for curve in curves for pair in itertools.pairwise([0.0, *curve.minutes])]
    fastest = min(end - start for start, end in epochs)
    return [
        Curve([fastest * (epoch + 1) for epoch in range(len(curve.scores))], curve.scores)
        for curve in curves
    ]


def first_reached(curve: Curve, score: float) -> float | None:
    """The minutes until mAP50-95 is at least `score`; None if it never is."""
    return next((m for m, s in zip(*curve, strict=True) if s >= score), None)


def describe(curve: Curve, name: str, peer: Curve) -> str:
    """One line: the peer's best, and how much sooner this repository had it."""
    best = max(peer.scores)
    peer_time, time = first_reached(peer, best), first_reached(curve, best)
    text = f"{name}: best {best:.3f} after {peer_time:.1f} of {peer.minutes[-1]:.1f} minutes; "
    if time is None:
        return text + f"this repository: never, its best is {max(curve.scores):.3f}"
    return text + (
        f"this repository: after {time:.2f} minutes, {peer_time / time:.1f} times sooner "
        f"({peer.minutes[-1] / time:.1f} times, against the whole run)"
    )


def draw(results: dict[str, dict[str, Curve]], path: Path) -> None:
    """Draw one plot per dataset: mAP50-95 of each trainer over minutes."""
    figure = Figure(figsize=(6 * len(results), 4), layout="constrained")
    plots = figure.subplots(1, len(results), squeeze=False, sharey=True)
    for axes, (data, curves) in zip(plots.flat, results.items(), strict=True):
        for name, curve in curves.items():
            axes.plot(*curve, marker=".", label=name)
        axes.set(title=data, xlabel="minutes", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    plots[0, 0].set_ylabel("mAP50-95")
    figure.savefig(path, dpi=100)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, nargs="+", required=True)
    p.add_argument("--peer", type=Path, help="bin directory with Ultralytics' yolo")
    p.add_argument("--libreyolo", type=Path, help="bin directory with libreyolo")
    p.add_argument("--busy", action="store_true", help="take a peer's fastest epoch for all")
    p.add_argument("--imgsz", type=int, default=320)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--peer-epochs", type=int, default=40)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--table", type=Path, help="CSV file for the curves")
    p.add_argument("--plot", type=Path, help="image file for the curves")
    p.add_argument("options", nargs="*", help="more options for train.py, after --")
    args = p.parse_args()
    trainers = {OURS: run_train}
    if args.peer:
        trainers["Ultralytics, yolov8n"] = run_ultralytics
        trainers["Ultralytics, yolov8n, nbs=16"] = lambda *a: run_ultralytics(*a, "nbs=16")
    if args.libreyolo:
        trainers["LibreYOLO, yolo9-t"] = run_libreyolo
    results: dict[str, dict[str, Curve]] = {}
    for path in args.data:
        name = path.resolve().parent.name
        curves = results[name] = {}
        for trainer, run in trainers.items():
            with tempfile.TemporaryDirectory() as project, copy_dataset(path) as data:
                curves[trainer] = run(data, args, Path(project))
            points = zip(*curves[trainer], strict=True)
            print(name, trainer, *(f"{m:.2f}:{s:.3f}" for m, s in points), flush=True)
        names = [*curves][1:]
        if args.busy:
            for _, same in itertools.groupby(names, lambda trainer: trainer.split(",")[0]):
                group = [*same]
                curves |= zip(group, at_full_speed([curves[t] for t in group]), strict=True)
        for trainer in names:
            ours = curves[OURS]
            print(f"{name}, {describe(ours, trainer, curves[trainer])}", flush=True)
    if args.table:
        with args.table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["data", "trainer", "minutes", "mAP50-95"])
            for name, curves in results.items():
                for trainer, curve in curves.items():
                    writer.writerows([name, trainer, *point] for point in zip(*curve, strict=True))
    if args.plot:
        draw(results, args.plot)


if __name__ == "__main__":
    main()
