"""Training throughput in images/s next to other busy processes, by threads and how they wait.

    python benchmarks/contention.py --data DATA.yaml [--peer BIN]

BIN is the bin directory of a virtual environment with Ultralytics. Each setting trains in a process
of its own, with the whole loop as train.py has it. They take turns of some seconds, in which the
others are stopped, next to 0, 1, 2 and 4 processes that do nothing but compute. "automatic", which
decides when it starts, is started anew for each number of them, once they have computed for a
minute. Printed are the median over the turns and each turn. The first batch that ends in a turn
does not count.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peer_data import copy_dataset

ROOT = Path(__file__).resolve().parents[1]

# `tick` writes a line with the time at the end of a batch, and the number of threads.
COUNT = """
import os, sys, time
path, root, *arguments = sys.argv[1:]
file = open(path, "w", buffering=1)
def tick(*_):
    print(time.monotonic(), sys.modules["torch"].get_num_threads(), file=file)
"""
OURS = """
sys.path.insert(0, root)
from utils.cpus import limit_spinning
if os.environ.get("GOMP_SPINCOUNT") == "":
    del os.environ["GOMP_SPINCOUNT"]
else:
    limit_spinning()
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(tick)
import train
train.main(arguments)
"""
PEER = """
from ultralytics import YOLO
model = YOLO("yolov8n.yaml")
model.add_callback("on_train_batch_end", tick)
data, imgsz, batch_size, project = arguments
model.train(data=data, imgsz=int(imgsz), batch=int(batch_size), device="cpu", val=False,
            plots=False, save=False, project=project, epochs=1000)
"""
THREADS = str(len(os.sched_getaffinity(0)))
# The environment of each setting. An empty GOMP_SPINCOUNT is libgomp's own.
SETTINGS = {
    "all threads, libgomp's spinning": {"GOMP_SPINCOUNT": "", "OMP_NUM_THREADS": THREADS},
    "all threads, GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000", "OMP_NUM_THREADS": THREADS},
    "all threads, GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": THREADS},
    "all threads, GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": THREADS},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


class Training:
    """A process that trains; it is stopped whenever it does not have its turn."""

    def __init__(self, setting: str, args: argparse.Namespace, data: Path, folder: Path) -> None:
        """Start it, and stop it once it has trained on two batches."""
        self.path = Path(tempfile.mkdtemp(dir=folder)) / "ticks"
        size = [args.imgsz, args.batch_size]
        if setting == "Ultralytics":
            python, program = args.peer / "python", COUNT + PEER
            options = [data, *size, self.path.parent]
        else:
            python, program = sys.executable, COUNT + OURS
            options = ["--data", data, "--imgsz", size[0], "--batch-size", size[1], "--device"]
            options += ["cpu", "--noplots", "--noval", "--project", self.path.parent]
            options += ["--hyp", ROOT / "benchmarks" / "ablations" / "full_size.yaml"]
        command = [python, "-W", "ignore", "-c", program, self.path, ROOT, *options]
        environment = {name: text for name, text in os.environ.items() if "OMP_" not in name}
        self.errors = self.path.with_name("stderr")
        with self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*map(str, command)],
                env=environment | SETTINGS.get(setting, {}),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        self.wait(lambda: len(self.times()) >= 2)

    def times(self) -> list[float]:
        """When its batches ended."""
        return [float(line.split()[0]) for line in self.lines()]

    def lines(self) -> list[str]:
        """What `tick` has written, one line for each batch."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def wait(self, is_over) -> None:
        """Let it train until `is_over()`."""
        os.killpg(self.process.pid, signal.SIGCONT)
        while not is_over() and self.process.poll() is None:
            time.sleep(0.05)
        if self.process.poll() is not None:
            raise SystemExit(self.errors.read_text() or f"exit status {self.process.returncode}")
        os.killpg(self.process.pid, signal.SIGSTOP)

    def images_per_second(self, seconds: float, batch_size: int) -> float:
        """Let it train for `seconds`, and longer until three batches have ended."""
        start, before = time.monotonic(), len(self.times())

        def is_over() -> bool:
            passed = time.monotonic() - start
            return passed > 10 * seconds or (passed > seconds and len(self.times()) >= before + 3)

        self.wait(is_over)
        ends = self.times()[before:]
        if len(ends) < 3:  # too slow to be measured better
            return len(ends) * batch_size / (time.monotonic() - start)
        return (len(ends) - 1) * batch_size / (ends[-1] - ends[0])

    def kill(self) -> None:
        """End it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """While entered, `count` processes compute, each as its own session, as programs do."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    """Print a line for each number of busy processes and each setting."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--peer", type=Path, help="bin directory with Ultralytics' python")
    p.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4], help="(0 1 2 4)")
    p.add_argument("--imgsz", type=int, default=320, help="(%(default)s)")
    p.add_argument("--batch-size", type=int, default=16, help="(%(default)s)")
    p.add_argument("--seconds", type=float, default=5, help="of a turn (%(default)s)")
    p.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    args = p.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the processes below, too
    print(f"{THREADS} CPUs, {args.imgsz} px, batch size {args.batch_size}", flush=True)
    runs: dict[str, Training] = {}
    with copy_dataset(args.data) as data, tempfile.TemporaryDirectory() as folder:
        try:
            for setting in [*SETTINGS, *(["Ultralytics"] if args.peer else [])]:
                runs[setting] = Training(setting, args, data, Path(folder))
            for count in args.busy:
                with busy_processes(count):
                    measure(runs, count, args, data, Path(folder))
        finally:
            for run in runs.values():
                run.kill()


def measure(
    runs: dict[str, Training], count: int, args: argparse.Namespace, data: Path, folder: Path
) -> None:
    """Print the throughput of all settings next to `count` busy processes, which are running."""
    if "automatic" in runs:
        runs.pop("automatic").kill()
    if count:
        time.sleep(70)  # it counts what has been busy for a minute
    runs["automatic"] = Training("automatic", args, data, folder)
    rates: dict[str, list[float]] = {setting: [] for setting in runs}
    for _ in range(args.rounds):
        for setting, run in runs.items():
            rates[setting].append(run.images_per_second(args.seconds, args.batch_size))
    for setting, values in rates.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        threads = runs[setting].lines()[-1].split()[1]
        text = f"{statistics.median(values):6.1f} images/s ({each}), threads: {threads}"
        print(f"{count} busy  {setting:<33} {text}", flush=True)


if __name__ == "__main__":
    main()
