"""Training throughput in images/s: this repository, Ultralytics, and the limit of the convolutions.

`python benchmarks/throughput.py --data DATA.yaml [--peer BIN]`, where BIN is the bin directory of a
virtual environment with Ultralytics. Both run from the command line with their own defaults,
validation and plots off (this repository also with validation, to measure its cost). The times are
those of the results.csv they write, without the first and the last epoch. The candidates run
alternately; printed are median and range.

For this repository it also measures the time of the convolutions alone (forward and backward, bf16
where the hardware benefits, all cores), which is the limit of the network, and the fraction of the
time that the loop waits for data.
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
from utils.amp import amp_dtype
from utils.hyp import Hyp
from utils.memory import disable_malloc_trim

ROOT = Path(__file__).resolve().parents[1]
FULL_SIZE = ROOT / "benchmarks" / "ablations" / "full_size.yaml"


def read_column(path: Path, name: str) -> list[float]:
    """One column of a results.csv."""
    with path.open(encoding="utf-8") as file:
        return [
            float({key.strip(): value for key, value in row.items()}[name])
            for row in csv.DictReader(file)
        ]


def run_train(
    data: Path, imgsz: int, args: argparse.Namespace, project: Path, *options: str
) -> list[float]:
    """Train with train.py, and return the seconds of each epoch but the first and the last."""
    size = ["--imgsz", imgsz, "--batch-size", args.batch_size, "--epochs", args.epochs]
    command = [sys.executable, ROOT / "train.py", "--data", data, *size, "--noplots"]
    command += ["--hyp", FULL_SIZE, "--project", project, *options]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    return read_column(project / "exp" / "results.csv", "seconds")[1:-1]


def run_ultralytics(data: Path, imgsz: int, args: argparse.Namespace, project: Path) -> list[float]:
    """Train with Ultralytics, and return the seconds of each epoch but the first and the last."""
    options = {
        "model": "yolov8n.yaml",
        "data": data,
        "imgsz": imgsz,
        "batch": args.batch_size,
        "epochs": args.epochs,
        "device": "cpu",
        "val": False,
        "plots": False,
        "save": False,
        "project": project,
        "name": "peer",
    }
    command = [args.peer / "yolo", "detect", "train"]
    command += [f"{key}={value}" for key, value in options.items()]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    elapsed = read_column(project / "peer" / "results.csv", "time")  # since the start of the run
    return [after - before for before, after in itertools.pairwise(elapsed[:-1])]


def time_convolutions(batch_size: int, imgsz: int, dtype: torch.dtype, rounds: int = 5) -> float:
    """Seconds of yolo-n's convolutions, forward and backward: the sum of each one's median."""
    model = build_model("yolo-n", 3).to(memory_format=torch.channels_last).train()
    calls: list[tuple[nn.Conv2d, torch.Size]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, _: calls.append((module, inputs[0].shape))
        )
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model.head(model.neck(model.backbone(torch.zeros(batch_size, 3, imgsz, imgsz))))
    for hook in hooks:
        hook.remove()
    total = 0.0
    for module, shape in calls:
        module.to(dtype)
        x = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
        x.requires_grad_(shape[1] != 3)  # the images need no gradient
        gradient = torch.randn_like(module(x))
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            module(x).backward(gradient)
            seconds.append(time.perf_counter() - start)
        total += statistics.median(seconds)
    return total


def time_loading(data: Path, imgsz: int, batch_size: int) -> float:
    """Seconds to load a batch in the main process, as train.py does by default on the CPU."""
    samples = TrainSet(read_split(read_data_config(data), "train"), Hyp(), seed=0, mosaic_until=3)
    batches = EpochBatchSampler(len(samples), batch_size, (imgsz, imgsz), seed=0)
    loader = DataLoader(samples, batch_sampler=batches, collate_fn=collate)
    for batches.epoch in range(3):  # only the last is measured: the first fills the image cache
        start = time.perf_counter()
        for _ in loader:
            pass
    return (time.perf_counter() - start) / len(batches)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--peer", type=Path, help="bin directory with Ultralytics' yolo")
    p.add_argument("--imgsz", type=int, nargs="+", default=[320, 640])
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    disable_malloc_trim()
    dtype = amp_dtype("auto", torch.device("cpu"))
    trainers = {
        "this repo, yolo-n": lambda *a: run_train(*a, "--noval"),
        "the same, validating": run_train,
    }
    if args.peer:
        trainers["Ultralytics, yolov8n"] = run_ultralytics
        subprocess.run([args.peer / "yolo", "version"], check=True)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} cores, batch size {args.batch_size}"
    )
    with copy_dataset(args.data) as data:
        num_images = len(read_split(read_data_config(data), "train"))
        for imgsz in args.imgsz:
            rates: dict[str, list[float]] = {name: [] for name in trainers}
            limits = []
            for _ in range(args.rounds):
                for name, trainer in trainers.items():
                    with tempfile.TemporaryDirectory() as project:
                        epochs = trainer(data, imgsz, args, Path(project))
                    rates[name] += [num_images / seconds for seconds in epochs]
                seconds = time_convolutions(args.batch_size, imgsz, dtype)
                limits.append(args.batch_size / seconds)
            rates["convolutions alone"] = limits
            for name, values in rates.items():
                print(
                    f"{imgsz} px  {name:<23} {statistics.median(values):6.1f} images/s "
                    f"({min(values):.1f}-{max(values):.1f})"
                )
            medians = [statistics.median(values) for values in rates.values()]
            rate, validating, *others, limit = medians
            wait = time_loading(data, imgsz, args.batch_size) * rate / args.batch_size
            print(
                f"{imgsz} px  {rate / limit:.0%} of the convolutions-only limit; "
                f"waiting for data: {wait:.1%} of the time; "
                f"validation: {1 - validating / rate:.1%} of an epoch"
            )
            for other in others:
                print(f"{imgsz} px  ratio {rate / other:.2f}", flush=True)


if __name__ == "__main__":
    main()
