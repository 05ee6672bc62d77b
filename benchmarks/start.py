"""Seconds from the command to the first optimizer step, on the built-in dataset.

    python benchmarks/start.py

Includes everything that a plain run does before it: imports, reading the data, plotting the
learning rate and the first batch, the first checkpoint, the first batch itself. Compared with the
bare import of torch and torchvision; both take turns, medians.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
sys.path.insert(0, sys.argv[1])
import train
sys.exit(train.main(["--project", sys.argv[2]]) or 1)
"""
PROGRAMS = {
    "first optimizer step": FIRST_STEP,
    "import torch, torchvision": "import torch, torchvision",
}


def main() -> None:
    """Print a line for each of `PROGRAMS`."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    args = p.parse_args()
    sys.path.insert(0, str(ROOT))
    from data.config import read_data_config
    from data.shapes import make_builtin

    make_builtin(read_data_config(ROOT / "data" / "shapes.yaml"))  # or the first start draws it
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as project:
        for _ in range(args.rounds):
            for name, program in PROGRAMS.items():
                start_time = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", program, ROOT, project],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                seconds[name].append(time.perf_counter() - start_time)
    for name, values in seconds.items():
        rounds = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name:<26} {statistics.median(values):5.2f} s   ({rounds})")


if __name__ == "__main__":
    main()
