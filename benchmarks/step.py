"""Profile a training step of yolo-n: the time of its parts, and of its operators.

`python benchmarks/step.py [--imgsz 320] [--batch-size 16]`: synthetic images with 13 boxes each,
the default hyp file, all cores. The precision is the one that train.py would choose here; `--amp
off` and `--amp bf16` show the cost of the other. Between the steps it measures the convolutions
alone, forward and backward, in that precision too, which are the limit of the network.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from throughput import time_convolutions

from models import build_model
from models.loss import detection_loss
from utils.amp import AMP, amp_dtype, autocast
from utils.ema import EMA
from utils.hyp import Hyp
from utils.memory import disable_malloc_trim
from utils.optimizers import build_optimizer

BOXES_PER_IMAGE = 13  # the average of the BCCD dataset
OPERATORS = {
    "convolution": "convolution",
    "batch_norm": "batch norm",
    "silu": "SiLU",
    "bmm": "Muon's matrix products",
    "cat": "concatenation",
}


def make_targets(batch_size: int, imgsz: int) -> list[dict[str, torch.Tensor]]:
    """Return random boxes and labels of 3 classes for a batch."""
    targets = []
    for _ in range(batch_size):
        center = torch.rand(BOXES_PER_IMAGE, 2) * imgsz
        half_size = torch.rand(BOXES_PER_IMAGE, 2) * imgsz / 10 + 5
        boxes = torch.cat((center - half_size, center + half_size), dim=1).clamp(0, imgsz)
        targets.append({"boxes": boxes, "labels": torch.randint(0, 3, (BOXES_PER_IMAGE,))})
    return targets


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--imgsz", type=int, default=320)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--steps", type=int, default=10, help="in a round (%(default)s)")
    p.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    p.add_argument("--amp", default="auto", choices=AMP)
    args = p.parse_args()
    disable_malloc_trim()
    torch.manual_seed(0)
    device, hyp = torch.device("cpu"), Hyp()
    dtype = amp_dtype(args.amp, device)
    model = build_model("yolo-n", 3).to(memory_format=torch.channels_last).train()
    optimizer, ema = build_optimizer(model, hyp), EMA(model, hyp.ema_decay)
    images = torch.rand(args.batch_size, 3, args.imgsz, args.imgsz).to(dtype)
    images = images.to(memory_format=torch.channels_last)
    targets = make_targets(args.batch_size, args.imgsz)
    loss_weights = {"box": hyp.box, "cls": hyp.cls, "dfl": hyp.dfl}

    def step() -> dict[str, float]:
        """Run one training step and return the seconds of each part."""
        seconds, start = {}, time.perf_counter()

        def mark(part: str) -> None:
            nonlocal start
            seconds[part] = time.perf_counter() - start
            start = time.perf_counter()

        with autocast(device, dtype):
            predictions = model.raw_predictions(images)
            mark("forward")
            losses = detection_loss(predictions, targets)
        loss = sum(value * loss_weights[name] for name, value in losses.items())
        mark("loss")
        loss.backward()
        mark("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), hyp.grad_clip)
        mark("clipping")
        optimizer.step()
        optimizer.zero_grad()
        mark("optimizer")
        ema.update(model)
        mark("EMA")
        return seconds

    for _ in range(3):
        step()
    steps, limits = [], []
    for _ in range(args.rounds):
        limits.append(1000 * time_convolutions(args.batch_size, args.imgsz, dtype))
        steps += [step() for _ in range(args.steps)]
    limit = statistics.median(limits)
    medians = {part: 1000 * statistics.median(s[part] for s in steps) for part in steps[0]}
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}, "
        f"{args.batch_size} x {args.imgsz} px"
    )
    print(
        "  ".join(f"{part} {ms:.1f}" for part, ms in medians.items()),
        f" total {sum(medians.values()):.1f} ms",
    )
    print(
        f"convolutions alone {limit:.1f} ms ({min(limits):.1f}-{max(limits):.1f}), "
        f"{limit / sum(medians.values()):.0%} of the step"
    )
    with profile() as profiler:
        for _ in range(5):
            step()
    cpu_time: Counter[str] = Counter()
    for event in profiler.key_averages():
        label = next((label for key, label in OPERATORS.items() if key in event.key), "other")
        cpu_time[label] += event.self_cpu_time_total
    total = cpu_time.total()
    print("  ".join(f"{label} {time_ / total:.0%}" for label, time_ in cpu_time.most_common()))


if __name__ == "__main__":
    main()
