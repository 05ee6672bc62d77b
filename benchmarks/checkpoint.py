"""The cost of a checkpoint: ms to write it, as a fraction of an epoch and of the save interval.

`python benchmarks/checkpoint.py`. It is compared with a plain `torch.save` of the same state, which
neither waits for the disk nor keeps the previous file, and with training steps on random images,
from which the time of an epoch is computed. Each number is the median over several rounds; every
round measures each candidate once.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models import build_model
from options import defaults
from utils.amp import amp_dtype, autocast
from utils.checkpoint import save_checkpoint
from utils.device import select_device, set_deterministic
from utils.ema import EMA
from utils.hyp import Hyp
from utils.optimizers import build_optimizer


class Run:
    """A model in training, with everything large that a checkpoint of it contains."""

    def __init__(
        self, name: str, optimizer: str, device: torch.device, batch_size: int, imgsz: int
    ) -> None:
        self.device, self.dtype = device, amp_dtype("auto", device)
        self.model = build_model(name, 3).to(device, memory_format=torch.channels_last).train()
        hyp = Hyp(optimizer=optimizer, lr0=1e-3, weight_decay=0.01)
        self.optimizer = build_optimizer(self.model, hyp)
        self.ema = EMA(self.model, 0.999)
        self.images = torch.randint(
            256, (batch_size, 3, imgsz, imgsz), dtype=torch.uint8, device=device
        )
        corners = torch.rand(batch_size, 10, 2) * imgsz / 2
        boxes = torch.cat((corners, corners + imgsz / 4), dim=-1)
        self.targets = [{"boxes": b, "labels": torch.arange(10) % 3} for b in boxes]

    def step(self) -> None:
        """Run one training step, and wait for it on CUDA."""
        self.launch_step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def launch_step(self) -> None:
        """Run one training step; on CUDA, do not wait for its end."""
        with autocast(self.device, self.dtype):
            losses = self.model(self.images, self.targets)
        sum(losses.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)

    def state(self) -> dict:
        """The tensors of last.pt."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def measure(run: Run, directory: Path, rounds: int) -> dict[str, float]:
    """Median milliseconds of a training step and of each way to write a checkpoint."""
    best = {"ema": run.state()["ema"]}
    calls: dict[str, Callable[[], object]] = {
        "training step": run.step,
        "last.pt": lambda: save_checkpoint(run.state(), directory / "last.pt"),
        "best.pt": lambda: save_checkpoint(best, directory / "best.pt"),
        "plain torch.save of last.pt": lambda: torch.save(run.state(), directory / "plain.pt"),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    return {name: statistics.median(values) for name, values in times.items()}


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
        help="adamw has one more tensor per weight (muon)",
    )
    p.add_argument("--device", default="auto", help="(auto)")
    p.add_argument("--images", type=int, default=292, help="images per epoch (292, as in BCCD)")
    p.add_argument("--batch-size", type=int, default=16, help="(16)")
    p.add_argument("--imgsz", type=int, default=320, help="(320)")
    p.add_argument("--rounds", type=int, default=7, help="rounds to take the median of (7)")
    p.add_argument(
        "--dir", default=None, help="directory to write to (the system's temporary directory)"
    )
    args = p.parse_args()
    device = select_device(args.device)
    set_deterministic(device.type == "cpu")
    interval = defaults()["save_every"] * 60
    print(
        f"torch {torch.__version__}, {device}; epochs of {args.images} images at {args.imgsz} px, "
        f"batch size {args.batch_size}"
    )
    for name in args.models:
        run = Run(name, args.optimizer, device, args.batch_size, args.imgsz)
        run.step()  # the first step allocates the optimizer's tensors
        with tempfile.TemporaryDirectory(dir=args.dir) as directory:
            ms = measure(run, Path(directory), args.rounds)
            size = (Path(directory) / "last.pt").stat().st_size / 1e6
        epoch = ms["training step"] * -(-args.images // args.batch_size)
        last = ms["last.pt"]
        both = last + ms["best.pt"]
        print(f"\n{name}, {args.optimizer}: last.pt has {size:.0f} MB")
        for what, value in ms.items():
            ratio = f"   {value / last:.2f} of last.pt" if what.startswith("plain") else ""
            print(f"  {what:30}{value:9.1f} ms{ratio}")
        print(f"  {'epoch, training steps only':30}{epoch:9.0f} ms")
        print(f"  fraction of an epoch: {last / epoch:.2%}; with best.pt {both / epoch:.2%}")
        print(f"  fraction of --save-every ({interval:.0f} s): {last / 1000 / interval:.3%}")


if __name__ == "__main__":
    main()
