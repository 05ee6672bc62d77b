"""What a user's mistake gets: one sentence on stderr, exit status 2, and nothing half-made; bad data are named, file and line."""

import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import rows, write_tiny
from PIL import Image
from test_formats import png_bomb

import train

ROOT = Path(__file__).parents[1]
YAML = "train: images/train\nval: images/val\nnames: [a, b]\n"


class Mistake(NamedTuple):
    """What is done to a good data set in `folder`, and what is asked for; `{}` in a word stands for the folder."""

    prepare: Callable[[Path], object] | None
    arguments: tuple[str, ...]
    says: tuple[str, ...]


def written(name: str, content: str | bytes) -> Callable[[Path], object]:
    content = content.encode() if isinstance(content, str) else content

    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return prepare


def asked(*arguments: str, says: str) -> Mistake:
    return Mistake(None, arguments, (says,))


def hyp(content: str | bytes, *says: str) -> Mistake:
    return Mistake(written("h.yaml", content), ("--hyp", "{}/h.yaml"), ("{}/h.yaml: ", *says))


def data(content: str | bytes, *says: str) -> Mistake:
    return Mistake(written("data.yaml", content), (), says)


def coco(content: object, *says: str) -> Mistake:
    def prepare(folder: Path) -> None:
        (folder / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
        (folder / "data.yaml").write_text(
            "train: {annotations: a.json, images: images/train}\nval: images/val\nnames: [a, b]\n"
        )

    return Mistake(prepare, (), ("{}/a.json: ", *says))


def voc(content: str, *says: str) -> Mistake:
    """A good xml, and one with `content`."""

    def prepare(folder: Path) -> None:
        (folder / "xml").mkdir()
        (folder / "xml" / "0.xml").write_text(XML.format(name="a", xmax=40))
        (folder / "xml" / "1.xml").write_text(content)
        (folder / "data.yaml").write_text(
            "train: {annotations: xml, images: images/train}\nval: images/val\nnames: [a, b]\n"
        )

    return faulty(prepare, "{}/xml/1.xml: ", *says)


def faulty(prepare: Callable[[Path], object], *says: str) -> Mistake:
    return Mistake(
        prepare,
        ("--strict-data",),
        (*says, "1 faults in all", "1 faults, --strict-data allows none"),
    )


def labels(content: str | bytes, *says: str) -> Mistake:
    return faulty(written("labels/train/3.txt", content), "train: {}/labels/train/3.txt: ", *says)


def emptied(name: str) -> Callable[[Path], object]:
    return lambda folder: [path.write_text("") for path in (folder / name).iterdir()]


def truncated(name: str, kind: str) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        Image.fromarray(
            np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
        ).save(folder / name, kind)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return prepare


def instead_of(name: str, prepare: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink(), prepare(folder)]


def checkpoint(state: object) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        (folder / "old" / "weights").mkdir(parents=True)
        torch.save(state, folder / "old" / "weights" / "last.pt")

    return prepare


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


XML = (
    "<annotation><filename>0.png</filename><size><width>80</width><height>64</height></size><object><name>{name}</name>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{xmax}</xmax><ymax>30</ymax></bndbox></object></annotation>"
)
IMAGES = [{"id": 1, "file_name": "0.png", "width": 80, "height": 64}]
KINDS = [{"id": 1, "name": "a"}]
BOX = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 30, 30]}
RESUME = ("--resume", "{}/old")
CRASHING = {
    "format": 3,
    "args": {},
    "hyp": {},
    "epoch": 1,
    "finished": False,
    "stopped": False,
    "optimizer": {},
}

