"""Training samples a second from one loader process, beside Ultralytics' loader: mosaic, scale, shift, colour and flip on.

`python benchmarks/data.py --data DATA.yaml [--peer PYTHON]`, where PYTHON is the interpreter of a virtual environment that has
Ultralytics. Each side runs in a process of its own and hands over whole batches; they take turns. The first epoch, in which
worker processes start and files are first read, stands apart; of the later ones the median.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from peer_data import copied

ROOT = Path(__file__).resolve().parents[1]
OURS = """
import json, sys, time
from pathlib import Path
root, data, imgsz, batch, epochs, folder = sys.argv[1:]
sys.path.insert(0, root)
from torch.utils.data import DataLoader
from data.dataset import TrainSet, collate
from data.config import read_data_config
from data.formats import read_split
from data.sampler import EpochBatchSampler
from utils.hyp import Hyp
split = read_split(read_data_config(Path(data)), "train")
samples = TrainSet(split, Hyp(), seed=0, mosaic_until=int(epochs))
batches = EpochBatchSampler(len(samples), int(batch), (int(imgsz), int(imgsz)), seed=0)
loader = DataLoader(samples, batch_sampler=batches, num_workers=1, persistent_workers=True, collate_fn=collate)
rates = []
for batches.epoch in range(int(epochs)):
    began = time.perf_counter()
    seen = sum(len(images) for images, _ in loader)
    rates.append(seen / (time.perf_counter() - began))
print(json.dumps(["this repo", rates]))
"""
PEER = """
import json, os, shutil, sys, time
root, data, imgsz, batch, epochs, folder = sys.argv[1:]
import ultralytics
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
info = check_det_dataset(data)
settings = get_cfg(overrides={"imgsz": int(imgsz), "task": "detect", "mode": "train"})
samples = build_yolo_dataset(settings, info["train"], int(batch), info, mode="train", rect=False, stride=32)
loader = build_dataloader(samples, int(batch), workers=1, shuffle=True, rank=-1)
rates = []
for epoch in range(int(epochs)):
    began = time.perf_counter()
    seen = sum(len(batch["img"]) for batch in loader)
    rates.append(seen / (time.perf_counter() - began))
print("\\n" + json.dumps(["Ultralytics " + ultralytics.__version__, rates]))
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--peer", type=Path, help="the Python that has Ultralytics")
    p.add_argument("--imgsz", type=int, nargs="+", default=[320, 640])
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    with copied(args.data) as data:
        for imgsz in args.imgsz:
            first: dict[str, list[float]] = {}
            later: dict[str, list[float]] = {}
            for _ in range(args.rounds):
                for python, code in [
                    (sys.executable, OURS),
                    *([(args.peer, PEER)] if args.peer else []),
                ]:
                    command = [
                        python,
                        "-W",
                        "ignore",
                        "-c",
                        code,
                        ROOT,
                        data,
                        imgsz,
                        args.batch_size,
                        args.epochs,
                        data.parent,
                    ]
                    done = subprocess.run(
                        [*map(str, command)], capture_output=True, text=True, check=True
                    )
                    name, rates = json.loads(done.stdout.splitlines()[-1])
                    first.setdefault(name, []).append(rates[0])
                    later.setdefault(name, []).extend(rates[1:])
            for name, rates in later.items():
                print(f"{imgsz} px  {name:<20} {statistics.median(rates):5.0f} samples/s ({min(rates):.0f} to {max(rates):.0f})"
                      f"   first epoch {statistics.median(first[name]):5.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
