"""Invalid input gets a one-line error, exit status 2 and no new file; data errors name the line."""

import json
import math
import os
import pickle
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    TORCHRUN,
    assert_one_line_error,
    read_results,
    run_train,
    train_args,
    without_short_run_warnings,
    write_tiny,
)
from PIL import Image
from preloaded import run_python
from test_formats import png_bomb

import train
from data import cache
from utils.checkpoint import FORMAT

DATA_YAML = "train: images/train\nval: images/val\nnames: [a, b]\n"
VOC_XML = (
    "<annotation><filename>0.png</filename><size><width>80</width><height>64</height></size>"
    "<object><name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{xmax}</xmax>"
    "<ymax>30</ymax></bndbox></object></annotation>"
)
COCO = {
    "images": [{"id": 1, "file_name": "0.png", "width": 80, "height": 64}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 30, 30]}],
    "categories": [{"id": 1, "name": "a"}],
}
INCOMPLETE_CHECKPOINT = {
    "format": FORMAT,
    "args": {},
    "hyp": {},
    "model": {},
    "optimizer": {},
    "progress": {"epoch": 1, "finished": False, "early_stopped": False},
}


class Case(NamedTuple):
    """An edit of a valid dataset, the arguments of the run, and parts of the error message.

    `{}` in arguments and messages stands for the directory of the dataset.
    """

    edit: Callable[[Path], object] | None
    arguments: tuple[str, ...]
    message: tuple[str, ...]


# ------------------------------------------------------- edits: each gets the dataset's directory


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Write the file `name`."""

    def edit(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return edit


def empty_files(name: str) -> Callable[[Path], None]:
    """Empty each file in the directory `name`."""

    def edit(folder: Path) -> None:
        for path in (folder / name).iterdir():
            path.write_text("")

    return edit


def replace_by_dir(name: str) -> Callable[[Path], None]:
    """Replace the file `name` by a directory."""

    def edit(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return edit


def write_half_image(name: str, image_format: str) -> Callable[[Path], None]:
    """Write the first half of an image file."""

    def edit(folder: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
        path = folder / name
        Image.fromarray(pixels).save(path, image_format)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return edit


def write_checkpoint(state: object) -> Callable[[Path], None]:
    """Write `old/weights/last.pt`."""

    def edit(folder: Path) -> None:
        (folder / "old" / "weights").mkdir(parents=True)
        torch.save(state, folder / "old" / "weights" / "last.pt")

    return edit


class Payload:
    """Makes a directory when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


# ----------------------------------------------------------------------------- kinds of cases


def option(*arguments: str, message: str) -> Case:
    return Case(None, arguments, (message,))


def hyp(content: str | bytes, *message: str) -> Case:
    return Case(write("h.yaml", content), ("--hyp", "{}/h.yaml"), ("{}/h.yaml: ", *message))


def data_yaml(content: str | bytes, *message: str) -> Case:
    return Case(write("data.yaml", content), (), message)


def strict(edit: Callable[[Path], object], *message: str, count: int = 1) -> Case:
    """`count` invalid images and annotations, and --strict-data."""
    summary = (f"skipped {count} invalid image", f" {count} invalid", "--strict-data")
    return Case(edit, ("--strict-data",), (*message, *summary))


def labels(content: str | bytes, *message: str) -> Case:
    """A label file with an invalid line, whose image is skipped, too."""
    edit = write("labels/train/3.txt", content)
    return strict(edit, "train: {}/labels/train/3.txt: ", *message, count=2)


def annotated(annotations: str) -> str:
    """Return a data.yaml with `annotations` for the training images."""
    source = f"{{annotations: {annotations}, images: images/train}}"
    return DATA_YAML.replace("images/train", source)


def coco(content: object, *message: str, strict_data: bool = False) -> Case:
    text = content if isinstance(content, str) else json.dumps(content)

    def edit(folder: Path) -> None:
        (folder / "a.json").write_text(text)
        (folder / "data.yaml").write_text(annotated("a.json"))

    return strict(edit, *message) if strict_data else Case(edit, (), ("{}/a.json: ", *message))


