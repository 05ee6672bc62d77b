"""What a checkpoint costs: ms to write the whole state of a run, as a share of an epoch and of the default interval.

`python benchmarks/checkpoint.py`. It is written beside a plain `torch.save` of the same state, which neither waits for the disk
nor keeps the last good file, and beside training steps on random pictures, whose time makes the epoch. Each figure is the median
of several rounds; in a round every candidate has its turn.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models import build_model
from options import DEFAULTS
from utils.checkpoint import save_checkpoint
from utils.device import prefers_bf16, select_device, set_deterministic
from utils.ema import EMA
from utils.optimizers import build_optimizer
from utils.run_dir import BEST_KEYS


class Run:
    """A model in training, with all that its checkpoint holds but numbers and names."""

    def __init__(
        self, name: str, optimizer: str, device: torch.device, batch_size: int, imgsz: int
    ) -> None:
        self.device, self.bf16 = device, prefers_bf16(device)
        self.model = build_model(name, 3).to(device, memory_format=torch.channels_last).train()
        hyp = SimpleNamespace(optimizer=optimizer, lr0=1e-3, momentum=0.9, weight_decay=0.01)
        self.optimizer = build_optimizer(
            self.model, hyp, torch.bfloat16 if self.bf16 else torch.float32
        )
        self.ema = EMA(self.model, 0.999)
        self.images = torch.randint(
            256, (batch_size, 3, imgsz, imgsz), dtype=torch.uint8, device=device
        )
        corners = torch.rand(batch_size, 10, 2) * imgsz / 2
        boxes = torch.cat((corners, corners + imgsz / 4), dim=-1)
        self.targets = [{"boxes": b, "labels": torch.arange(10) % 3} for b in boxes]

    def step(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.model(self.images, self.targets)
        sum(losses.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "average": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


def milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """Print a block for each model."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--models", nargs="+", default=["yolo-n", "yolo-l"], help="(yolo-n yolo-l)")
    p.add_argument(
        "--optimizer",
        choices=["muon", "adamw", "sgd"],
        default="muon",
        help="adamw has one tensor more a weight (muon)",
    )
    p.add_argument("--device", default="auto", help="(auto)")
    p.add_argument("--pictures", type=int, default=292, help="in an epoch (292, as in BCCD)")
    p.add_argument("--batch-size", type=int, default=16, help="(16)")
    p.add_argument("--imgsz", type=int, default=320, help="(320)")
    p.add_argument("--rounds", type=int, default=7, help="rounds to take the median of (7)")
    p.add_argument(
        "--folder", default=None, help="where to write (the system's folder for temporary files)"
    )
    args = p.parse_args()
    device = select_device(args.device)
    set_deterministic(device.type == "cpu")
    interval = DEFAULTS["save_every"] * 60
    print(
        f"torch {torch.__version__}, {device}; epochs of {args.pictures} pictures of {args.imgsz} px by {args.batch_size}"
    )
    for name in args.models:
        run = Run(name, args.optimizer, device, args.batch_size, args.imgsz)
        run.step()  # the optimizer's tensors come with its first step
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder)
            best = {key: value for key, value in run.state().items() if key in BEST_KEYS}
            calls = {
                "training step": run.step,
                "last.pt": lambda run=run, path=path: save_checkpoint(
                    run.state(), path / "last.pt"
                ),
                "best.pt": lambda best=best, path=path: save_checkpoint(best, path / "best.pt"),
                "plain torch.save of last.pt": lambda run=run, path=path: torch.save(
                    run.state(), path / "plain.pt"
                ),
            }
            rounds = [
                {what: milliseconds(call) for what, call in calls.items()}
                for _ in range(args.rounds)
            ]
            size = (path / "last.pt").stat().st_size / 1e6
        ms = {what: statistics.median(r[what] for r in rounds) for what in calls}
        epoch = ms["training step"] * -(-args.images // args.batch_size)
        last = ms["last.pt"]
        print(f"\n{name}, {args.optimizer}: last.pt has {size:.0f} MB")
        for what, value in ms.items():
            print(
                f"  {what:30}{value:9.1f} ms"
                + (f"   {value / last:.2f} of last.pt" if what.startswith("plain") else "")
            )
        print(f"  {'epoch, steps alone':30}{epoch:9.0f} ms")
        both = last + ms["best.pt"]
        print(
            f"  share of an epoch at whose end it is written: {last / epoch:.2%}; with best.pt {both / epoch:.2%}"
        )
        print(
            f"  share of the time between two within an epoch ({interval:.0f} s): {last / 1000 / interval:.3%}"
        )


if __name__ == "__main__":
    main()
