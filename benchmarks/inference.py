"""Milliseconds per image of validation and detection: this repository and Ultralytics.

`python benchmarks/inference.py --data YAML --weights best.pt --peer BIN --peer-weights PEER.pt`

BIN is the bin directory of a virtual environment with Ultralytics, and both files are trained on
the data (for the counts of detections, which are printed; speed does not depend on the weights).
Every candidate runs in a process of its own, in turn, as a user calls it:

- val: val.py and `yolo val`, plots off, at each --batch-size.
- predict, save: detect.py and `yolo predict save=True`, on a directory, one image after the other.
- predict: a loop that calls the loaded model with one file after the other.
- ONNX: the same loop on the exported file, images of one size. Ultralytics' model reads the file
  itself; here it is ONNX Runtime between our resizing and our NMS.

The first calls do not count. val and predict, save run on a short and on a long list: the
difference is the time of the images between, without what a start costs.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHORT, LONG = 16, 80  # images in the lists
CONF = 0.25  # of predict, on both candidates

# ----------------------------------------------------------------------------------------------
# In a process of its own: one candidate, with the job's options


def difference(run: Callable[[Path], object], job: dict[str, Any]) -> float:
    """Return the seconds per image of `run`, called with the two datasets' directories."""
    seconds = []
    for name in ("short", "short", "long"):  # the first is to warm up
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            run(Path(job["datasets"]) / name)
        seconds.append(time.perf_counter() - start)
    return (seconds[2] - seconds[1]) / (LONG - SHORT)


def loop(detect: Callable[[str], int], job: dict[str, Any]) -> tuple[float, float]:
    """Return the median seconds of `detect`, and the mean of what it returns: detections."""
    files = sorted((Path(job["datasets"]) / "long" / "images" / "val").iterdir())
    seconds, counts = [], []
    for file in map(str, files[:5] + files[: SHORT * 2]):
        start = time.perf_counter()
        counts.append(detect(file))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[5:]), statistics.mean(counts[5:])


def our_job(job: dict[str, Any]) -> object:
    """Run a job with this repository."""
    sys.path.insert(0, str(ROOT))
    from utils.cpus import limit_spinning

    limit_spinning()  # as the commands do
    size = ["--imgsz", str(job["imgsz"]), "--device", "cpu", "--project", job["project"]]
    weights = job["weights"]
    if job["kind"] == "val":
        import val

        size += ["--batch-size", str(job["batch_size"]), "--noplots"]
        return difference(
            lambda data: val.main(["--weights", weights, "--data", f"{data}/data.yaml", *size]), job
        )
    if job["kind"] == "predict, save":
        import detect

        return difference(
            lambda data: detect.main(
                ["--weights", weights, "--source", f"{data}/images/val", "--conf", str(CONF), *size]
            ),
            job,
        )
    from predictor import load

    if job["kind"] == "predict":
        model = load(weights, device="cpu", conf=CONF, imgsz=job["imgsz"])
        return loop(lambda file: len(model(file)[0]["boxes"]), job)
    return loop(our_onnx(job), job)


def our_onnx(job: dict[str, Any]) -> Callable[[str], int]:
    """Export the weights and return what counts the detections in a file with ONNX Runtime."""
    import onnxruntime
    import torch
    from torch.nn import functional as F

    import export
    from data.augment import resize
    from data.images import read_image
    from models import load
    from utils.letterbox import GRAY, letterbox_size

    weights, imgsz = Path(job["project"]) / "best.pt", job["imgsz"]
    shutil.copy(job["weights"], weights)
    height, width = job["shape"]
    with contextlib.redirect_stdout(io.StringIO()):
        export.main(["--weights", str(weights), "--imgsz", str(height), str(width)])
    model = load(weights)
    model.set_thresholds(CONF, model.default_iou)
    session = onnxruntime.InferenceSession(
        weights.with_suffix(".onnx"), providers=["CPUExecutionProvider"]
    )

    def detect(file: str) -> int:
        image = read_image(file)
        image = resize(image, *letterbox_size(*image.shape[1:], imgsz))
        size = tuple(image.shape[1:])
        image = F.pad(image, (0, width - size[1], 0, height - size[0]), value=GRAY)
        images = (image[None].float() / 255).contiguous().numpy()
        boxes, scores = map(torch.from_numpy, session.run(None, {"images": images}))
        return len(model.postprocess(boxes, scores, [size])[0]["boxes"])

    return detect