def coco_with(key: str, entry: object, *message: str) -> Case:
    """A COCO json with one more, invalid, entry in the list `key`, and --strict-data."""
    return coco(COCO | {key: [*COCO[key], entry]}, *message, strict_data=True)


def voc(content: str, *message: str, count: int = 2) -> Case:
    """A valid VOC xml, and another one with `content`; with its only object, it is skipped."""

    def edit(folder: Path) -> None:
        (folder / "xml").mkdir()
        (folder / "xml" / "0.xml").write_text(VOC_XML.format(name="a", xmax=40))
        (folder / "xml" / "1.xml").write_text(content)
        (folder / "data.yaml").write_text(annotated("xml"))

    return strict(edit, "{}/xml/1.xml: ", *message, count=count)


def resume(state: object, *message: str) -> Case:
    """`--resume` of a run with this checkpoint."""
    arguments = ("--resume", "{}/old", "--project", "{}")
    return Case(write_checkpoint(state), arguments, ("{}/old/weights/last.pt: ", *message))


CASES = {
    # The command line.
    "unknown option": option("--epoch-count", "3", message="--epoch-count"),
    "epochs 0": option("--epochs", "0", message="--epochs: found '0', need an integer from 1"),
    "epochs -1": option("--epochs", "-1", message="--epochs: found '-1'"),
    "epochs 1.5": option("--epochs", "1.5", message="--epochs: found '1.5'"),
    "batch-size 0": option("--batch-size", "0", message="--batch-size: found '0'"),
    "batch-size is a word": option("--batch-size", "many", message="--batch-size: found 'many'"),
    "batch-size auto without a GPU": option("--batch-size", "auto", message="--batch-size auto"),
    "imgsz 0": option("--imgsz", "0", message="--imgsz: found '0', need an integer from 32"),
    "imgsz too large": option(
        "--imgsz",
        "1000000000",
        message="--imgsz: found '1000000000', need an integer from 32 to 16384",
    ),
    "imgsz with 5000 digits": option("--imgsz", "9" * 5000, message="--imgsz: found '999"),
    "imgsz MAX-MIN": option("--imgsz", "96-64", message="--imgsz: found '96-64', need MIN-MAX"),
    "seed negative": option("--seed", "-3", message="--seed: found '-3'"),
    "workers negative": option("--workers", "-1", message="--workers: found '-1'"),
    "GPU not available": option("--device", "cuda:99", message="--device cuda:99: not available"),
    "device unknown": option("--device", "toaster", message="--device toaster: not available"),
    "save-every is a word": option("--save-every", "often", message="--save-every: found 'often'"),
    "save-every nan": option("--save-every", "nan", message="--save-every: found 'nan'"),
    "patience negative": option("--patience", "-1", message="--patience: found '-1'"),
    "freeze unknown": option("--freeze", "head", message="--freeze: found 'head'"),
    "freeze 0": option("--freeze", "0", message="--freeze 0: `--freeze N` freezes"),
    "freeze more layers than the model has": option("--freeze", "999", message="--freeze 999"),
    "cache unknown": option("--cache", "tape", message="--cache: invalid choice: 'tape'"),
    "model unknown": option("--model", "yolo-z", message="--model yolo-z: unknown model"),
    "model unknown in torchvision": option(
        "--model", "torchvision/yolo", message="--model torchvision/yolo: unknown model"
    ),
    "backbone unknown": option("--backbone", "resnet18", message="--backbone resnet18: unknown"),
    "backbone without feature maps": option(
        "--backbone", "torchvision/vit_b_16", message="--backbone torchvision/vit_b_16"
    ),
    "pretrained without a backbone": option(
        "--pretrained", message="--weights DEFAULT: requires --backbone"
    ),
    "weights missing": option("--weights", "{}/none.pt", message="{}/none.pt: cannot be read"),
    "weights are a directory": option("--weights", "{}", message="{}: cannot be read"),
    "weights are text": option(
        "--weights", "{}/data.yaml", message="{}/data.yaml: not a checkpoint of this project"
    ),
    "weights DEFAULT of our own model": option("--weights", "DEFAULT", message="--weights DEFAULT"),
    "sync-bn on the CPU": option(
        "--sync-bn", "--device", "cpu", message="--sync-bn: requires CUDA"
    ),
    "name empty": option("--name", "", message="--name: found ''"),
    "name with ..": option("--name", "../..", message="--name: found '../..'"),
    "project is a file": option("--project", "{}/data.yaml", message="--project {}/data.yaml: "),
    "project below a file": option(
        "--project", "{}/data.yaml/runs", message="--project {}/data.yaml/runs: "
    ),
    "project not writable": option("--project", "/proc/runs", message="--project /proc/runs: "),
    # The hyp file.
    "hyp: missing": option("--hyp", "{}/none.yaml", message="{}/none.yaml: file not found"),
    "hyp: a directory": option("--hyp", "{}", message="{}: is a directory (need a file)"),
    "hyp: file name too long": option("--hyp", "x" * 300, message="File name too long"),
    "hyp: binary": hyp(b"\x89PNG\xff", "not valid UTF-8"),
    "hyp: a list": hyp("- 1\n- 2\n", "found a list, need lines of 'key: value'"),
    "hyp: a string": hyp("lr0", "found text, need lines of 'key: value'"),
    "hyp: unknown key": hyp("zzz: 1\n", "unknown key 'zzz'", "known keys: ", "optimizer, lr0"),
    "hyp: misspelled key": hyp("momentun: 0.9\n", "unknown key 'momentun'", "mean 'momentum'?"),
    "hyp: misspelled key of a block": hyp(
        "scheduler: {warmup_epochs: 3}\n", "did you mean 'warmup_epoch'?"
    ),
    "hyp: string for a number": hyp("lr0: fast\n", "lr0: found 'fast'"),
    "hyp: bool for a number": hyp("lr0: true\n", "lr0: found True"),
    "hyp: below its range": hyp("lr0: 0\n", "lr0: found 0"),
    "hyp: above its range": hyp("mosaic: 1.5\n", "mosaic: found 1.5"),
    "hyp: nan": hyp("lr0: .nan\n", "lr0: found nan"),
    "hyp: inf": hyp("weight_decay: .inf\n", "weight_decay: found inf"),
    "hyp: duplicate key": hyp("lr0: 0.1\nlr0: 0.2\n", "line 2, column 1: duplicate key 'lr0'"),
    "hyp: invalid YAML": hyp("lr0: [1\nbox: 2\n", "line 2, column 4: "),
    "hyp: a tab": hyp("scheduler:\n\twarmup_epoch: 1\n", "line 2, column 1: "),
    "hyp: a Python tag": hyp("!!python/object/apply:os.system ['true']\n", "line 1, column 1: "),
    "hyp: many aliases": hyp("a: &a [1]\nb: [" + "*a, " * 30 + "]\n", "more than 20 aliases"),
    "hyp: unknown schedule": hyp(
        "scheduler: {name: cosine}\n", "name: found 'cosine', allowed are cawb"
    ),
    "hyp: schedule without its arguments": hyp(
        "scheduler: {name: poly}\n", "learning_rate_decay_a' is missing"
    ),
    "hyp: decreasing milestones": hyp(
        "scheduler: {name: manual, learning_rate_args: '9:1,5:2'}\n", "'9:1,5:2'", "must increase"
    ),
    "hyp: restart at 200%": hyp("scheduler: {steps: [200%]}\n", "found '200%'"),
    "hyp: lf with one argument": hyp(
        "scheduler: {lf: 'lambda x: x'}\n", "scheduler: lf: ", "two arguments"
    ),
    "hyp: lf with an import": hyp(
        "scheduler: {lf: \"lambda x, y: __import__('os')\"}\n", "scheduler: lf: ", "__import__"
    ),
    "hyp: lf becomes negative": hyp(
        "scheduler: {lf: 'lambda x, y: 0.5 - x / y'}\n", "epoch ", "negative"
    ),
    # data.yaml.
    "data: missing": option("--data", "{}/none.yaml", message="{}/none.yaml: file not found"),
    "data: a directory": option(
        "--data", "{}/images", message="{}/images: a directory (need its data.yaml; it has none)"
    ),
    "data: empty": data_yaml("", "{}/data.yaml: key 'train' is missing"),
    "data: binary": data_yaml(b"\x89PNG\xff", "{}/data.yaml: line 1: not valid UTF-8"),
    "data: invalid YAML": data_yaml(
        "train: images/train\n  val: x\n", "{}/data.yaml: line 2, column "
    ),
    "data: names missing": data_yaml(
        "train: images/train\nval: images/val\n", "{}/data.yaml: key 'names' is missing"
    ),
    "data: names with a gap": data_yaml(
        DATA_YAML.replace("[a, b]", "{0: a, 2: b}"),
        "{}/data.yaml: names: found the ids [0, 2] (need 0 to 1 without a gap)",
    ),
    "data: names empty": data_yaml(DATA_YAML.replace("[a, b]", "[]"), "names: found none"),
    "data: duplicate name": data_yaml(
        DATA_YAML.replace("[a, b]", "[a, b, a]"), "names: found 'a' 2 times"
    ),
    "data: names are truth values": data_yaml(
        DATA_YAML.replace("[a, b]", "[yes, no]"), "{}/data.yaml: names: found True", "in quotes"
    ),
    "data: val missing": data_yaml(
        "train: images/train\nnames: [a, b]\n", "{}/data.yaml: key 'val' is missing"
    ),
    "data: directory missing": data_yaml(
        DATA_YAML.replace("images/val", "images/none"), "val: {}/images/none: not found"
    ),
    "data: directory without images": data_yaml(
        DATA_YAML.replace("images/train", "labels"), "train: no images found"
    ),
    "data: list of images missing": data_yaml(
        DATA_YAML.replace("images/train", "train.txt"), "train: {}/train.txt: not found"
    ),
    "data: epochs 0": data_yaml(DATA_YAML + "epochs: 0\n", "{}/data.yaml: epochs: found 0"),
    "data: imgsz too large": data_yaml(
        DATA_YAML + "imgsz: 1000000000\n", "{}/data.yaml: imgsz: found 1000000000"
    ),
    "data: remap to an unknown name": data_yaml(
        DATA_YAML + "remap: {c: d}\n", "{}/data.yaml: remap: c: found 'd'"
    ),
    "data: no box in train": Case(
        empty_files("labels/train"), (), ("train: no boxes found for the 12 images",)
    ),
    "data: no box in val": Case(
        empty_files("labels/val"), (), ("val: no boxes found for the 5 images",)
    ),
    "data: no readable image": Case(
        empty_files("images/val"), (), ("val: no valid images", "first of 5 errors")
    ),
    # Images and labels: with --strict-data the run does not begin.
    "labels: 4 fields": labels("0 .5 .5 .2\n", "line 1: found 4 fields (need 5"),
    "labels: 6 fields": labels("0 .5 .5 .2 .2 .9\n", "line 1: found 6 fields"),
    "labels: a letter": labels("0 .5 x .2 .2\n", "line 1: found '0 .5 x .2 .2'", "five numbers"),
    "labels: class -1": labels("-1 .5 .5 .2 .2\n", "line 1: found class -1 (allowed: 0 to 1)"),
    "labels: class 1.5": labels("1.5 .5 .5 .2 .2\n", "line 1: found class 1.5"),
    "labels: more classes than names": labels(
        "2 .5 .5 .2 .2\n", "line 1: found class 2 (allowed: 0 to 1)"
    ),
    "labels: center above 1": labels(
        "\n\n0 1.5 .5 .2 .2\n", "line 3: found the box 1.5 .5 .2 .2 (allowed: 0 to 1"
    ),
    "labels: center below 0": labels("0 .5 -.1 .2 .2\n", "line 1: found the box .5 -.1 .2 .2"),
    "labels: width 0": labels("0 .5 .5 0 .2\n", "line 1: ", "width and height above 0"),
    "labels: height negative": labels("0 .5 .5 .2 -.2\n", "line 1: found the box .5 .5 .2 -.2"),
    "labels: nan": labels("0 nan .5 .2 .2\n", "line 1: found the box nan"),
    "labels: inf": labels("0 .5 .5 inf .2\n", "line 1: found the box"),
    "labels: binary": labels(b"\xff\xfe\x00", "cannot be read"),
    "labels: a directory": strict(
        replace_by_dir("labels/train/3.txt"),
        "{}/labels/train/3.txt: cannot be read",
        count=2,
    ),
    "labels: no image": strict(
        write("labels/train/cat.txt", "0 .5 .5 .2 .2\n"),
        "train: {}/labels/train/cat.txt: no image for these labels",
    ),
    "image: 0 bytes": strict(
        write("images/train/3.png", b""),
        "{}/images/train/3.png: cannot be read: found an empty file",
    ),
    "image: text": strict(
        write("images/train/x.jpg", "<html>"),
        "{}/images/train/x.jpg: cannot be read: found an HTML page",
    ),
    "image: half a JPEG": strict(
        write_half_image("images/train/x.jpg", "JPEG"),
        "{}/images/train/x.jpg: cannot be read: image file is truncated",
    ),
    "image: half a PNG": strict(
        write_half_image("images/train/x.png", "PNG"), "{}/images/train/x.png: cannot be read: "
    ),
    "image: half a WebP": strict(
        write_half_image("images/train/x.webp", "WEBP"), "{}/images/train/x.webp: "
    ),
    "image: half a BMP": strict(
        write_half_image("images/train/x.bmp", "BMP"), "{}/images/train/x.bmp: cannot be read"
    ),
    "image: decompression bomb": strict(
        lambda folder: png_bomb(folder / "images/train/x.png"),
        "{}/images/train/x.png: too large to decode",
    ),
    "coco: invalid JSON": coco("{", "not a COCO json"),
    "coco: categories missing": coco(
        {key: COCO[key] for key in ("images", "annotations")}, "'categories' is missing"
    ),
    "coco: unknown class": coco(COCO | {"categories": [{"id": 1, "name": "z"}]}, "class 'z'"),
    "coco: unknown category": coco_with(
        "annotations",
        COCO["annotations"][0] | {"category_id": 7},
        "train: {}/a.json: annotation 1: found category_id 7",
    ),
    "coco: unknown image": coco_with(
        "annotations",
        COCO["annotations"][0] | {"image_id": 9},
        "train: {}/a.json: annotation 1: image_id 9",
    ),
    "coco: box outside of the image": coco_with(
        "annotations",
        COCO["annotations"][0] | {"bbox": [90, 1, 5, 5]},
        "train: {}/a.json: annotation 1: ",
        "covers nothing",
    ),
    "coco: image missing": coco_with(
        "images",
        {"id": 2, "file_name": "cat.png", "width": 9, "height": 9},
        "train: {}/images/train/cat.png: cannot be read: No such file",
    ),
    "voc: invalid XML": voc("<annotation>", "not a VOC xml", count=1),
    "voc: unknown class": voc(
        VOC_XML.format(name="z", xmax=40),
        "object 0: found the class 'z' (known: ['a', 'b']; use `remap`",
    ),
    "voc: letters for a number": voc(VOC_XML.format(name="a", xmax="far"), "need four numbers"),
    # --resume.
    "resume: no run": option("--resume", message="--resume: no weights/last.pt found below"),
    "resume: missing": option("--resume", "{}/none.pt", message="{}/none.pt: cannot be read"),
    "resume: not a run directory": option(
        "--resume", "{}", message="{}/weights/last.pt: cannot be read"
    ),
    "resume: text": option(
        "--resume", "{}/data.yaml", message="{}/data.yaml: not a checkpoint of this project"
    ),
    "resume: pickled code": resume(
        {"format": FORMAT, "model": Payload()}, "not a checkpoint of this project"
    ),
    "resume: checkpoint of another project": resume(
        {"epoch": 3, "state_dict": {}}, "not a checkpoint of this project"
    ),
    "resume: checkpoint of a newer version": resume(
        {"format": 99}, "format 99", f"reads format {FORMAT}"
    ),
    "resume: no training state": resume({"format": FORMAT, "args": {}}, "no training state"),
    "resume: incomplete state": resume(
        INCOMPLETE_CHECKPOINT, "has no class_names, data_fingerprint"
    ),
}
SUBPROCESS_CASES = [
    "unknown option", "imgsz too large", "device unknown", "model unknown", "weights are text",
    "project is a file", "hyp: missing", "hyp: binary", "hyp: misspelled key",
    "hyp: duplicate key", "hyp: invalid YAML", "hyp: lf with an import", "data: missing",
    "data: names with a gap", "data: directory missing", "data: no box in val", "labels: 4 fields",
    "image: half a JPEG", "resume: no run", "resume: pickled code",
    "resume: checkpoint of another project",
]  # fmt: skip


