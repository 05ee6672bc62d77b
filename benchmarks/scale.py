"""Measures reading a COCO json of the size of COCO or Objects365: seconds and peak memory.

    python benchmarks/scale.py --dataset coco
    python benchmarks/scale.py --dataset objects365 --fraction 0.1
    python benchmarks/scale.py --dataset objects365 --steps "first start" "next start" "epoch start"

Writes a synthetic json with as many images, boxes, classes and polygons to a temporary directory.
The images are links to one JPEG, because reading annotations reads only their headers. Each step
runs in a process of its own; its memory is the peak above that of the imports. "json module" is
`json.load` alone, which is what a reader that loads the whole file needs at least: of all of
Objects365 more than 20 GB. "epoch start" is the time until an epoch's first batch of 16 is known.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 100_000  # boxes
MAX_LINKS = 10_000  # to one file, fewer than any file system allows


class Size(NamedTuple):
    """The train split of a dataset; `polygon` is the mean number of corners, 0 for boxes only."""

    images: int
    boxes: int
    classes: int
    polygon: int


SIZES = {
    "coco": Size(118_287, 860_001, 80, 24),
    "objects365": Size(1_742_292, 25_407_598, 365, 0),
}
STEPS = ("json module", "json only", "first start", "next start", "epoch start")
MEASURE = """
import resource, sys, time
sys.path.insert(0, sys.argv[1])
import json
from pathlib import Path
from data.config import read_data_config
from data.formats import read_split
from data.formats.coco import read_coco
from data.formats.scan import Scan
from data.sampler import EpochBatchSampler
def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
folder, step = Path(sys.argv[2]), sys.argv[3]
if step == "epoch start":
    annotations = read_split(read_data_config(folder / "data.yaml"), "train")
before, start = peak_mb(), time.perf_counter()
if step == "json module":
    json.loads((folder / "train.json").read_text(encoding="utf-8"))
elif step == "json only":
    read_coco(Scan(), folder / "train.json", [folder / "images"], None, {})
elif step == "epoch start":
    next(iter(EpochBatchSampler(len(annotations), 16, (640, 640), seed=0)))
else:
    read_split(read_data_config(folder / "data.yaml"), "train")
print(json.dumps([time.perf_counter() - start, peak_mb() - before]))
"""


def write_dataset(folder: Path, size: Size) -> None:
    """Write images, a json and a data.yaml to `folder`."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(size.images):
        original = folder / f"{i - i % MAX_LINKS}.jpg"
        if i % MAX_LINKS == 0:
            Image.new("RGB", (640, 480)).save(original)
        os.link(original, folder / "images" / f"{i:012d}.jpg")
    with (folder / "train.json").open("w") as file:
        file.write('{"info": {"description": "synthetic"}, "licenses": [], "images": [')
        for i in range(size.images):
            image = {
                "license": 4,
                "file_name": f"{i:012d}.jpg",
                "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 17:02:52",
                "flickr_url": "http://farm7.staticflickr.com/6116/6255196340_da26cf2c9e_z.jpg",
                "id": i,
            }
            file.write(f"{', ' if i else ''}{json.dumps(image)}")
        file.write('], "annotations": [')
        corners = np.maximum(3, rng.geometric(1 / max(size.polygon, 1), 1000))
        polygons = [(rng.random(2 * n) * 480).round(2).tolist() for n in corners]
        segmentations = [json.dumps([polygon] if size.polygon else []) for polygon in polygons]
        for i in range(size.boxes):
            if i % CHUNK == 0:  # random numbers one by one would take most of the time
                boxes = rng.random((CHUNK, 4)) * [500, 400, 100, 60] + [0, 0, 10, 10]
                boxes = boxes.round(2).tolist()
            file.write(
                f'{", " if i else ""}{{"segmentation": {segmentations[i % 1000]}, "area": 702.1, '
                f'"iscrowd": 0, "image_id": {i % size.images}, "bbox": {boxes[i % CHUNK]}, '
                f'"category_id": {i % size.classes}, "id": {i}}}'
            )
        categories = [{"id": i, "name": f"class {i}"} for i in range(size.classes)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    source = "{annotations: train.json, images: images}"
    (folder / "data.yaml").write_text(f"train: {source}\nval: {source}\n")


def main() -> None:
    """Print a line for each step."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--dataset", choices=SIZES, default="coco", help="(%(default)s)")
    p.add_argument("--fraction", type=float, default=1.0, help="of the dataset (%(default)s)")
    p.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="(all)")
    args = p.parse_args()
    size = SIZES[args.dataset]
    images, boxes = int(size.images * args.fraction), int(size.boxes * args.fraction)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_dataset(folder, size._replace(images=images, boxes=boxes))
        megabytes = (folder / "train.json").stat().st_size / 1e6
        print(f"{images} images, {boxes} boxes, a json of {megabytes:.0f} MB", flush=True)
        for step in args.steps:
            command = [sys.executable, "-W", "ignore", "-c", MEASURE, ROOT, folder, step]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, peak = json.loads(result.stdout)
            print(f"{step:<12} {seconds:6.2f} s   peak {peak:6.0f} MB", flush=True)


if __name__ == "__main__":
    main()
