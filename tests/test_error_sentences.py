"""What an error says to the person who made it: what was typed, where, and what to do."""

import json
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, write_tiny

import export
from data.config import read_data_config
from data.formats import invalid_count, read_split, read_train_val
from data.locate import find_data_yaml
from data.sampler import EpochBatchSampler
from models import load
from models.torchvision_backbones import _find_stride_nodes
from models.weights import fetch_state_dict, load_checkpoint_weights
from utils.checkpoint import FORMAT, HEADER, checkpoint_errors, load_checkpoint, restore
from utils.cli import dir_name
from utils.distributed import DistributedContext
from utils.errors import UserError
from utils.plan import main as plan_main
from utils.resume import check_data_unchanged, resume_args, start_or_resume
from utils.run_dir import latest_checkpoint


def data_yaml(text: str) -> Callable[[Path], object]:
    """Read a data.yaml with `train: images/train` and `val: images/val`, unless `text` has them."""

    def act(folder: Path) -> object:
        lines = [
            f"{key}: images/{key}\n" for key in ("train", "val") if not re.search(f"{key}:", text)
        ]
        (folder / "data.yaml").write_text("".join(lines) + text)
        return read_data_config(folder / "data.yaml")

    return act


def splits(text: str) -> Callable[[Path], object]:
    return lambda folder: read_train_val(data_yaml(text)(folder), str(folder / "data.yaml"))


def without_labels(folder: Path) -> object:
    for path in (folder / "labels" / "train").iterdir():
        path.write_text("")
    return splits("names: [a, b]\n")(folder)


