"""Measures the scan of a large dataset: seconds and memory, first, cached, and after one change.

`python benchmarks/scan.py` writes a YOLO dataset with `--images` label files to a temporary
directory. The images are links to one JPEG, because the scan reads only headers. Each scan runs
in a process of its own, whose growth in memory is reported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MAX_LINKS = 10_000  # to one file, fewer than any file system allows
SCAN = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from data.config import read_data_config
from data.formats import read_split
def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
before, start = resident_mb(), time.perf_counter()
data = read_split(read_data_config(Path(sys.argv[2])), "train")
seconds = time.perf_counter() - start
files = (data.files.text, data.files.ends)
arrays = (*files, data.sizes, data.offsets, data.boxes, data.labels, data.crowd)
array_mb = sum(array.nbytes for array in arrays) / 1e6
print(json.dumps([seconds, len(data.labels), resident_mb() - before, array_mb]))
"""


def write_dataset(root: Path, num_images: int, boxes_per_image: int) -> Path:
    """Write the dataset and return its data.yaml."""
    for directory in ("images", "labels"):
        (root / directory).mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8)).save(root / "image.jpg")
    for i in range(num_images):
        original = root / f"{i - i % MAX_LINKS}.jpg"
        if i % MAX_LINKS == 0:
            original.write_bytes((root / "image.jpg").read_bytes())
        os.link(original, root / "images" / f"{i:06d}.jpg")
        boxes = rng.uniform(0.3, 0.6, (boxes_per_image, 4))
        rows = np.c_[rng.integers(0, 80, boxes_per_image), boxes]
        np.savetxt(root / "labels" / f"{i:06d}.txt", rows, "%d %.6f %.6f %.6f %.6f")
    data = root / "data.yaml"
    data.write_text(f"train: images\nval: images\nnames: {[f'class {i}' for i in range(80)]}\n")
    return data


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--images", type=int, default=100_000)
    p.add_argument("--boxes", type=int, default=10, help="per image")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        data = write_dataset(root, args.images, args.boxes)
        print(f"{args.images} images with {args.boxes} boxes each")
        for name in ("first scan", "cached", "after a change to one label file", "cached"):
            if name.startswith("after"):
                time.sleep(0.01)
                (root / "labels" / "000000.txt").write_text("0 0.5 0.5 0.5 0.5\n")
            command = [sys.executable, "-c", SCAN, ROOT, data]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, num_boxes, growth, arrays = json.loads(result.stdout)
            print(
                f"{name:<32} {seconds:6.2f} s   {num_boxes} boxes   memory grew by "
                f"{growth:4.0f} MB, of which arrays {arrays:.0f} MB"
            )


if __name__ == "__main__":
    main()
