"""Measures training samples per second from one DataLoader worker, compared with Ultralytics.

`python benchmarks/data.py --data DATA.yaml [--peer PYTHON]`, where PYTHON is the interpreter of a
virtual environment with Ultralytics. Both augment with mosaic, scale, translation, color and
flips, collate whole batches, and run in turns, each in a process of its own. The first epoch, in
which workers start and files are first read, is reported separately from the median of the others.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from peer_data import copy_dataset

ROOT = Path(__file__).resolve().parents[1]
THIS_REPO = """
import json, sys, time
from pathlib import Path
root, data, imgsz, batch_size, epochs = sys.argv[1:]
sys.path.insert(0, root)
from torch.utils.data import DataLoader
from data.config import read_data_config
from data.dataset import TrainSet, collate
from data.formats import read_split
from data.sampler import EpochBatchSampler
from utils.hyp import Hyp
annotations = read_split(read_data_config(Path(data)), "train")
train_set = TrainSet(annotations, Hyp(), seed=0, mosaic_until=int(epochs))
batches = EpochBatchSampler(len(train_set), int(batch_size), (int(imgsz), int(imgsz)), seed=0)
loader = DataLoader(
    train_set, batch_sampler=batches, num_workers=1, persistent_workers=True, collate_fn=collate
)
rates = []
for batches.epoch in range(int(epochs)):
    start = time.perf_counter()
    num_samples = sum(len(images) for images, _ in loader)
    rates.append(num_samples / (time.perf_counter() - start))
print(json.dumps(["this repo", rates]))
"""
PEER = """
import json, sys, time
root, data, imgsz, batch_size, epochs = sys.argv[1:]
import ultralytics
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
info = check_det_dataset(data)
cfg = get_cfg(overrides={"imgsz": int(imgsz), "task": "detect", "mode": "train"})
dataset = build_yolo_dataset(
    cfg, info["train"], int(batch_size), info, mode="train", rect=False, stride=32
)
loader = build_dataloader(dataset, int(batch_size), workers=1, shuffle=True, rank=-1)
rates = []
for epoch in range(int(epochs)):
    start = time.perf_counter()
    num_samples = sum(len(batch["img"]) for batch in loader)
    rates.append(num_samples / (time.perf_counter() - start))
print("\\n" + json.dumps(["Ultralytics " + ultralytics.__version__, rates]))
"""


def measure(python: str | Path, code: str, *arguments: object) -> tuple[str, list[float]]:
    """Run `code` in a new process; return its name and the samples per second of each epoch."""
    command = [python, "-W", "ignore", "-c", code, ROOT, *arguments]
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True
    )
    name, rates = json.loads(result.stdout.splitlines()[-1])
    return name, rates


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--peer", type=Path, help="Python interpreter that has Ultralytics")
    p.add_argument("--imgsz", type=int, nargs="+", default=[320, 640])
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    programs = [(sys.executable, THIS_REPO)]
    if args.peer:
        programs.append((args.peer, PEER))
    with copy_dataset(args.data) as data:
        for imgsz in args.imgsz:
            first_epochs: dict[str, list[float]] = {}
            later_epochs: dict[str, list[float]] = {}
            for _ in range(args.rounds):
                for python, code in programs:
                    name, rates = measure(python, code, data, imgsz, args.batch_size, args.epochs)
                    first_epochs.setdefault(name, []).append(rates[0])
                    later_epochs.setdefault(name, []).extend(rates[1:])
            for name, rates in later_epochs.items():
                print(
                    f"{imgsz} px  {name:<20} {statistics.median(rates):5.0f} samples/s "
                    f"({min(rates):.0f} to {max(rates):.0f})   first epoch "
                    f"{statistics.median(first_epochs[name]):5.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
