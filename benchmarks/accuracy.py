"""mAP of hyp files over several seeds: mean, spread and wall time, one run after the other, or one on each core.

`python benchmarks/accuracy.py --data DATA.yaml --hyp hyp.yaml cosine.yaml --seeds 0 1 2 [--table OUT.csv] [--plot OUT.png]
[-- TRAIN'S OPTIONS]`.
`--jobs N` starts N runs at a time, each with one thread on a core of its own; accuracy is the same, wall time is not to be
quoted. Of each run it takes the best epoch, as `best.pt` does, and the last.

`--peer BIN`, the folder of programs of a virtual environment that has Ultralytics, trains its yolov8n as well, with its own
defaults at the same size and batch, for `--peer-epochs`: what epochs of ours fit into its seconds is then for `--epochs` to say.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from matplotlib.figure import Figure
from peer_data import copy_dataset

ROOT = Path(__file__).resolve().parents[1]
PEER = "Ultralytics yolov8n"


def run(
    command: list[object], results: Path, core: int | None
) -> tuple[float, float, float, float]:
    """mAP50-95 and mAP50 of the best epoch, mAP50-95 of the last, as `results` has them; seconds of the whole command."""
    environment = dict(os.environ)
    if core is not None:
        command = ["taskset", "-c", core, *command]
        environment["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL, env=environment)
    seconds = time.perf_counter() - began
    with results.open(encoding="utf-8") as file:
        found = [
            {key.strip().removesuffix("(B)"): value for key, value in row.items()}
            for row in csv.DictReader(file)
        ]
    rows = [
        (float(row["metrics/mAP50-95"]), float(row["metrics/mAP50"]))
        for row in found
        if row["metrics/mAP50-95"]
    ]
    return (*max(rows), rows[-1][0], seconds)


def draw(runs: dict[str, list[float]], path: Path) -> None:
    """A row for each hyp file: its runs' best mAP50-95, and their mean with the standard deviation."""
    figure = Figure(figsize=(8, 1 + 0.35 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(runs.values()):
        axes.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.5)
        spread = statistics.stdev(values) if len(values) > 1 else 0
        axes.errorbar(
            statistics.mean(values),
            row,
            xerr=spread,
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
        help="runs at a time, a core each (0: one that has every core)",
    )
    p.add_argument("--imgsz", type=int, default=320)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--peer", type=Path, help="the bin folder that has Ultralytics' yolo")
    p.add_argument("--peer-epochs", type=int, default=40)
    p.add_argument("--table", type=Path, help="a csv file for the single runs")
    p.add_argument("--plot", type=Path, help="a picture of the runs")
    p.add_argument("options", nargs="*", help="for train.py, after --")
    args = p.parse_args()
    hyps = [*args.hyp, *([PEER] if args.peer else [])]
    cores: Queue[int | None] = Queue()
    for core in range(args.jobs) if args.jobs else [None]:
        cores.put(core)

    def task(hyp: str, seed: int) -> tuple[str, int, tuple[float, ...]]:
        core = cores.get()
        try:
            with tempfile.TemporaryDirectory() as folder, copy_dataset(args.data) as data:
                if hyp == PEER:
                    command = [args.peer / "yolo", "detect", "train", "model=yolov8n.yaml", f"data={data}", f"imgsz={args.imgsz}",
                               f"batch={args.batch_size}", f"epochs={args.peer_epochs}", f"seed={seed}", "device=cpu",
                               "plots=False", f"project={folder}", "name=exp"]  # fmt: skip
                else:
                    command = [sys.executable, ROOT / "train.py", "--data", data, "--imgsz", args.imgsz,
                               "--batch-size", args.batch_size, "--epochs", args.epochs, "--seed", seed, "--hyp", hyp,
                               "--noplots", "--project", folder, *args.options]  # fmt: skip
                found = run(command, Path(folder) / "exp" / "results.csv", core)
        finally:
            cores.put(core)
        print(
            f"{hyp} seed {seed}: mAP50-95 {found[0]:.4f} (last {found[2]:.4f}), mAP50 {found[1]:.4f}, {found[3]:.0f} s",
            flush=True,
        )
        return hyp, seed, found

    with ThreadPoolExecutor(cores.qsize()) as pool:
        # Seed by seed, so that whatever the machine does meanwhile happens to every hyp file.
        results = list(
            pool.map(task, *zip(*[(hyp, seed) for seed in args.seeds for hyp in hyps], strict=True))
        )
    if args.table:
        with args.table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["hyp", "seed", "mAP50-95", "mAP50", "mAP50-95 of the last epoch", "seconds"]
            )
            writer.writerows([hyp, seed, *found] for hyp, seed, found in results)
    if args.plot:
        draw(
            {hyp: [found[0] for name, _, found in results if name == hyp] for hyp in hyps},
            args.plot,
        )
    print(f"\n{'hyp':<24} runs  mAP50-95 +- sd    last +- sd        mAP50 +- sd       seconds")
    for hyp in hyps:
        columns = zip(*[found for name, _, found in results if name == hyp], strict=True)
        best, best50, last, seconds = ([*column] for column in columns)
        shown = "   ".join(
            f"{statistics.mean(v):.4f} +- {statistics.stdev(v) if len(v) > 1 else 0:.4f}"
            for v in (best, last, best50)
        )
        print(f"{Path(hyp).name:<24} {len(best):4}  {shown}   {statistics.median(seconds):.0f}")


if __name__ == "__main__":
    main()
