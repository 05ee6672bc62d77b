"""Seconds from the command to the first optimizer step, on the built-in data: `python benchmarks/start.py`.

Everything a plain run does before it is included: imports, reading the data, drawing the plan and the first batch, the first
checkpoint, the first batch itself. Beside it the bare import of torch and torchvision; medians of several runs, in turn.
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
SIDES = {
    "first optimizer step": FIRST_STEP,
    "import torch, torchvision": "import torch, torchvision",
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    sys.path.insert(0, str(ROOT))
    from data.config import read_data_config
    from data.shapes import make_builtin

    make_builtin(read_data_config(ROOT / "data" / "shapes.yaml"))
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for name, code in SIDES.items():
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", code, ROOT, folder],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                seconds[name].append(time.perf_counter() - began)
    for name, values in seconds.items():
        print(
            f"{name:<26} {statistics.median(values):5.2f} s   ({', '.join(f'{value:.2f}' for value in values)})"
        )


if __name__ == "__main__":
    main()