MISTAKES = {
    # The command line.
    "unknown option": asked("--epoch-count", "3", says="--epoch-count"),
    "epochs 0": asked("--epochs", "0", says="--epochs: found '0', need a whole number from 1"),
    "epochs -1": asked("--epochs", "-1", says="--epochs: found '-1'"),
    "epochs 1.5": asked("--epochs", "1.5", says="--epochs: found '1.5'"),
    "batch size 0": asked("--batch-size", "0", says="--batch-size: found '0'"),
    "batch size in words": asked("--batch-size", "many", says="--batch-size: found 'many'"),
    "batch size auto without a GPU": asked("--batch-size", "auto", says="--batch-size auto"),
    "imgsz 0": asked("--imgsz", "0", says="--imgsz: found '0', need a whole number from 32"),
    "imgsz huge": asked(
        "--imgsz",
        "1000000000",
        says="--imgsz: found '1000000000', need a whole number from 32 to 16384",
    ),
    "imgsz of many digits": asked("--imgsz", "9" * 5000, says="--imgsz: found '999"),
    "imgsz from high to low": asked("--imgsz", "96-64", says="a lower side before a higher one"),
    "seed below 0": asked("--seed", "-3", says="--seed: found '-3'"),
    "workers below 0": asked("--workers", "-1", says="--workers: found '-1'"),
    "no such GPU": asked("--device", "cuda:99", says="cuda:99"),
    "no such device": asked("--device", "toaster", says="toaster"),
    "save-every in words": asked("--save-every", "often", says="--save-every: found 'often'"),
    "save-every nan": asked("--save-every", "nan", says="--save-every: found 'nan'"),
    "patience below 0": asked("--patience", "-1", says="--patience"),
    "freeze what": asked("--freeze", "head", says="--freeze"),
    "freeze nothing": asked("--freeze", "0", says="--freeze"),
    "freeze more than there is": asked("--freeze", "999", says="--freeze 999"),
    "cache where": asked("--cache", "tape", says="--cache"),
    "unknown model": asked("--model", "yolo-z", says="--model yolo-z: unknown; known are yolo-n"),
    "unknown torchvision model": asked(
        "--model", "torchvision/yolo", says="--model torchvision/yolo: unknown; known are"
    ),
    "unknown backbone": asked("--backbone", "resnet18", says="--backbone resnet18: unknown"),
    "a backbone without stages": asked(
        "--backbone", "torchvision/vit_b_16", says="torchvision/vit_b_16"
    ),
    "pretrained what": asked("--pretrained", says="--pretrained: is for --backbone"),
    "weights that are not there": asked(
        "--weights", "{}/none.pt", says="{}/none.pt: cannot be read"
    ),
    "weights that are a folder": asked("--weights", "{}", says="{}: cannot be read"),
    "weights that are text": asked(
        "--weights", "{}/data.yaml", says="{}/data.yaml: is no checkpoint of this project"
    ),
    "DEFAULT weights of our own model": asked("--weights", "DEFAULT", says="--weights DEFAULT"),
    "batch norm over processes on the CPU": asked(
        "--sync-bn", "--device", "cpu", says="--sync-bn: needs CUDA"
    ),
    "a name that is none": asked("--name", "", says="--name: found ''"),
    "a name that leads elsewhere": asked("--name", "../..", says="--name: found '../..'"),
    "a project that is a file": asked("--project", "{}/data.yaml", says="--project {}/data.yaml: "),
    "a project below a file": asked(
        "--project", "{}/data.yaml/runs", says="--project {}/data.yaml/runs: "
    ),
    "a project that cannot be written": asked(
        "--project", "/proc/runs", says="--project /proc/runs: "
    ),
    # The hyp file.
    "no hyp file": asked("--hyp", "{}/none.yaml", says="{}/none.yaml: is not there"),
    "a hyp file that is a folder": asked("--hyp", "{}", says="{}: is not there"),
    "a hyp file with a name that is too long": asked("--hyp", "x" * 300, says="File name too long"),
    "hyp: binary": hyp(b"\xff\xfe\x00\x80", "is no text in UTF-8"),
    "hyp: a list": hyp("- 1\n- 2\n", "found a list, need lines of 'key: value'"),
    "hyp: a text": hyp("lr0", "found a str"),
    "hyp: unknown key": hyp("zzz: 1\n", "unknown key 'zzz'; known are optimizer, lr0"),
    "hyp: misspelt key": hyp("momentun: 0.9\n", "unknown key 'momentun'; did you mean 'momentum'?"),
    "hyp: misspelt key of a block": hyp(
        "scheduler: {warmup_epochs: 3}\n", "did you mean 'warmup_epoch'?"
    ),
    "hyp: a text for a number": hyp("lr0: fast\n", "lr0: found 'fast'"),
    "hyp: yes for a number": hyp("lr0: true\n", "lr0: found True"),
    "hyp: below its range": hyp("lr0: 0\n", "lr0: found 0"),
    "hyp: above its range": hyp("mosaic: 1.5\n", "mosaic: found 1.5"),
    "hyp: nan": hyp("lr0: .nan\n", "lr0: found nan"),
    "hyp: inf": hyp("weight_decay: .inf\n", "weight_decay: found inf"),
    "hyp: a key twice": hyp("lr0: 0.1\nlr0: 0.2\n", "line 2, column 1: key 'lr0' is given twice"),
    "hyp: no YAML": hyp("lr0: [1\nbox: 2\n", "line 2, column 4: "),
    "hyp: a tab": hyp("scheduler:\n\twarmup_epoch: 1\n", "line 2, column 1: "),
    "hyp: a tag": hyp("!!python/object/apply:os.system ['true']\n", "line 1, column 1: "),
    "hyp: aliases": hyp("a: &a [1]\nb: [" + "*a, " * 30 + "]\n", "found more than 20 aliases"),
    "hyp: unknown schedule": hyp(
        "scheduler: {name: cosine}\n", "name: found 'cosine', allowed are cawb"
    ),
    "hyp: a schedule without its arguments": hyp(
        "scheduler: {name: poly}\n", "learning_rate_decay_a' is missing"
    ),
    "hyp: pairs that fall": hyp(
        "scheduler: {name: manual, learning_rate_args: '9:1,5:2'}\n", "must rise"
    ),
    "hyp: a restart at 200%": hyp("scheduler: {steps: [200%]}\n", "found '200%'"),
    "hyp: lf of one argument": hyp(
        "scheduler: {lf: 'lambda x: x'}\n", "scheduler: lf: ", "two arguments"
    ),
    "hyp: lf that calls": hyp(
        "scheduler: {lf: \"lambda x, y: __import__('os')\"}\n", "scheduler: lf: ", "__import__"
    ),
    "hyp: lf that becomes negative": hyp(
        "scheduler: {lf: 'lambda x, y: 0.5 - x / y'}\n", "epoch ", "not negative"
    ),
    # data.yaml.
    "no data file": asked("--data", "{}/none.yaml", says="{}/none.yaml: is not there"),
    "a data file that is a folder": asked("--data", "{}/images", says="{}/images: is not there"),
    "data: empty": data("", "{}/data.yaml: key 'train' is missing"),
    "data: binary": data(b"\x89PNG\xff", "is no text in UTF-8"),
    "data: no YAML": data("train: images/train\n  val: x\n", "{}/data.yaml: line 2, column "),
    "data: no names": data("train: images/train\nval: images/val\n", "key 'names' is missing"),
    "data: names with a gap": data(
        YAML.replace("[a, b]", "{0: a, 2: b}"), "found the ids [0, 2], need 0 to 1 without a gap"
    ),
    "data: no name": data(YAML.replace("[a, b]", "[]"), "names: found none"),
    "data: a name twice": data(YAML.replace("[a, b]", "[a, b, a]"), "names: found 'a' 2 times"),
    "data: names that are numbers": data(YAML.replace("[a, b]", "[1, 2]"), "{}/data.yaml: names"),
    "data: no val": data("train: images/train\nnames: [a, b]\n", "key 'val' is missing"),
    "data: a folder that is not there": data(
        YAML.replace("images/val", "images/none"), "val: {}/images/none: is not there"
    ),
    "data: a folder without pictures": data(
        YAML.replace("images/train", "labels"), "train: no picture found"
    ),
    "data: a list of pictures that is not there": data(
        YAML.replace("images/train", "train.txt"), "{}/train.txt: is not there"
    ),
    "data: epochs 0": data(YAML + "epochs: 0\n", "{}/data.yaml: epochs: found 0"),
    "data: imgsz huge": data(YAML + "imgsz: 1000000000\n", "{}/data.yaml: imgsz: found 1000000000"),
    "data: remap to an unknown name": data(YAML + "remap: {c: d}\n", "remap: c: found 'd'"),
    "no box in train": Mistake(
        emptied("labels/train"), (), ("train: no box found for the 12 pictures",)
    ),
    "no box in val": Mistake(emptied("labels/val"), (), ("val: no box found for the 5 pictures",)),
    "no picture that can be read": Mistake(
        emptied("images/val"), (), ("val: no picture found", "first of 5 faults")
    ),
    # What lies in the data: with --strict-data the run does not begin.
    "labels: 4 fields": labels("0 .5 .5 .2\n", "line 1: found 4 fields, need 5"),
    "labels: 6 fields": labels("0 .5 .5 .2 .2\n0 .5 .5 .2 .2 .9\n", "line 2: found 6 fields"),
    "labels: letters": labels("0 .5 x .2 .2\n", "line 1: found '0 .5 x .2 .2', need five numbers"),
    "labels: class -1": labels("-1 .5 .5 .2 .2\n", "line 1: found class -1, allowed are 0 to 1"),
    "labels: class 1.5": labels("1.5 .5 .5 .2 .2\n", "line 1: found class 1.5"),
    "labels: more classes than names": labels(
        "2 .5 .5 .2 .2\n", "line 1: found class 2, allowed are 0 to 1"
    ),
    "labels: beyond 1": labels(
        "\n\n0 1.5 .5 .2 .2\n", "line 3: found the box 1.5 .5 .2 .2, allowed is 0..1"
    ),
    "labels: below 0": labels("0 .5 -.1 .2 .2\n", "line 1: found the box .5 -.1 .2 .2"),
    "labels: no width": labels("0 .5 .5 0 .2\n", "line 1: ", "width and height above 0"),
    "labels: negative height": labels("0 .5 .5 .2 -.2\n", "line 1: found the box .5 .5 .2 -.2"),
    "labels: nan": labels("0 nan .5 .2 .2\n", "line 1: found the box nan"),
    "labels: inf": labels("0 .5 .5 inf .2\n", "line 1: found the box"),
    "labels: binary": labels(b"\xff\xfe\x00", "cannot be read"),
    "labels: a folder": faulty(
        lambda folder: [
            (folder / "labels/train/3.txt").unlink(),
            (folder / "labels/train/3.txt").mkdir(),
        ],
        "{}/labels/train/3.txt: cannot be read",
    ),
    "labels without a picture": faulty(
        written("labels/train/cat.txt", "0 .5 .5 .2 .2\n"),
        "train: {}/labels/train/cat.txt: there is no picture",
    ),
    "a picture of 0 bytes": faulty(
        written("images/train/3.png", b""), "{}/images/train/3.png: is no picture"
    ),
    "a text called .jpg": faulty(
        written("images/train/x.jpg", "<html>"), "{}/images/train/x.jpg: is no picture"
    ),
    "half a JPEG": faulty(
        truncated("images/train/x.jpg", "JPEG"),
        "{}/images/train/x.jpg: cannot be read: image file is truncated",
    ),
    "half a PNG": faulty(
        truncated("images/train/x.png", "PNG"), "{}/images/train/x.png: cannot be read: "
    ),
    "half a WebP": faulty(truncated("images/train/x.webp", "WEBP"), "{}/images/train/x.webp: "),
    "half a BMP": faulty(
        truncated("images/train/x.bmp", "BMP"), "{}/images/train/x.bmp: cannot be read"
    ),
    "a picture that no memory holds": faulty(
        lambda folder: png_bomb(folder / "images/train/x.png"),
        "{}/images/train/x.png: is too large to decode",
    ),
    "coco: no JSON": coco("{", "is no COCO json"),
    "coco: no categories": coco(
        {"images": IMAGES, "annotations": [BOX]}, "'categories' is missing"
    ),
    "coco: unknown name": coco(
        {"images": IMAGES, "annotations": [BOX], "categories": [{"id": 1, "name": "z"}]},
        "class 'z'",
    ),
    "coco: unknown category": coco(
        {"images": IMAGES, "annotations": [BOX, BOX | {"category_id": 7}], "categories": KINDS},
        "annotation 1: found category_id 7",
    )._replace(arguments=("--strict-data",)),
    "coco: unknown picture": coco(
        {"images": IMAGES, "annotations": [BOX, BOX | {"image_id": 9}], "categories": KINDS},
        "annotation 1: its image_id 9",
    )._replace(arguments=("--strict-data",)),
    "coco: a box outside": coco(
        {
            "images": IMAGES,
            "annotations": [BOX, BOX | {"bbox": [90, 1, 5, 5]}],
            "categories": KINDS,
        },
        "covers nothing",
    )._replace(arguments=("--strict-data",)),
    "coco: no such picture": coco(
        {
            "images": [*IMAGES, {"id": 2, "file_name": "cat.png", "width": 9, "height": 9}],
            "annotations": [BOX],
            "categories": KINDS,
        }
    )._replace(
        arguments=("--strict-data",),
        says=("{}/images/train/cat.png: cannot be read: No such file",),
    ),
    "voc: no XML": voc("<annotation>", "is no VOC xml"),
    "voc: unknown name": voc(
        XML.format(name="z", xmax=40), "object 0: found the name 'z', known are ['a', 'b']"
    ),
    "voc: letters": voc(XML.format(name="a", xmax="far"), "need four numbers"),
    # Going on.
    "resume: no run": asked("--resume", says="--resume: there is no weights/last.pt below"),
    "resume: not there": asked("--resume", "{}/none.pt", says="{}/none.pt: cannot be read"),
    "resume: a folder that is no run": asked(
        "--resume", "{}", says="{}/weights/last.pt: cannot be read"
    ),
    "resume: a text": asked(
        "--resume", "{}/data.yaml", says="{}/data.yaml: is no checkpoint of this project"
    ),
    "resume: code": Mistake(
        checkpoint({"format": 3, "model": Payload()}),
        RESUME,
        ("last.pt: is no checkpoint of this project",),
    ),
    "resume: another project's": Mistake(
        checkpoint({"epoch": 3, "state_dict": {}}), RESUME, ("is no checkpoint of this",)
    ),
    "resume: a newer version's": Mistake(
        checkpoint({"format": 99}), RESUME, ("has format 99, this version reads",)
    ),
    "resume: a model alone": Mistake(
        checkpoint({"format": 3, "args": {}}), RESUME, ("without the state of its run",)
    ),
    "resume: a state that lacks": Mistake(
        checkpoint(CRASHING),
        (*RESUME, "--project", "{}"),
        ("last.pt: holds no state that this version can go on from: names, content, ",),
    ),
}
COMMANDS = [
    "unknown option", "imgsz huge", "no such device", "unknown model", "weights that are text", "a project that is a file",
    "no hyp file", "hyp: binary", "hyp: misspelt key", "hyp: a key twice", "hyp: no YAML", "hyp: lf that calls", "no data file",
    "data: names with a gap", "data: a folder that is not there", "no box in val", "labels: 4 fields", "half a JPEG",
    "resume: no run", "resume: code", "resume: another project's",
]  # fmt: skip


