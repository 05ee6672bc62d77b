"""Finds objects in pictures and films: `python detect.py --weights runs/train/exp/weights/best.pt --source pictures/`."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import to_pil_image

from data.augment import resize
from data.images import image_size, list_images, read_image, unique_stem
from data.video import VIDEO_SUFFIXES, VideoWriter, read_video
from models import load
from models.detector import Detector
from utils.atomic import atomic_write
from utils.cli import Parser, dir_name, int_range, run_cli, unit_interval
from utils.device import prefers_bf16, select_device
from utils.errors import UserError
from utils.memory import disable_malloc_trim
from utils.plots import draw_boxes
from utils.run_dir import new_dir


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(description="Find objects with a trained detector. Defaults stand in parentheses.")
    p.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        help="best.pt or last.pt of a run; the averaged weights are taken",
    )
    p.add_argument(
        "--source",
        metavar="WHAT",
        required=True,
        help="a picture, a folder, a glob, a .txt list, a film, or a camera's number",
    )
    p.add_argument(
        "--imgsz",
        type=int_range(32),
        metavar="PX",
        help="longer side of what the model sees (what it was trained at)",
    )
    p.add_argument(
        "--conf",
        type=unit_interval,
        default=0.25,
        metavar="SCORE",
        help="lowest score of a detection (0.25)",
    )
    p.add_argument(
        "--iou",
        type=unit_interval,
        default=0.45,
        metavar="IOU",
        help="overlap above which the lower score is dropped (0.45)",
    )
    p.add_argument(
        "--classes", nargs="+", metavar="CLASS", help="only these, by name or number (all)"
    )
    p.add_argument(
        "--save-txt",
        action="store_true",
        help="write labels/NAME.txt: class cx cy w h score a line, 0..1",
    )
    p.add_argument(
        "--save-json",
        action="store_true",
        help="write predictions.json: picture, class, box in pixels, score",
    )
    p.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, ... (auto: cuda if there is one, else cpu)",
    )
    p.add_argument(
        "--project",
        default="runs/detect",
        metavar="DIR",
        help="folder of the folders of results (runs/detect)",
    )
    p.add_argument(
        "--name",
        type=dir_name,
        default="exp",
        metavar="NAME",
        help="the folder: exp, or exp2, exp3, ... (exp)",
    )
    p.add_argument("--exist-ok", action="store_true", help="use the folder even if it is taken")
    return p.parse_args(argv)


def detect_objects(args: argparse.Namespace) -> None:
    device = select_device(args.device)
    disable_malloc_trim()
    model = load(args.weights).to(device, memory_format=torch.channels_last)
    model.set_thresholds(args.conf, args.iou)
    imgsz = args.imgsz or model.imgsz
    wanted = chosen_classes(args.classes, model.class_names)
    pictures = frames(args.source)
    first = next(pictures)  # what is wrong with the source is said before there is a folder
    folder = new_dir(Path(args.project), args.name, args.exist_ok)
    if args.save_txt:
        (folder / "labels").mkdir(exist_ok=True)

    rows: list[dict[str, Any]] = []
    taken: set[str] = set()  # names in the folder: two folders may have a picture of the same name
    film = VideoWriter(folder / f"{Path(args.source).stem}.mp4")
    count, broken, began = 0, 0, time.perf_counter()
    try:
        for frame in chain([first], pictures):
            if isinstance(frame.image, UserError):  # is said and counted, and the others go on
                print(f"detect.py: {frame.image}", file=sys.stderr)
                broken += 1
                continue
            found = look(model, frame.image, imgsz, device, wanted)
            labels, scores = found["labels"].tolist(), found["scores"].tolist()
            counts = Counter(model.class_names[label] for label in labels)
            place = (
                frame.source if frame.number is None else f"{frame.source}, frame {frame.number}"
            )
            print(
                f"{place}: {', '.join(f'{n} {name}' for name, n in counts.most_common()) or 'nothing'}"
            )
            count += 1
            drawn = draw_boxes(frame.image, found, model.class_names)
            if frame.number is None:
                name = unique_stem(frame.source, taken)
                to_pil_image(drawn).save(folder / f"{name}{Path(frame.source).suffix}")
            else:
                name = f"{Path(frame.source).stem}_{frame.number}"
                film.write(drawn, frame.rate)
            if args.save_txt:
                write_txt(found, frame.image.shape[-2:], folder / "labels" / f"{name}.txt")
            rows += [
                {
                    "file": frame.source,
                    "frame": frame.number,
                    "class": model.class_names[k],
                    "box": [round(v, 3) for v in box],
                    "score": s,
                }
                for k, box, s in zip(labels, found["boxes"].tolist(), scores, strict=True)
            ]
    except KeyboardInterrupt:
        print(
            "stopped"
        )  # which is how one takes leave of a camera: what there is so far is written to its end
    finally:
        film.close()
    if args.save_json:
        with atomic_write(folder / "predictions.json") as output:
            output.write(json.dumps(rows).encode())
    left = f", {broken} more could not be decoded" if broken else ""
    print(f"{count} pictures in {time.perf_counter() - began:.1f} s{left}; written to {folder}")


class Frame(NamedTuple):
    """A picture to look at."""

    source: str  # its file, or the film's, or the camera's number
    number: int | None  # in a film, counted from 0; None for a picture of its own
    image: Tensor | UserError  # (3, h, w) uint8, or why it cannot be decoded
    rate: float = 0.0  # of a film: frames a second


def frames(source: str) -> Iterator[Frame]:
    """Every picture of the source. Raises UserError where the source is not there, or has no picture at all."""
    if source.isdecimal() or Path(source).suffix.lower() in VIDEO_SUFFIXES:
        for number, (image, rate) in enumerate(read_video(source)):
            yield Frame(source, number, image, rate)
        return
    files = list_images(Path(source))
    if files is None:
        raise UserError(
            f"--source {source}: is not there; allowed are a picture, a folder, a glob, a .txt list, a film, a camera"
        )
    if not files:
        raise UserError(f"--source {source}: has no picture")
    for file in files:
        try:
            if isinstance(size := image_size(file), str):
                raise UserError(size)
            yield Frame(file, None, read_image(file))
        except UserError as error:
            yield Frame(file, None, error)


@torch.inference_mode()
def look(
    model: Detector, image: Tensor, imgsz: int, device: torch.device, wanted: set[int] | None = None
) -> dict[str, Tensor]:
    """The detections in a picture (3, h, w) uint8, of the `wanted` classes or of all, boxes in its own pixels, on the CPU."""
    height, width = image.shape[-2:]
    ratio = imgsz / max(height, width)
    small = resize(image, max(1, round(height * ratio)), max(1, round(width * ratio))).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=prefers_bf16(device)):
        (found,) = model([small])
    found = {
        key: value.float().cpu() if key != "labels" else value.cpu() for key, value in found.items()
    }
    found["boxes"] /= torch.tensor([small.shape[-1] / width, small.shape[-2] / height]).repeat(2)
    if wanted is None:
        return found
    kept = torch.isin(found["labels"], torch.tensor(sorted(wanted)))
    return {key: value[kept] for key, value in found.items()}


def chosen_classes(asked: list[str] | None, names: tuple[str, ...]) -> set[int] | None:
    """The numbers of the classes that are asked for by name or number. Raises UserError for one that is not there."""
    if asked is None:
        return None
    numbers = {name: k for k, name in enumerate(names)} | {
        str(k): k for k in range(len(names)) if str(k) not in names
    }
    for name in asked:
        if name not in numbers:
            raise UserError(
                f"--classes {name}: is not there; the model knows {', '.join(names)}, or 0 to {len(names) - 1}"
            )
    return {numbers[name] for name in asked}


def write_txt(found: dict[str, Tensor], size: tuple[int, int], path: Path) -> None:
    """YOLO's label file with a score at each line's end; `size` is the picture's height and width."""
    height, width = size
    boxes = box_convert(found["boxes"], "xyxy", "cxcywh") / torch.tensor(
        [width, height, width, height]
    )
    lines = [
        " ".join([str(label), *(f"{value:.6f}" for value in (*box, score))]) + "\n"
        for box, label, score in zip(
            boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
    ]
    path.write_text("".join(lines), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit status is that of `exit_status`."""
    return run_cli("detect.py", lambda: detect_objects(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
