"""Does a picture cost the same in an epoch of 300 as of 30,000, and does a run of 50 epochs hold no more than one of two?

`python benchmarks/growth.py --data DATA.yaml --plot growth.png` trains on lists that name the pictures again and again, and looks
from outside, epoch by epoch, at what the run holds: memory (of all its processes, shared pages counted once), open files and
processes, of which none may be left at the end. So that 30,000 pictures take minutes, they are made small first, in proportion to
--imgsz: 160 pixels long for samples of 64, as 640 are for 256.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from peer_data import copy_dataset
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def held_by(root: int) -> tuple[float, int, list[int]]:
    """What the process `root` and its children hold, in 10^6 bytes, as the kernel shares it out among them; the files that they
    have open; and who they are."""
    total, files, seen, todo = 0, 0, [], [root]
    while todo:
        process = Path("/proc") / str(todo.pop())
        try:
            todo += map(int, (process / "task" / process.name / "children").read_text().split())
            rows = dict(
                line.split(":") for line in (process / "smaps_rollup").read_text().splitlines()[1:]
            )
            total += int(rows["Pss"].split()[0]) * 1024
            files += len([*(process / "fd").iterdir()])
            seen.append(int(process.name))
        except (OSError, KeyError, ProcessLookupError):
            pass  # it has ended meanwhile
    return total / 1e6, files, seen


def train(
    data: Path, epochs: int, args: argparse.Namespace
) -> tuple[list[float], list[tuple[float, int, list[int]]]]:
    """Seconds of each epoch, and what `held_by` says at its end."""
    with tempfile.TemporaryDirectory() as folder:
        size = [
            "--imgsz",
            args.imgsz,
            "--batch-size",
            args.batch_size,
            "--epochs",
            epochs,
            "--workers",
            args.workers,
        ]
        command = [
            sys.executable,
            ROOT / "train.py",
            "--data",
            data,
            *size,
            "--noval",
            "--noplots",
            "--save-every",
            0,
        ]
        with subprocess.Popen(
            [*map(str, command), "--project", folder], stdout=subprocess.PIPE, text=True
        ) as process:
            held = [held_by(process.pid) for line in process.stdout if line.startswith("epoch ")]
        if process.returncode:
            raise SystemExit(f"train.py ended with {process.returncode}")
        if left := [number for number in held[-1][2] if (Path("/proc") / str(number)).exists()]:
            raise SystemExit(f"train.py has left processes behind: {left}")
        with (Path(folder) / "exp" / "results.csv").open(encoding="utf-8") as file:
            return [float(row["seconds"]) for row in csv.DictReader(file)], held


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--pictures", type=int, nargs="+", default=[300, 1000, 3000, 10_000, 30_000])
    p.add_argument(
        "--epochs", type=int, default=50, help="of the smallest, whose memory is watched"
    )
    p.add_argument("--imgsz", type=int, default=64)
    p.add_argument(
        "--picture", type=int, default=160, help="longer side of the pictures that are trained on"
    )
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--workers", type=int, default=0)
    p.add_argument("--plot", type=Path)
    args = p.parse_args()
    rates, began = [], time.perf_counter()
    with copy_dataset(args.data) as data:
        config = yaml.safe_load(data.read_text())
        files = sorted(str(file) for file in (Path(config["path"]) / config["train"]).iterdir())
        for file in files:
            with Image.open(file) as picture:
                picture.thumbnail((args.picture, args.picture))
                picture.save(file)
        for count in args.images:
            (data.parent / "list.txt").write_text(
                "\n".join((files * (count // len(files) + 1))[:count])
            )
            again = data.parent / f"{count}.yaml"
            again.write_text(yaml.safe_dump(config | {"train": str(data.parent / "list.txt")}))
            epochs = args.epochs if count == args.images[0] else max(2, min(5, 10_000 // count))
            seconds, held = train(again, epochs, args)
            later = sorted(seconds[1:])
            rates.append(1000 * later[len(later) // 2] / count)
            print(
                f"{count:6} pictures: {rates[-1]:6.2f} ms a picture (median of {len(later)} epochs after the first)"
            )
            for epoch in sorted({1, epochs // 2, epochs - 1, epochs}):
                megabytes, files, processes = held[epoch - 1]
                print(
                    f"       epoch {epoch}: {megabytes:.0f} MB, {files} open files, {len(processes)} processes",
                    flush=True,
                )
            if count == args.images[0]:
                memory = [megabytes for megabytes, *_ in held]
    print(f"{time.perf_counter() - began:.0f} s in all")
    if args.plot:
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.semilogx(args.images, rates, marker="o")
        left.set(xlabel="pictures in an epoch", ylabel="ms a picture", ylim=(0, 1.3 * max(rates)))
        right.plot(range(1, len(memory) + 1), memory)
        right.set(
            xlabel=f"epochs of {args.pictures[0]} pictures",
            ylabel="memory, MB",
            ylim=(0, 1.3 * max(memory)),
        )
        for axes in (left, right):
            axes.grid(alpha=0.3)
        figure.savefig(args.plot, dpi=100)


if __name__ == "__main__":
    main()
