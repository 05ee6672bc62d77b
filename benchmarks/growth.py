"""How time and memory grow with the dataset and with the number of epochs.

    python benchmarks/growth.py --data DATA.yaml --plot growth.png

An image should cost the same in an epoch of 300 as of 30,000, and a run of 50 epochs should use no
more memory than one of 2. Trains on lists that repeat the same images, and at each epoch observes
from outside what the run uses: memory (of all its processes, shared pages counted once), open files
and processes, none of which may be left at the end. So that 30,000 images take minutes, they are
first made small, in proportion to --imgsz: 160 pixels long for samples of 64, like 640 for 256.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml
from matplotlib.figure import Figure
from peer_data import copy_dataset
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


class Usage(NamedTuple):
    """What a process and its descendants use."""

    megabytes: float  # 10^6 bytes; a shared page counts in proportion to its users (PSS)
    open_files: int
    pids: list[int]


def usage(root_pid: int) -> Usage:
    """Return what the process `root_pid` and its descendants use."""
    num_bytes, open_files, pids, pending = 0, 0, [], [root_pid]
    while pending:
        process = Path("/proc") / str(pending.pop())
        try:
            children = (process / "task" / process.name / "children").read_text()
            pending += map(int, children.split())
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
            fields = dict(line.split(":") for line in lines)
            num_bytes += int(fields["Pss"].split()[0]) * 1024
            open_files += len([*(process / "fd").iterdir()])
            pids.append(int(process.name))
        except (OSError, KeyError, ProcessLookupError):
            pass  # the process has ended in the meantime
    return Usage(num_bytes / 1e6, open_files, pids)


def train(data: Path, epochs: int, args: argparse.Namespace) -> tuple[list[float], list[Usage]]:
    """Train for `epochs`, and return the seconds of each epoch and the usage at its end."""
    with tempfile.TemporaryDirectory() as project:
        options = {
            "--data": data,
            "--imgsz": args.imgsz,
            "--batch-size": args.batch_size,
            "--epochs": epochs,
            "--workers": args.workers,
            "--save-every": 0,
            "--project": project,
        }
        hyp = ROOT / "benchmarks" / "ablations" / "full_size.yaml"
        command = [sys.executable, ROOT / "train.py", "--noval", "--noplots", "--hyp", hyp]
        for flag, value in options.items():
            command += [flag, value]
        with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
            usages = [usage(process.pid) for line in process.stdout if line.startswith("epoch ")]
        if process.returncode:
            raise SystemExit(f"train.py exited with status {process.returncode}")
        orphans = [pid for pid in usages[-1].pids if (Path("/proc") / str(pid)).exists()]
        if orphans:
            raise SystemExit(f"train.py left processes running: {orphans}")
        with (Path(project) / "exp" / "results.csv").open(encoding="utf-8") as file:
            return [float(row["seconds"]) for row in csv.DictReader(file)], usages


def plot(
    path: Path, image_counts: list[int], ms_per_image: list[float], megabytes: list[float]
) -> None:
    """Draw time per image over the size of the dataset, and memory over the epochs, to `path`."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogx(image_counts, ms_per_image, marker="o")
    left.set(xlabel="images per epoch", ylabel="ms/image", ylim=(0, 1.3 * max(ms_per_image)))
    right.plot(range(1, len(megabytes) + 1), megabytes)
    right.set(
        xlabel=f"epochs of {image_counts[0]} images",
        ylabel="memory, MB",
        ylim=(0, 1.3 * max(megabytes)),
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Print time and usage for every size of the dataset, and plot them."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--images", type=int, nargs="+", default=[300, 1000, 3000, 10_000, 30_000])
    p.add_argument("--epochs", type=int, default=50, help="of the smallest dataset (%(default)s)")
    p.add_argument("--imgsz", type=int, default=64, help="(%(default)s)")
    p.add_argument(
        "--image-size", type=int, default=160, help="longer side of an image file (%(default)s)"
    )
    p.add_argument("--batch-size", type=int, default=64, help="(%(default)s)")
    p.add_argument("--workers", type=int, default=0, help="(%(default)s)")
    p.add_argument("--plot", type=Path)
    args = p.parse_args()
    ms_per_image: list[float] = []
    megabytes: list[float] = []
    start_time = time.perf_counter()
    with copy_dataset(args.data) as data:
        config = yaml.safe_load(data.read_text())
        files = sorted(str(file) for file in (Path(config["path"]) / config["train"]).iterdir())
        for file in files:
            with Image.open(file) as image:
                image.thumbnail((args.image_size, args.image_size))
                image.save(file)
        image_list = data.parent / "list.txt"
        for count in args.images:
            is_smallest = count == args.images[0]
            repeated = (files * (count // len(files) + 1))[:count]
            image_list.write_text("\n".join(repeated))
            repeated_data = data.parent / f"{count}.yaml"
            repeated_data.write_text(yaml.safe_dump(config | {"train": str(image_list)}))
            epochs = args.epochs if is_smallest else max(2, min(5, 10_000 // count))
            seconds, usages = train(repeated_data, epochs, args)
            later = sorted(seconds[1:])
            ms_per_image.append(1000 * later[len(later) // 2] / count)
            print(
                f"{count:6} images: {ms_per_image[-1]:6.2f} ms/image "
                f"(median of {len(later)} epochs after the first)"
            )
            for epoch in sorted({1, epochs // 2, epochs - 1, epochs}):
                at_end = usages[epoch - 1]
                print(
                    f"       epoch {epoch}: {at_end.megabytes:.0f} MB, "
                    f"{at_end.open_files} open files, {len(at_end.pids)} processes",
                    flush=True,
                )
            if is_smallest:
                megabytes = [at_end.megabytes for at_end in usages]
    print(f"{time.perf_counter() - start_time:.0f} s in total")
    if args.plot:
        plot(args.plot, args.images, ms_per_image, megabytes)


if __name__ == "__main__":
    main()