def prepare(case: Case, folder: Path) -> tuple[list[str], list[str]]:
    """Write and edit the dataset; return the arguments and the parts of the error message."""
    write_tiny(folder)
    if case.edit:
        case.edit(folder)
    arguments = [*case.arguments]
    if "--project" not in arguments:
        arguments = ["--project", "{}/runs", *arguments]
    if "--data" not in arguments and "--resume" not in arguments:
        arguments = ["--data", "{}/data.yaml", *arguments]
    return (
        [word.replace("{}", str(folder)) for word in arguments],
        [part.replace("{}", str(folder)) for part in case.message],
    )


def list_files(folder: Path) -> set[Path]:
    """Return all paths below `folder` except the caches of slow scans (see data/cache.py)."""
    return {path for path in folder.rglob("*") if not path.name.endswith(".cache.npz")}


def check_output(case: Case, message: list[str], status: int, stdout: str, stderr: str) -> None:
    """Assert that a run ended with the error of its case."""
    assert status == 2, stderr
    assert stdout == ""
    if "--strict-data" not in case.arguments:
        assert_one_line_error(stderr, *message)
        assert len(stderr) < 3000
    assert stderr.splitlines()[-1].startswith("train.py: "), stderr
    assert "Traceback" not in stderr, stderr
    for part in message:
        assert part in stderr, f"{part!r} is not in: {stderr}"


