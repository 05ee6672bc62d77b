"""Pictures a second of whole training loops, ours beside Ultralytics', and how near ours is to its convolutions alone.

`python benchmarks/throughput.py --data DATA.yaml [--peer BIN]`, where BIN is the folder of programs of a virtual environment that
has Ultralytics. Both run as a user starts them, from the command line with their own defaults, validation and pictures off (ours
also with validation, for its share), and are read from the results.csv they write: the time of each epoch but the first and the
last. They take turns; medians and range.

Of our step it also says what its convolutions take when they do nothing else (forward and backward, bf16 where the machine has
it, every core): the limit of the network. And what share of an epoch the loop waits for its data.
"""

import argparse
import csv
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peer_data import copy_dataset
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.config import read_data_config
from data.dataset import TrainSet, collate
from data.formats import read_split
from data.sampler import EpochBatchSampler
from models import build_model
from utils.device import disable_malloc_trim, prefers_bf16
from utils.hyp import Hyp

ROOT = Path(__file__).resolve().parents[1]


def column(file: Path, name: str) -> list[float]:
    with file.open(encoding="utf-8") as text:
        return [
            float({key.strip(): value for key, value in row.items()}[name])
            for row in csv.DictReader(text)
        ]


def ours(data: Path, imgsz: int, args: argparse.Namespace, folder: Path, *more: str) -> list[float]:
    """Seconds of each epoch."""
    size = ["--imgsz", imgsz, "--batch-size", args.batch_size, "--epochs", args.epochs]
    command = [
        sys.executable,
        ROOT / "train.py",
        "--data",
        data,
        *size,
        "--noplots",
        "--project",
        folder,
        *more,
    ]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    return column(folder / "exp" / "results.csv", "seconds")[1:-1]


def peers(data: Path, imgsz: int, args: argparse.Namespace, folder: Path) -> list[float]:
    """Seconds of each epoch; its column counts from the run's start."""
    options = {"model": "yolov8n.yaml", "data": data, "imgsz": imgsz, "batch": args.batch_size, "epochs": args.epochs,
               "device": "cpu", "val": False, "plots": False, "save": False, "project": folder, "name": "peer"}  # fmt: skip
    command = [
        args.peer / "yolo",
        "detect",
        "train",
        *(f"{key}={value}" for key, value in options.items()),
    ]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    until = column(folder / "peer" / "results.csv", "time")
    return [after - before for before, after in itertools.pairwise(until[:-1])]


def convolutions(batch_size: int, imgsz: int, rounds: int = 5) -> float:
    """Seconds that yolo-n's convolutions take forward and backward, each alone, medians added up."""
    model = build_model("yolo-n", 3).to(memory_format=torch.channels_last).train()
    met: list[tuple[nn.Conv2d, torch.Size]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, _: met.append((module, inputs[0].shape))
        )
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    dtype = torch.bfloat16 if prefers_bf16(torch.device("cpu")) else torch.float32
    with torch.no_grad():
        model.head(model.neck(model.backbone(torch.zeros(batch_size, 3, imgsz, imgsz))))
    for hook in hooks:
        hook.remove()
    total = 0.0
    for module, shape in met:
        module.to(dtype)
        x = (
            torch.randn(shape)
            .to(dtype)
            .to(memory_format=torch.channels_last)
            .requires_grad_(shape[1] != 3)
        )
        gradient = torch.randn_like(module(x))
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            module(x).backward(gradient)
            seconds.append(time.perf_counter() - began)
        total += statistics.median(seconds)
    return total


def loading(data: Path, imgsz: int, batch_size: int) -> float:
    """Seconds that the default loop on the CPU, which loads its own data, takes for a batch of them."""
    samples = TrainSet(read_split(read_data_config(data), "train"), Hyp(), seed=0, mosaic_until=3)
    batches = EpochBatchSampler(len(samples), batch_size, (imgsz, imgsz), seed=0)
    loader = DataLoader(samples, batch_sampler=batches, collate_fn=collate)
    for batches.epoch in range(3):  # in the first they are read
        began = time.perf_counter()
        for _ in loader:
            pass
    return (time.perf_counter() - began) / len(batches)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--peer", type=Path, help="the bin folder that has Ultralytics' yolo")
    p.add_argument("--imgsz", type=int, nargs="+", default=[320, 640])
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    disable_malloc_trim()
    sides = {"this repo, yolo-n": lambda *a: ours(*a, "--noval"), "the same, validating": ours}
    if args.peer:
        sides["Ultralytics, yolov8n"] = peers
    if args.peer:
        subprocess.run([args.peer / "yolo", "version"], check=True)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} cores, batches of {args.batch_size}"
    )
    with copy_dataset(args.data) as data:
        pictures = len(read_split(read_data_config(data), "train"))
        for imgsz in args.imgsz:
            rates: dict[str, list[float]] = {name: [] for name in sides}
            limits = []
            for _ in range(args.rounds):
                for name, side in sides.items():
                    with tempfile.TemporaryDirectory() as folder:
                        rates[name] += [
                            pictures / seconds for seconds in side(data, imgsz, args, Path(folder))
                        ]
                limits.append(args.batch_size / convolutions(args.batch_size, imgsz))
            rates["our convolutions alone"] = limits
            for name, values in rates.items():
                print(
                    f"{imgsz} px  {name:<23} {statistics.median(values):6.1f} images/s ({min(values):.1f}-{max(values):.1f})"
                )
            rate, validating, *others, limit = [
                statistics.median(values) for values in rates.values()
            ]
            wait = loading(data, imgsz, args.batch_size) * rate / args.batch_size
            print(
                f"{imgsz} px  {rate / limit:.0%} of what its convolutions alone reach; waiting for data: {wait:.1%} of the time; "
                f"validation: {1 - validating / rate:.1%} of an epoch"
            )
            for other in others:
                print(f"{imgsz} px  ratio {rate / other:.2f}", flush=True)


if __name__ == "__main__":
    main()
