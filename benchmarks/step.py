"""What a training step of yolo-n spends its time on: its parts by the clock, and its operators by torch's profiler.

`python benchmarks/step.py [--imgsz 320] [--batch-size 16]`: synthetic pictures, 13 boxes each, the default hyp file, every core.
It computes with what train.py would take here; `--dtype float32` and `--dtype bfloat16` show what the other costs.
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
from models import build_model
from models.loss import detection_loss
from utils.device import prefers_bf16
from utils.ema import EMA
from utils.hyp import Hyp
from utils.memory import disable_malloc_trim
from utils.optimizers import build_optimizer

BOXES = 13  # as many as BCCD has in a picture
KINDS = {
    "convolution": "convolution",
    "batch_norm": "batch norm",
    "silu": "SiLU",
    "bmm": "Muon's products",
    "cat": "concatenation",
}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--imgsz", type=int, default=320)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--dtype", choices=("float32", "bfloat16"))
    args = p.parse_args()
    disable_malloc_trim()
    torch.manual_seed(0)
    device, hyp = torch.device("cpu"), Hyp()
    bf16 = prefers_bf16(device) if args.dtype is None else args.dtype == "bfloat16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = build_model("yolo-n", 3).to(memory_format=torch.channels_last).train()
    optimizer, ema = build_optimizer(model, hyp, dtype), EMA(model, hyp.ema_decay)
    images = (
        torch.rand(args.batch_size, 3, args.imgsz, args.imgsz)
        .to(dtype)
        .to(memory_format=torch.channels_last)
    )
    targets = []
    for _ in range(args.batch_size):
        middle, half = torch.rand(BOXES, 2) * args.imgsz, torch.rand(BOXES, 2) * args.imgsz / 10 + 5
        boxes = torch.cat((middle - half, middle + half), dim=1).clamp(0, args.imgsz)
        targets.append({"boxes": boxes, "labels": torch.randint(0, 3, (BOXES,))})

    def step() -> dict[str, float]:
        """Seconds of each part."""
        parts, began = {}, time.perf_counter()

        def until_now(name: str) -> None:
            nonlocal began
            parts[name] = time.perf_counter() - began
            began = time.perf_counter()

        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predictions = model.head(model.neck(model.backbone(images)))
            until_now("forward")
            loss = sum(detection_loss(predictions, targets).values())
        until_now("loss")
        loss.backward()
        until_now("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), hyp.grad_clip)
        until_now("clipping")
        optimizer.step()
        optimizer.zero_grad()
        until_now("optimizer")
        ema.update(model)
        until_now("average")
        return parts

    for _ in range(3):
        step()
    steps = [step() for _ in range(args.steps)]
    medians = {name: 1000 * statistics.median(parts[name] for parts in steps) for name in steps[0]}
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}, {args.batch_size} x {args.imgsz} px"
    )
    print(
        "  ".join(f"{name} {ms:.1f}" for name, ms in medians.items()),
        f" all {sum(medians.values()):.1f} ms",
    )
    with profile() as profiler:
        for _ in range(5):
            step()
    shares: Counter[str] = Counter()
    for event in profiler.key_averages():
        kind = next((kind for part, kind in KINDS.items() if part in event.key), "the rest")
        shares[kind] += event.self_cpu_time_total
    print("  ".join(f"{kind} {share / shares.total():.0%}" for kind, share in shares.most_common()))


if __name__ == "__main__":
    main()