@pytest.mark.parametrize("name", CASES)
def test_train_invalid_input_is_one_line(name, tmp_path, capsys, monkeypatch):
    case = CASES[name]
    arguments, message = prepare(case, tmp_path)
    files = list_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    status = train.main(arguments)
    check_output(case, message, status, *capsys.readouterr())
    assert list_files(tmp_path) == files  # no run directory, nothing else


def test_train_invalid_input_in_a_new_process_is_one_line(tmp_path):
    """Some of the cases as a user meets them, two at a time."""

    def check(name: str) -> None:
        case, folder = CASES[name], tmp_path / str(SUBPROCESS_CASES.index(name))
        arguments, message = prepare(case, folder)
        files = list_files(folder)
        done = run_python([ROOT / "train.py", *arguments], cwd=folder)
        check_output(case, message, done.returncode, done.stdout, done.stderr)
        assert list_files(folder) == files

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, SUBPROCESS_CASES))


def test_data_errors_are_counted_and_the_first_shown(tmp_path, capsys):
    """30 invalid lines and two invalid images: 20 messages and a count; the run uses the rest."""
    data = write_tiny(tmp_path)
    labels_file = tmp_path / "labels" / "train" / "3.txt"
    labels_file.write_text("9 .5 .5 .2 .2\n" * 30)
    (tmp_path / "images" / "train" / "x.jpg").write_text("text")
    (tmp_path / "labels" / "train" / "x.txt").write_text("")
    assert run_train(data=data, epochs=1, noplots=True, project=tmp_path / "runs") == 0
    stdout, stderr = capsys.readouterr()
    lines = without_short_run_warnings(stderr).splitlines()
    assert len(lines) == 21 and all(line.startswith("train: ") for line in lines)
    assert lines[19].startswith(f"train: {labels_file}: line 20: found class 9 (allowed: 0 to 1)")
    assert "skipped 32 invalid images or annotations" in lines[20]
    assert "11 + 5 images" in stdout