def two_class_lists(folder: Path) -> object:
    for split, name in (("train", "cat"), ("val", "dog")):
        content = {
            "images": [{"id": 1, "file_name": "0.png"}],
            "categories": [{"id": 1, "name": name}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        }
        (folder / f"{split}.json").write_text(json.dumps(content))
    text = "".join(
        f"{split}: {{annotations: {split}.json, images: images/{split}}}\n"
        for split in ("train", "val")
    )
    return splits(text)(folder)


def empty_directory(folder: Path) -> object:
    (folder / "photos").mkdir()
    return splits("train: photos\nnames: [a, b]\n")(folder)


def write(content: object) -> Callable[[Path], Path]:
    def act(folder: Path) -> Path:
        torch.save(content, folder / "x.pt")
        return folder / "x.pt"

    return act


def resume(overrides: dict[str, object], early_stopped: bool = False) -> Callable[[Path], object]:
    """Resume a finished run of 3 epochs in `runs/exp`."""

    def act(folder: Path) -> object:
        args = {"epochs": 3, "seed": 0, "noval": False, "freeze": None, "sync_bn": True}
        progress = {"epoch": 3, "finished": True, "early_stopped": early_stopped}
        checkpoint = {key: {} for key in HEADER} | {"optimizer": {}, "progress": progress}
        checkpoint |= {"args": args}
        path = folder / "runs" / "exp" / "weights" / "last.pt"
        return resume_args(checkpoint, path, {"resume": ""} | overrides, ROOT / "hyp")

    return act


def failing_state(folder: Path) -> None:
    with checkpoint_errors(folder / "last.pt", "ema"):
        raise KeyError("model")


class NoNetwork:
    url = "https://example.org/w.pth"

    def get_state_dict(self, **_: object) -> dict:
        raise OSError("no route to host")


def restore_unknown(folder: Path) -> None:
    restore({}, {"swa": {}}, folder / "last.pt")


def find_no_hyp(folder: Path) -> object:
    args = Namespace(hyp="", resume=None, data="x.yaml")
    dist = SimpleNamespace(on_main=lambda fn, *args: fn(*args))
    return start_or_resume(args, {}, ROOT / "hyp", dist)


CLASSES = "names: [a, b]\n"
CASES = {
    "a class number twice": (
        data_yaml("names: {0: a, '0': b}\n"),
        "{}/data.yaml: names: found the id 0 twice (need each number once)",
    ),
    "no names": (
        data_yaml(""),
        "{}/data.yaml: key 'names' is missing (need the class names in the order of their numbers, "
        "as in names: [cat, dog]; only COCO json comes with its own)",
    ),
    "nc": (
        data_yaml("nc: 3\nnames: [a, b]\n"),
        "{}/data.yaml: nc: found 3, but names has 2 (correct one of them, or leave nc out)",
    ),
    "an empty source": (
        data_yaml("val: [images/val, '']\nnames: [a]\n"),
        "{}/data.yaml: val: found '' (need a directory, list or glob)",
    ),
    "names of a COCO source": (
        data_yaml("val: {annotations: a.json, names: [b]}\nnames: [a]\n"),
        "{}/data.yaml: val: names: found ['b'] for a.json, which has its own (allowed for the YOLO "
        "layout only; `remap` renames classes)",
    ),
    "other classes in val": (
        two_class_lists,
        "{}/data.yaml: train has the classes ['cat'], val has ['dog'] (they must be the same, in "
        "one order: write `names`, and map what a source calls them with `remap`)",
    ),
    "a split that is not there": (
        lambda folder: read_split(data_yaml(CLASSES)(folder), "test"),
        "{}/data.yaml: key 'test' is missing or empty (need a directory of images, a .txt list, a "
        "glob, or annotations)",
    ),
    "a directory without images": (
        empty_directory,
        "train: no images found in {}/photos (read are .avif .bmp ",
    ),
    "empty label files": (
        without_labels,
        "train: no boxes found for the 12 images in {} (their annotations are empty)",
    ),
    "a batch for several processes": (
        lambda _: EpochBatchSampler(1, 4, (64, 64), 0, world_size=2),
        "--batch-size 4: 1 training image in batches of 1 (need one in each batch for each of the "
        "2 processes: start fewer)",
    ),
    "export with NMS": (
        lambda _: export.check_args(Namespace(nms=True, batch_size=4)),
        "--batch-size 4: --nms requires a batch size of 1 (use --batch-size 1, or export without "
        "--nms)",
    ),
    "a checkpoint without a model": (
        lambda folder: load(write({"format": FORMAT})(folder)),
        "{}/x.pt: holds no detector that this version can build (need best.pt or last.pt of a run "
        "of this version)",
    ),
    "weights without weights": (
        lambda folder: load_checkpoint_weights(
            torch.nn.Linear(1, 1), write({"format": FORMAT})(folder)
        ),
        "--weights {}/x.pt: holds no weights that this version can read (need best.pt or last.pt "
        "of a run of this version)",
    ),
    "another project's checkpoint": (
        lambda folder: load_checkpoint(write({"model": {}})(folder)),
        "{}/x.pt: not a checkpoint of this project, or corrupted (need best.pt or last.pt of a run "
        "of train.py)",
    ),
    "a part that is unknown": (
        restore_unknown,
        "{}/last.pt: state of swa, which this version does not have (use the version that wrote "
        "it)",
    ),
    "a state that does not fit": (
        failing_state,
        "{}/last.pt: ema: cannot be used by this version: KeyError: 'model' (use the version that "
        "wrote it)",
    ),
    "no network": (
        lambda _: fetch_state_dict(NoNetwork(), "--pretrained"),
        "--pretrained: failed to load https://example.org/w.pth: no route to host (without a "
        f"network, put the file into {torch.hub.get_dir()}/checkpoints)",
    ),
    "a backbone without maps": (
        lambda _: _find_stride_nodes(torch.nn.Sequential(torch.nn.Flatten()), "flat", 3),
        "--backbone torchvision/flat: has no feature maps at strides 8, 16 and 32 (choose another "
        "one, such as torchvision/resnet18 or torchvision/mobilenet_v3_large)",
    ),
    "processes without torchrun": (
        lambda _: DistributedContext(),
        "WORLD_SIZE=2: not set by torchrun (start several processes with torchrun, or unset this "
        "environment variable for one)",
    ),
    "no run to resume": (
        latest_checkpoint,
        "--resume: no weights/last.pt found below {} (name the run, --resume RUN, or the --project "
        "that it is in)",
    ),
    "a finished run": (
        resume({}),
        "{}/runs/exp/weights/last.pt: this run finished after 3 epochs (a larger --epochs "
        "continues it)",
    ),
    "an early-stopped run": (
        resume({}, early_stopped=True),
        "{}/runs/exp/weights/last.pt: this run finished after 3 epochs (start a new run)",
    ),
    "fewer epochs": (
        resume({"epochs": 2}),
        "--epochs 2: conflicts with {}/runs/exp, which was started with 3 (need 3 or more, or "
        "start a new run)",
    ),
    "another seed": (
        resume({"seed": 1}),
        "--seed 1: conflicts with {}/runs/exp, which was started with 0 (leave it out, or start a "
        "new run)",
    ),
    "a flag": (
        resume({"noval": True}),
        "--noval: conflicts with {}/runs/exp, which was started without it (leave it out, or start "
        "a new run)",
    ),
    "an argument that was not given": (
        resume({"freeze": "3"}),
        "--freeze 3: conflicts with {}/runs/exp, which was started without it (leave it out, or "
        "start a new run)",
    ),
    "another name": (
        resume({"name": "mine"}),
        "--name mine: the run to resume is {}/runs/exp (leave the argument out, or resume another "
        "run with --resume RUN)",
    ),
    "another project": (
        resume({"project": "/mine"}),
        "--project /mine: the run to resume is {}/runs/exp (leave the argument out, or resume "
        "another run with --resume RUN)",
    ),
    "other data": (
        lambda _: check_data_unchanged({"val": "2 images"}, {"val": "1 image"}, "d.yaml"),
        "d.yaml: val has 1 image, but the run to resume was started with 2 images (bring the data "
        "back, or start a new run with --weights)",
    ),
    "--hyp ''": (find_no_hyp, "--hyp: found '' (need the name of a file)"),
    "--data ''": (
        lambda folder: find_data_yaml("", folder),
        "--data: found '' (need the name of a file)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_sentence_says_what_was_typed_where_and_what_to_do(name, tmp_path, monkeypatch):
    act, sentence = CASES[name]
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_tiny(tmp_path)
    with pytest.raises(UserError) as error:
        act(tmp_path)
    expected = sentence.replace("{}", str(tmp_path))
    assert str(error.value)[: len(expected)] == expected
    assert expected.endswith(" ") or str(error.value) == expected


@pytest.mark.parametrize("text", ["..", "../mine", "."])
def test_a_name_of_a_run_is_no_way_out_of_the_project(text):
    with pytest.raises(ArgumentTypeError) as error:
        dir_name(text)
    assert str(error.value) == (
        f"found {text!r}, need a directory name without . and .. (--project is its parent)"
    )


def test_a_plot_that_cannot_be_written_is_named_once(tmp_path, capsys):
    path = tmp_path / "no" / "lr.png"
    assert plan_main(["--epochs", "1", "--batches", "1", "--plot", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f": --plot {path}: cannot be written: No such file or directory\n")


def test_counts_agree_with_their_nouns():
    assert invalid_count(1) == "1 invalid image or annotation"
    assert invalid_count(2) == "2 invalid images or annotations"