def peer_job(job: dict[str, Any]) -> object:
    """Run a job with Ultralytics."""
    from ultralytics import YOLO

    options = {"imgsz": job["imgsz"], "device": "cpu", "project": job["project"], "verbose": False}
    if job["kind"] == "val":
        options |= {"batch": job["batch_size"], "plots": False}
        return difference(
            lambda data: YOLO(job["weights"]).val(data=f"{data}/data.yaml", **options), job
        )
    options["conf"] = CONF
    if job["kind"] == "predict, save":

        def save(data: Path) -> None:
            results = YOLO(job["weights"]).predict(
                f"{data}/images/val", save=True, **options, stream=True
            )
            for _ in results:
                pass

        return difference(save, job)
    weights = job["weights"]
    if job["kind"] == "ONNX":
        copy = shutil.copy(weights, Path(job["project"]) / "peer.pt")
        weights = YOLO(copy).export(format="onnx", imgsz=job["shape"], device="cpu", simplify=False)
        options["imgsz"] = job["shape"]
    model = YOLO(weights, task="detect")
    return loop(lambda file: len(model(file, **options)[0].boxes), job)


# ----------------------------------------------------------------------------------------------
# The comparison


def make_datasets(data: Path, directory: Path) -> None:
    """Write two YOLO datasets, `short` and `long`, with the first validation images of `data`."""
    import yaml

    config = yaml.safe_load(data.read_text(encoding="utf-8"))
    root = data.parent / config.get("path", ".")
    files = sorted((root / config["val"]).iterdir())
    for name, count in {"short": SHORT, "long": LONG}.items():
        images, labels = directory / name / "images" / "val", directory / name / "labels" / "val"
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            file = files[i % len(files)]
            label = root / config["val"].replace("images", "labels") / f"{file.stem}.txt"
            shutil.copy(file, images / f"{i:03}{file.suffix}")
            shutil.copy(label, labels / f"{i:03}.txt")
        values = {"path": str(directory / name), "train": "images/val", "val": "images/val"}
        text = yaml.safe_dump(values | {"names": config["names"]})
        (directory / name / "data.yaml").write_text(text, encoding="utf-8")


def run_job(python: Path, job: dict[str, Any]) -> list[float]:
    """Run a job in a new process; return seconds per image and, if measured, detections."""
    with tempfile.TemporaryDirectory() as project:
        command = [python, __file__, "--job", json.dumps(job | {"project": project})]
        process = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=project)
        if process.returncode:
            raise RuntimeError(process.stderr)
    result = json.loads(process.stdout.splitlines()[-1])
    return result if isinstance(result, list) else [result]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    p.add_argument("--data", type=Path)
    p.add_argument("--weights", type=Path)
    p.add_argument("--peer", type=Path, help="bin directory with Ultralytics")
    p.add_argument("--peer-weights", type=Path)
    p.add_argument("--imgsz", type=int, nargs="+", default=[320, 640])
    p.add_argument("--batch-size", type=int, nargs="+", default=[1, 16])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--kinds", nargs="+", default=["val", "predict, save", "predict", "ONNX"])
    args = p.parse_args()
    if args.job:
        result = (peer_job if args.job["is_peer"] else our_job)(args.job)
        print(json.dumps(result))
        return
    candidates = {
        "this repo": {"weights": str(args.weights.resolve()), "is_peer": False},
        "Ultralytics": {"weights": str(args.peer_weights.resolve()), "is_peer": True},
    }
    pythons = {"this repo": Path(sys.executable), "Ultralytics": args.peer.absolute() / "python"}
    with tempfile.TemporaryDirectory() as datasets:
        make_datasets(args.data, Path(datasets))
        for imgsz in args.imgsz:
            # BCCD's images are 640 x 480.
            shape = [-(-imgsz * 3 // 4 // 32) * 32, imgsz]
            for kind in args.kinds:
                for batch_size in args.batch_size if kind == "val" else [1]:
                    job = {"kind": kind, "imgsz": imgsz, "batch_size": batch_size}
                    job |= {"datasets": datasets, "shape": shape}
                    results: dict[str, list[list[float]]] = {name: [] for name in candidates}
                    for _ in range(args.rounds):
                        for name, candidate in candidates.items():
                            results[name].append(run_job(pythons[name], job | candidate))
                    report(f"{imgsz} px  {kind}, batch size {batch_size}", results)


def report(title: str, results: dict[str, list[list[float]]]) -> None:
    """Print median and range of both sides, and their ratio."""
    medians, texts = [], []
    for name, rows in results.items():
        values = [1000 * row[0] for row in rows]
        medians.append(statistics.median(values))
        text = f"{name} {medians[-1]:.1f} ms ({min(values):.1f}-{max(values):.1f})"
        texts.append(text + "".join(f", {row[1]:.1f} detections" for row in rows[:1] if row[1:]))
    print(f"{title}: {'; '.join(texts)}; ratio {medians[1] / medians[0]:.2f}", flush=True)


if __name__ == "__main__":
    main()