def made(mistake: Mistake, folder: Path) -> tuple[list[str], list[str]]:
    """Make it: the arguments, and what is to be said."""
    write_tiny(folder)
    if mistake.prepare:
        mistake.prepare(folder)
    options = {"--data": "{}/data.yaml", "--project": "{}/runs"}
    arguments = [
        word for option in options.items() if option[0] not in mistake.arguments for word in option
    ]
    if "--resume" in mistake.arguments:
        arguments = arguments[2:]
    return [word.replace("{}", str(folder)) for word in [*arguments, *mistake.arguments]], [
        words.replace("{}", str(folder)) for words in mistake.says
    ]


def check(
    mistake: Mistake,
    status: int,
    out: str,
    error: str,
    says: list[str],
    before: set[Path],
    after: set[Path],
) -> None:
    assert status == 2, (status, error)
    lines = error.splitlines()
    assert lines[-1].startswith("train.py: ") and "Traceback" not in error and out == ""
    assert all(words in error for words in says), error
    if "--strict-data" not in mistake.arguments:
        assert len(lines) == 1 and len(error) < 3000, error
    assert after == before  # no run folder, no file


def test_there_are_enough():
    assert len(MISTAKES) >= 80 and len(set(COMMANDS) & MISTAKES.keys()) >= 20


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake(name, tmp_path, capsys, monkeypatch):
    arguments, says = made(MISTAKES[name], tmp_path)
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    status = train.main(arguments)
    check(MISTAKES[name], status, *capsys.readouterr(), says, before, set(tmp_path.rglob("*")))