def test_train_accepts_unusual_input(tmp_path, capsys):
    """Image formats and file names that are easily mishandled.

    Also images without a label file or with a common one, an imgsz that is rounded, a batch of the
    whole training set and val images in train: for each there is a warning.
    """
    write_tiny(tmp_path)
    images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    Image.fromarray(noise[:1, :1]).save(images / "one pixel.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 256).save(images / "16 bit.png")
    image.save(images / "rgba.png", transparency=(1, 2, 3))
    image.convert("P").save(images / "palette.png")
    image.convert("CMYK").save(images / "cmyk.jpg")
    Image.fromarray(noise[..., 0]).save(images / "gray.jpg")
    frames = [Image.fromarray(np.roll(noise, i)) for i in range(3)]
    frames[0].save(images / "animated.gif", save_all=True, append_images=frames[1:])
    image.save(images / "größe 猫 #1 (копия).JPG")
    image.save(images / f"{'x' * 200}.png")
    image.save(images / "3.jpeg")  # next to 3.png: both have the labels of 3.txt
    (labels / "größe 猫 #1 (копия).txt").write_text("0 .5 .5 .5 .5\r\n\r\n1 .25 .25 .5 .5")
    (labels / "one pixel.txt").write_text("0 .5 .5 1 1\n")
    data = tmp_path / "data.yaml"
    data.write_text("train: images/train\nval: images\nnames: [größe, 'a: b']\n")
    name, project = "mit Leer zeichen", tmp_path / "runs"
    options = {"data": data, "imgsz": 50, "batch_size": 99, "name": name, "project": project}
    assert run_train(**options, epochs=2, strict_data=True) == 0
    stdout, stderr = capsys.readouterr()
    *notes, both_splits, imgsz, batch_size = without_short_run_warnings(stderr).splitlines()
    for split in ("train", "val"):
        assert f"{split}: images without a label file, taken as images without objects: 7" in notes
        assert sum(n.startswith(f"{split}: ") and "same label file" in n for n in notes) == 1
    assert len(notes) == 4
    assert both_splits.startswith("val: 22 of 27 images are in train, too")
    assert imgsz.startswith("--imgsz 50: ") and "32" in imgsz and "64" in imgsz
    assert batch_size.startswith("--batch-size 99: ") and "22" in batch_size
    assert "22 + 27 images at 64 px" in stdout and "größe" in stdout
    assert len(read_results(project / name)) == 2


def test_train_writes_only_its_run_dir(tmp_path, monkeypatch):
    """The data.yaml names images elsewhere, some by a link, and the working directory is another.

    No file in these directories changes.
    """
    data = write_tiny(tmp_path / "tiny")
    val_images = tmp_path / "tiny" / "images" / "val"
    val_images.rename(tmp_path / "far")
    val_images.symlink_to(tmp_path / "far")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text(
        "".join(f"../tiny/images/train/{i}.png\n" for i in range(12))
    )
    data.write_text("train: ../lists/train.txt\nval: images/val\nnames: [a, b]\n")
    working_dir = tmp_path / "here"
    working_dir.mkdir()
    monkeypatch.chdir(working_dir)
    monkeypatch.setattr(cache, "MIN_SCAN_SECONDS", math.inf)  # no cache in the dataset

    def modification_times() -> dict[Path, int]:
        paths = {*tmp_path.rglob("*")} - {working_dir, *working_dir.rglob("*")}
        return {path: path.lstat().st_mtime_ns for path in paths}

    before = modification_times()
    assert run_train(data=data, epochs=1) == 0
    assert modification_times() == before
    assert [path.name for path in working_dir.iterdir()] == ["runs"]


def test_torchrun_port_in_use_leaves_nothing(tmp_path):
    """torchrun itself reports it before anything is written."""
    arguments = train_args(data=write_tiny(tmp_path), project=tmp_path / "runs")
    launch = [argument for argument in TORCHRUN if argument != "--standalone"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        address = ["--master_addr", "127.0.0.1", "--master_port", port]
        command = [*launch, "2", *address, ROOT / "train.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "EADDRINUSE" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("is_zip", [False, True])
def test_train_weights_with_pickled_code_are_refused(is_zip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights.pt"
    if is_zip:
        torch.save({"format": FORMAT, "ema": Payload()}, weights)
    else:
        weights.write_bytes(pickle.dumps(Payload()))
    assert run_train(data=write_tiny(tmp_path / "data"), weights=weights) == 2
    assert_one_line_error(
        capsys.readouterr().err, f"{weights}: not a checkpoint of this project, or corrupted"
    )
    assert not (tmp_path / "ran").exists() and not (tmp_path / "runs").exists()
