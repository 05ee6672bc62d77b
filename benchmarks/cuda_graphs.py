"""A training step on a GPU, launched kernel by kernel and as CUDA graphs (`--cuda-graphs`).

    python benchmarks/cuda_graphs.py

The two take turns in every round, on images that are on the GPU already. Prints the medians over
the rounds: milliseconds of a step, those in which the CPU is busy with it, what it launches, and
the ratio of the steps.
"""

import argparse
import statistics
import time

import torch
from checkpoint import Run
from torch.profiler import ProfilerActivity, profile

from utils.amp import autocast
from utils.device import select_device

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemset")  # beginnings


def timed_step(run: Run) -> tuple[float, float]:
    """Return the seconds of a step, and those until the CPU has launched all of it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run.launch_step()
    launched = time.perf_counter()
    torch.cuda.synchronize()
    return time.perf_counter() - start, launched - start


def count_launches(run: Run) -> int:
    """Return how many launches a step needs."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run.step()
        torch.cuda.synchronize()
    return sum(event.name.startswith(LAUNCHES) for event in profiler.events())


def main() -> None:
    """Print a line for each model and batch size."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--models", nargs="+", default=["yolo-n"], help="(yolo-n)")
    p.add_argument("--optimizer", default="muon", help="(%(default)s)")
    p.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64], help="(16 64)")
    p.add_argument("--imgsz", type=int, default=640, help="(%(default)s)")
    p.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    p.add_argument("--steps", type=int, default=10, help="in a round (%(default)s)")
    args = p.parse_args()
    device = select_device("cuda")
    torch.backends.cudnn.benchmark = True
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {args.imgsz} px")
    for name in args.models:
        for batch_size in args.batch_sizes:
            runs = [Run(name, args.optimizer, device, batch_size, args.imgsz) for _ in range(2)]
            with autocast(device, runs[1].dtype):
                runs[1].model.capture_network(runs[1].model.prepare(runs[1].images)[0])
            for run in runs:
                for _ in range(5):
                    run.step()
            times: list[list[tuple[float, float]]] = [[], []]
            for _ in range(args.rounds):
                for run, seconds in zip(runs, times, strict=True):
                    steps = [timed_step(run) for _ in range(args.steps)]
                    seconds.append(tuple(map(statistics.fmean, zip(*steps, strict=True))))
            print(f"{name}, batch size {batch_size}:")
            for label, run, seconds in zip(("kernels", "graphs"), runs, times, strict=True):
                step, host = (1000 * statistics.median(s[i] for s in seconds) for i in range(2))
                spread = f"{1000 * min(s[0] for s in seconds):.1f} to "
                spread += f"{1000 * max(s[0] for s in seconds):.1f}"
                print(
                    f"  {label}: {step:.1f} ms ({spread}), {host:.1f} ms of the CPU, "
                    f"{count_launches(run)} launches, {1000 * batch_size / step:.0f} images/s"
                )
            ratio = statistics.median(b[0] / a[0] for a, b in zip(*times, strict=True))
            print(f"  ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