def test_mistakes_from_the_command_line(tmp_path):
    """As a user makes them, two at a time."""

    def start(name: str) -> None:
        folder = tmp_path / str(COMMANDS.index(name))
        arguments, says = made(MISTAKES[name], folder)
        before = set(folder.rglob("*"))
        done = subprocess.run(
            [sys.executable, ROOT / "train.py", *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        check(
            MISTAKES[name],
            done.returncode,
            done.stdout,
            done.stderr,
            says,
            before,
            set(folder.rglob("*")),
        )

    with ThreadPoolExecutor(2) as pool:
        assert len([*pool.map(start, COMMANDS)]) == len(COMMANDS)


def test_the_first_faults_are_shown_and_all_are_counted(tmp_path, capsys):
    """30 bad lines and a bad picture: 20 sentences, and how many there are; the run goes on with what is good, and says so."""
    data = write_tiny(tmp_path)
    (tmp_path / "labels/train/3.txt").write_text("9 .5 .5 .2 .2\n" * 30)
    (tmp_path / "images/train/x.jpg").write_text("text")
    quick = [
        "--epochs",
        "1",
        "--imgsz",
        "64",
        "--device",
        "cpu",
        "--noplots",
        "--project",
        str(tmp_path / "runs"),
    ]
    assert train.main(["--data", str(data), *quick]) == 0
    out, error = capsys.readouterr()
    lines = error.splitlines()
    assert len(lines) == 21 and all(line.startswith("train: ") for line in lines)
    assert lines[19].startswith(
        f"train: {tmp_path}/labels/train/3.txt: line 20: found class 9, allowed are 0 to 1"
    )
    assert lines[20] == "train: 31 faults in all; what they name is left out"
    assert "12 + 5 pictures" in out


def test_what_is_unusual_but_no_mistake(tmp_path, capsys):
    """Pictures and names that other trainers trip over, an imgsz that is rounded, a batch of all, val in train: each is said."""
    write_tiny(tmp_path)
    images, labels = tmp_path / "images/train", tmp_path / "labels/train"
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise[:1, :1]).save(images / "one pixel.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 256).save(images / "16 bit.png")
    Image.fromarray(noise).save(images / "rgba.png", transparency=(1, 2, 3))
    Image.fromarray(noise).convert("P").save(images / "palette.png")
    Image.fromarray(noise).convert("CMYK").save(images / "cmyk.jpg")
    Image.fromarray(noise[..., 0]).save(images / "grey.jpg")
    frames = [Image.fromarray(np.roll(noise, i)) for i in range(3)]
    frames[0].save(images / "animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(noise).save(images / "größe 猫 #1 (копия).JPG")
    Image.fromarray(noise).save(images / f"{'x' * 200}.png")
    Image.fromarray(noise).save(images / "3.jpeg")  # beside 3.png: both have the labels of 3.txt
    (labels / "größe 猫 #1 (копия).txt").write_text("0 .5 .5 .5 .5\r\n\r\n1 .25 .25 .5 .5")
    (labels / "one pixel.txt").write_text("0 .5 .5 1 1\n")
    (tmp_path / "data.yaml").write_text(
        "train: images/train\nval: images\nnames: [größe, 'a: b']\n"
    )
    arguments = [
        "--epochs",
        "2",
        "--imgsz",
        "50",
        "--batch-size",
        "99",
        "--device",
        "cpu",
        "--name",
        "mit Leer zeichen",
    ]
    assert (
        train.main(
            [
                "--data",
                str(tmp_path / "data.yaml"),
                *arguments,
                "--project",
                str(tmp_path / "runs"),
                "--strict-data",
            ]
        )
        == 0
    )
    out, error = capsys.readouterr()
    assert error.splitlines() == [
        "val: 22 of its 27 pictures are in train, too; metrics say little of pictures that a model has learned",
        "imgsz 50: a side is a multiple of 32, so it is 64",
        "--batch-size 99: there are 22 pictures to train on, so a batch has 22",
    ]
    assert "22 + 27 pictures at 64 px" in out and "größe" in out
    assert len(rows(tmp_path / "runs" / "mit Leer zeichen")) == 2


def test_nothing_is_written_but_the_run(tmp_path, monkeypatch):
    """The data file names pictures in other folders, some by a link; the command is given from elsewhere."""
    data = write_tiny(tmp_path / "tiny")
    (tmp_path / "tiny/images/val").rename(tmp_path / "far")
    (tmp_path / "tiny/images/val").symlink_to(tmp_path / "far")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text(
        "".join(f"../tiny/images/train/{i}.png\n" for i in range(12))
    )
    data.write_text("train: ../lists/train.txt\nval: images/val\nnames: [a, b]\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert (
        train.main(["--data", str(data), "--epochs", "1", "--imgsz", "64", "--device", "cpu"]) == 0
    )
    after = {
        path: path.lstat().st_mtime_ns
        for path in tmp_path.rglob("*")
        if tmp_path / "here" not in path.parents
    }
    assert after | {tmp_path / "here": 0} == before | {tmp_path / "here": 0}
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["runs"]


def test_a_port_in_use(tmp_path):
    """torchrun says so itself, before anything is made."""
    data = write_tiny(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        launch = [
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--master_addr",
            "127.0.0.1",
        ]
        port = ["--master_port", str(taken.getsockname()[1])]
        command = [
            sys.executable,
            *launch,
            *port,
            ROOT / "train.py",
            "--data",
            data,
            "--project",
            tmp_path / "runs",
        ]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "EADDRINUSE" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_pickle_is_refused_and_does_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"format": 3, "average": Payload()}, tmp_path / "zip.pt")
    data = write_tiny(tmp_path / "data")
    for name in ("raw.pt", "zip.pt"):
        assert train.main(["--data", str(data), "--weights", str(tmp_path / name)]) == 2
        assert (
            capsys.readouterr().err
            == f"train.py: {tmp_path / name}: is no checkpoint of this project, or is damaged\n"
        )
    assert not (tmp_path / "ran").exists() and not (tmp_path / "runs").exists()
