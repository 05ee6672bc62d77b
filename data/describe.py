"""Prints statistics of a dataset: `python -m data.describe data.yaml [--out GRID.jpg]`.

Per split: numbers of images and boxes, image sizes, boxes per class, a histogram of box sizes,
and every invalid image or annotation.
"""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.config import read_data_config
from data.dataset import ValSet, collate
from data.formats import Annotations, read_all_splits
from data.locate import find_data_yaml
from data.shapes import make_builtin
from utils.cli import Parser, run_cli
from utils.errors import UserError
from utils.log import info, plural, warning
from utils.plots import draw_batch
from utils.text import display_width, one_line, pad

# Edges of the histogram, pixels; at 32 and 96 COCO's small and medium objects end.
HISTOGRAM_EDGES = (0, 8, 16, 32, 64, 96, 128, 256, 512, 10**9)
ROOT = Path(__file__).resolve().parents[1]
GRID_IMAGES = 16
GRID_SUFFIXES = (".jpg", ".jpeg", ".png")
GRID_IMGSZ = 320  # pixels of each image in the grid


def describe_split(split: str, data: Annotations) -> str:
    """Return the statistics of a split as text."""
    counts = np.diff(data.offsets)
    widths, heights = data.sizes.T
    image_index = np.repeat(np.arange(len(data)), counts)
    images = f"{len(data)} images"
    if data.channels != 3:
        images += f" of {plural(data.channels, 'channel')}"
    lines = [
        f"{split}: {images}, {int((counts == 0).sum())} of them without a box; "
        f"{len(data.labels)} boxes, {int(data.crowd.sum())} of them crowds; {counts.min()} to "
        f"{counts.max()} per image, {counts.mean():.1f} on average",
        f"  image width {widths.min()} to {widths.max()} px (median {np.median(widths):.0f}), "
        f"height {heights.min()} to {heights.max()} px (median {np.median(heights):.0f})",
    ]
    names = [one_line(name) for name in data.class_names]
    width = max(map(display_width, names))
    for label, name in enumerate(names):
        of_class = data.labels == label
        num_boxes, num_images = int(of_class.sum()), len(np.unique(image_index[of_class]))
        lines.append(f"  {pad(name, width)}  {num_boxes:7} boxes in {num_images:6} images")
    box_sizes = (data.boxes[:, 2:] - data.boxes[:, :2]) * data.sizes[image_index]
    histogram = np.histogram(np.sqrt(box_sizes.prod(1)), HISTOGRAM_EDGES)[0]
    lines.append("  box size (square root of the area), in pixels of the original image:")
    for (low, high), count in zip(pairwise(HISTOGRAM_EDGES), histogram, strict=True):
        label = f"{low} to {high}" if high < 10**9 else f"{low} or more"
        bar = "#" * round(50 * count / max(1, histogram.max()))
        lines.append(f"  {label:>11}  {count:7}  {bar}".rstrip())
    return "\n".join(lines)


def draw_grid(data: Annotations, path: Path) -> None:
    """Draw images from all over the split, with their boxes, to the JPEG `path`."""
    samples = ValSet(data, GRID_IMGSZ, stride=1)
    indices = np.unique(np.linspace(0, len(data) - 1, GRID_IMAGES).round().astype(int)).tolist()
    images, targets = collate([samples[i] for i in indices])
    draw_batch(images, targets, data.class_names, path)


def _check_out(path: Path) -> None:
    """Make the directory of `path`. Raises UserError if no image can be written there."""
    if path.suffix.lower() not in GRID_SUFFIXES:
        raise UserError(f"--out {path}: need a file name that ends in {', '.join(GRID_SUFFIXES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror}") from None
    if path.is_dir():
        raise UserError(f"--out {path}: is a directory (need a file name)")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status of `run_cli`."""

    def main_fn() -> None:
        p = Parser(prog="python -m data.describe", description="Print statistics of a dataset.")
        p.add_argument(
            "data", help="a data.yaml, a directory with one, or the name of one in data/"
        )
        p.add_argument(
            "--out",
            type=Path,
            metavar="GRID.jpg",
            help="also draw images of the training split with their boxes",
        )
        args = p.parse_args(argv)
        if args.out:
            _check_out(args.out)
        config = read_data_config(find_data_yaml(args.data, ROOT / "data"))
        if make_builtin(config):
            info(f"drew the built-in dataset into {config.path}")
        splits, messages = read_all_splits(config)
        for split, data in splits.items():
            info(describe_split(split, data))
            warning(*data.messages(split, limit=len(data.errors)))
        warning(*messages)
        if args.out:
            draw_grid(splits["train"], args.out)
            info(f"drawn to {args.out}")

    return run_cli("data.describe", main_fn)


if __name__ == "__main__":
    sys.exit(main())
