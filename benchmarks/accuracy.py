"""mAP of hyp files over several seeds: mean, standard deviation and wall time.

`python benchmarks/accuracy.py --data DATA.yaml --hyp hyp.yaml cosine.yaml --seeds 0 1 2
[--table OUT.csv] [--plot OUT.png] [-- TRAIN'S OPTIONS]`.
Runs are sequential by default. `--jobs N` runs N at a time, each with one thread on its own core;
mAP is the same, but wall times are then not comparable. Reported are the best epoch of each run, as
in `best.pt`, and the last one; with `--without-ema`, also the last weights that the optimizer left,
without their average.

`--peer BIN`, the bin directory of a virtual environment with Ultralytics, also trains its yolov8n
with its own defaults at the same image and batch size for `--peer-epochs`. To compare at equal wall
time, set `--epochs` accordingly.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import torch
from matplotlib.figure import Figure
from peer_data import copy_dataset

ROOT = Path(__file__).resolve().parents[1]
PEER = "Ultralytics yolov8n"


def run(
    command: list[object], results: Path, core: int | None
) -> tuple[float, float, float, float]:
    """Run `command`, on one core if `core` is given, and read the results.csv that it writes.

    Returns mAP50-95 and mAP50 of the best epoch, mAP50-95 of the last epoch, and wall time in
    seconds.
    """
    environment = dict(os.environ)
    if core is not None:
        command = ["taskset", "-c", core, *command]
        environment["OMP_NUM_THREADS"] = "1"
    start = time.perf_counter()
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL, env=environment)
    seconds = time.perf_counter() - start
    with results.open(encoding="utf-8") as file:
        rows = [
            {key.strip().removesuffix("(B)"): value for key, value in row.items()}
            for row in csv.DictReader(file)
        ]
    scores = [
        (float(row["metrics/mAP50-95"]), float(row["metrics/mAP50"]))
        for row in rows
        if row["metrics/mAP50-95"]
    ]
    return (*max(scores), scores[-1][0], seconds)


def evaluate_last_weights(run_dir: Path) -> float:
    """Return mAP50-95 of the last weights of a run, not of their EMA."""
    checkpoint = torch.load(run_dir / "weights" / "last.pt", weights_only=True)
    checkpoint["ema"]["model"] = checkpoint["model"]
    weights = run_dir / "weights" / "without_ema.pt"
    torch.save(checkpoint, weights)
    command = [sys.executable, ROOT / "val.py", "--weights", weights, "--noplots"]
    command += ["--project", run_dir.parent, "--name", "without_ema"]
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    text = (run_dir.parent / "without_ema" / "metrics.json").read_text(encoding="utf-8")
    return json.loads(text)["all"]["mAP50-95"]


def train_command(
    hyp: str, seed: int, data: Path, project: Path, args: argparse.Namespace
) -> list[object]:
    """The command that trains with `hyp`, or Ultralytics if `hyp` is PEER, into `project`/exp."""
    if hyp == PEER:
        options = {
            "model": "yolov8n.yaml",
            "data": data,
            "imgsz": args.imgsz,
            "batch": args.batch_size,
            "epochs": args.peer_epochs,
            "seed": seed,
            "device": "cpu",
            "plots": False,
            "project": project,
            "name": "exp",
        }
        pairs = [f"{key}={value}" for key, value in options.items()]
        return [args.peer / "yolo", "detect", "train", *pairs]
    options = {
        "--data": data,
        "--imgsz": args.imgsz,
        "--batch-size": args.batch_size,
        "--epochs": args.epochs,
        "--seed": seed,
        "--hyp": hyp,
        "--project": project,
    }
    pairs = [word for option in options.items() for word in option]
    return [sys.executable, ROOT / "train.py", *pairs, "--noplots", *args.options]


def draw(runs: dict[str, list[float]], path: Path) -> None:
    """Draw one row per hyp file: best mAP50-95 of each run, mean and standard deviation."""
    figure = Figure(figsize=(8, 1 + 0.35 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(runs.values()):
        axes.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.5)
        axes.errorbar(
            statistics.mean(values),
            row,
            xerr=standard_deviation(values),
            fmt="|",
            color="black",
            capsize=4,
            markersize=14,
        )
    axes.set(
        xlabel="mAP50-95 of the best validated epoch: each run, mean and standard deviation",
        yticks=range(len(runs)),
    )
    axes.set_yticklabels([Path(name).stem for name in runs])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=100)


def standard_deviation(values: list[float]) -> float:
    """The sample standard deviation, or 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--hyp", nargs="+", default=["hyp.yaml"])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument(
        "--jobs",
        type=int,
        default=0,
        help="runs at a time, one core each (0: one run at a time on all cores)",
    )
    p.add_argument("--imgsz", type=int, default=320)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--peer", type=Path, help="bin directory with Ultralytics' yolo")
    p.add_argument("--peer-epochs", type=int, default=40)
    p.add_argument(
        "--without-ema", action="store_true", help="also evaluate the last weights without the EMA"
    )
    p.add_argument("--table", type=Path, help="CSV file for the results of each run")
    p.add_argument("--plot", type=Path, help="image file for a plot of the runs")
    p.add_argument("options", nargs="*", help="more options for train.py, after --")
    args = p.parse_args()
    hyps = [*args.hyp, *([PEER] if args.peer else [])]
    cores: Queue[int | None] = Queue()
    for core in range(args.jobs) if args.jobs else [None]:
        cores.put(core)

    def task(hyp: str, seed: int) -> tuple[str, int, tuple[float, ...]]:
        core = cores.get()
        try:
            with tempfile.TemporaryDirectory() as project, copy_dataset(args.data) as data:
                command = train_command(hyp, seed, data, Path(project), args)
                run_dir = Path(project) / "exp"
                best, best50, last, seconds = run(command, run_dir / "results.csv", core)
                has_ema = args.without_ema and hyp != PEER
                raw = evaluate_last_weights(run_dir) if has_ema else math.nan
        finally:
            cores.put(core)
        without_ema = f", without EMA {raw:.4f}" if has_ema else ""
        print(
            f"{hyp} seed {seed}: mAP50-95 {best:.4f} (last {last:.4f}), mAP50 {best50:.4f}, "
            f"{seconds:.0f} s{without_ema}",
            flush=True,
        )
        return hyp, seed, (best, best50, last, raw, seconds)

    with ThreadPoolExecutor(cores.qsize()) as pool:
        # All hyp files of a seed run close together, so changes in machine speed affect all alike.
        pairs = [(hyp, seed) for seed in args.seeds for hyp in hyps]
        results = list(pool.map(task, *zip(*pairs, strict=True)))
    if args.table:
        with args.table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["hyp", "seed", "mAP50-95", "mAP50", "last mAP50-95", "without EMA", "seconds"]
            )
            writer.writerows([hyp, seed, *result] for hyp, seed, result in results)
    by_hyp = {hyp: [result for name, _, result in results if name == hyp] for hyp in hyps}
    if args.plot:
        draw({hyp: [best for best, *_ in runs] for hyp, runs in by_hyp.items()}, args.plot)
    names = ["mAP50-95", "mAP50", "last", *(["without EMA"] if args.without_ema else [])]
    print(f"\n{'hyp':<24} runs  {'   '.join(f'{name:<16}' for name in names)}   seconds")
    for hyp, runs in by_hyp.items():
        *columns, seconds = ([*column] for column in zip(*runs, strict=True))
        cells = "   ".join(
            f"{statistics.mean(values):.4f} +- {standard_deviation(values):.4f}"
            for values in columns[: len(names)]
        )
        print(f"{Path(hyp).name:<24} {len(runs):4}  {cells}   {statistics.median(seconds):.0f}")


if __name__ == "__main__":
    main()
