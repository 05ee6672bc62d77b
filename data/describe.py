"""Says what is in a data set: `python -m data.describe data.yaml [--out PAGE.jpg]`: counts, sizes, boxes, and every fault."""

import sys
from pathlib import Path

import numpy as np

from data.config import read_data_config
from data.dataset import ValSet, collate
from data.formats import Annotations, read_all_splits
from utils.cli import Parser, run_cli
from utils.plots import draw_batch
from utils.yamlfile import find_file

SIDES = (
    0,
    8,
    16,
    32,
    64,
    96,
    128,
    256,
    512,
    10**9,
)  # pixels; 32 and 96 are where COCO's small and medium end
ROOT = Path(__file__).resolve().parents[1]
PAGE, SIDE = 16, 320  # pictures on the page, and the side of each in pixels


def describe_split(split: str, data: Annotations) -> str:
    """What there is in a split, as text: pictures, their sizes, boxes a class, and a histogram of the boxes' sides."""
    counts = np.diff(data.offsets)
    widths, heights = data.sizes.T
    image = np.repeat(np.arange(len(data)), counts)
    sides = (data.boxes[:, 2:] - data.boxes[:, :2]) * data.sizes[image]
    lines = [
        f"{split}: {len(data)} pictures, {int((counts == 0).sum())} of them without a box; {len(data.labels)} boxes, "
        f"{int(data.crowd.sum())} of them crowds; {counts.min()} to {counts.max()} in a picture, {counts.mean():.1f} on average",
        f"  pictures are {widths.min()} to {widths.max()} px wide (median {np.median(widths):.0f}), {heights.min()} to "
        f"{heights.max()} px high (median {np.median(heights):.0f})",
    ]
    width = max(map(len, data.names))
    for k, name in enumerate(data.names):
        mine = data.labels == k
        lines.append(
            f"  {name:<{width}}  {int(mine.sum()):7} boxes in {len(np.unique(image[mine])):6} pictures"
        )
    found = np.histogram(np.sqrt(sides.prod(1)), SIDES)[0]
    lines.append("  the boxes' sides (the root of their area), in pixels of their pictures:")
    for low, high, count in zip(SIDES[:-1], SIDES[1:], found, strict=True):
        label = f"{low} to {high}" if high < 10**9 else f"{low} or more"
        lines.append(
            f"  {label:>11}  {count:7}  {'#' * round(50 * count / max(1, found.max()))}".rstrip()
        )
    return "\n".join(lines)


def draw_page(data: Annotations, path: Path) -> None:
    """Draw pictures from all over the split, with their boxes, to the JPEG `path`."""
    samples = ValSet(data, SIDE, stride=1)
    chosen = np.unique(np.linspace(0, len(data) - 1, PAGE).round().astype(int)).tolist()
    images, targets = collate([samples[i] for i in chosen])
    draw_batch(images, targets, data.names, path)


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status is that of `exit_status`."""

    def work() -> None:
        p = Parser(prog="python -m data.describe", description="Say what is in a data set.")
        p.add_argument("data", help="a data.yaml, or the name of one in data/")
        p.add_argument(
            "--out",
            type=Path,
            metavar="PAGE.jpg",
            help="draw pictures of the first split with their boxes on a page",
        )
        args = p.parse_args(argv)
        config = read_data_config(Path(find_file(args.data, ROOT / "data")))
        splits = read_all_splits(config)
        for name, data in splits.items():
            print(describe_split(name, data))
            for sentence in data.report(name, most=len(data.errors)):
                print(sentence, file=sys.stderr)
        if args.out:
            draw_page(splits["train"], args.out)
            print(f"drawn to {args.out}")

    return run_cli("data.describe", work)


if __name__ == "__main__":
    sys.exit(main())
