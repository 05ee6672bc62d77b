"""How long a large data set takes to scan and what it leaves in memory: first scan, next scan (cached), scan after one change.

`python benchmarks/scan.py` makes a YOLO data set of `--pictures` label files in a temporary folder; the pictures are links to one
JPEG, for only headers are read. Each scan runs in a process of its own, whose growth is told.
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
SCAN = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from data.config import read_data_config
from data.formats import read_split
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
before, began = resident(), time.perf_counter()
found = read_split(read_data_config(Path(sys.argv[2])), "train")
seconds = time.perf_counter() - began
arrays = sum(a.nbytes for a in (found.files, found.sizes, found.offsets, found.boxes, found.labels, found.crowd)) / 1e6
print(json.dumps([seconds, len(found.labels), resident() - before, arrays]))
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--pictures", type=int, default=100_000)
    p.add_argument("--boxes", type=int, default=10, help="a picture")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for kind in ("images", "labels"):
            (root / kind).mkdir()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)).save(
            root / "one.jpg"
        )
        rng = np.random.default_rng(0)
        for i in range(args.images):
            if i % 10_000 == 0:  # a file can have only so many names
                (root / f"{i}.jpg").write_bytes((root / "one.jpg").read_bytes())
            os.link(root / f"{i - i % 10_000}.jpg", root / "images" / f"{i:06d}.jpg")
            rows = np.c_[rng.integers(0, 80, args.boxes), rng.uniform(0.3, 0.6, (args.boxes, 4))]
            np.savetxt(root / "labels" / f"{i:06d}.txt", rows, "%d %.6f %.6f %.6f %.6f")
        data = root / "data.yaml"
        data.write_text(f"train: images\nval: images\nnames: {[f'class {i}' for i in range(80)]}\n")
        print(f"{args.pictures} pictures with {args.boxes} boxes each")
        for what in ("first scan", "again", "after one label file changed", "again"):
            if "changed" in what:
                time.sleep(0.01)
                (root / "labels" / "000000.txt").write_text("0 0.5 0.5 0.5 0.5\n")
            done = subprocess.run(
                [sys.executable, "-c", SCAN, ROOT, data], capture_output=True, text=True, check=True
            )
            seconds, boxes, grown, arrays = json.loads(done.stdout)
            print(
                f"{what:<30} {seconds:6.2f} s   {boxes} boxes   {grown:4.0f} MB more in memory, {arrays:.0f} MB of it arrays"
            )


if __name__ == "__main__":
    main()
