"""`val: 20%` draws the images of validation from those of `train`: the same ones every time."""

import json
import ntpath
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import (
    assert_one_line_error,
    assert_same_run,
    pixels,
    resume_train,
    run_train,
    signal_at,
)

import val
from data import random_split
from data.config import read_data_config
from data.formats import read_split, read_train_val
from data.random_split import draw_images
from utils.errors import UserError


def write_config(tiny: Path, text: str) -> Path:
    data = tiny.with_name("split.yaml")
    data.write_text(f"train: images/train\n{text}\nnames: [class0, class1]\n")
    return data


def names(data) -> list[str]:
    return [Path(file).name for file in data.files]


def test_random_split_divides_the_images_of_train(tiny, tmp_path):
    config = read_data_config(write_config(tiny, "val: 25%"))
    whole = read_split(read_data_config(tiny), "train")
    train, part = read_train_val(config, "split.yaml")
    assert len(part) == 3 and sorted(names(train) + names(part)) == sorted(names(whole))
    assert pixels(train) | pixels(part) == pixels(whole)
    assert names(part) == [name for name in names(whole) if name in names(part)]
    assert part.messages("val") == ["val: 3 of the 12 images of train, drawn with split_seed 0"]

    moved = shutil.copytree(tiny.parent, tmp_path / "elsewhere")
    copied = read_split(read_data_config(moved / "split.yaml"), "val")
    assert copied.fingerprint() == part.fingerprint()
    other = read_split(read_data_config(write_config(tiny, "val: 25%\nsplit_seed: 1")), "val")
    assert len(other) == 3 and names(other) != names(part)


def test_random_split_moves_few_images_when_one_is_added():
    files = [f"/data/images/{i:04d}.jpg" for i in range(1000)]
    part = draw_images(files, "/data", 0.2, 0)
    assert part.sum() == 200
    more = draw_images([*files, "/data/images/new.jpg"], "/data", 0.2, 0)
    assert (part != more[:-1]).sum() <= 1
    twice = draw_images([*files, files[0]], "/data", 0.2, 0)
    assert twice[0] == twice[-1] and (twice[:-1] == part).all()


def test_random_split_is_the_same_on_windows(monkeypatch):
    names = [(folder, f"{i}.jpg") for folder in ("day", "night") for i in range(50)]
    posix = draw_images(["/".join(("/data", *name)) for name in names], "/data", 0.2, 0)
    monkeypatch.setattr(random_split, "os", SimpleNamespace(path=ntpath, sep="\\"))
    windows = draw_images(["\\".join(("C:\\data", *name)) for name in names], "C:\\data", 0.2, 0)
    assert posix.sum() == 20 and (posix == windows).all()


def test_random_split_of_a_coco_json(tiny):
    whole = read_split(read_data_config(tiny), "train")
    annotations = {
        "images": [
            {"id": i, "file_name": name, "width": 80, "height": 64}
            for i, name in enumerate(names(whole))
        ],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "category_id": 0, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for i, name in enumerate(names(whole))
            for k, (x1, y1, x2, y2) in enumerate(pixels(whole)[name])
        ],
        "categories": [{"id": 0, "name": "class0"}],
    }
    (tiny.parent / "all.json").write_text(json.dumps(annotations))
    data = tiny.with_name("coco.yaml")
    data.write_text("train: {annotations: all.json, images: images/train}\nval: 25 %\n")
    config = read_data_config(data)
    expected = read_split(read_data_config(write_config(tiny, "val: 25%")), "val")
    part = read_split(config, "val")
    assert names(part) == names(expected) and part.class_names == ("class0",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val: 0%", "val: found '0%' (need more than 0% and less than 100%)"),
        ("val: 100%", "val: found '100%' (need more than 0%"),
        ("val: [images/val, 20%]", "val: found '20%' in a list (need it alone"),
        ("val: images/val\ntest: 20%", "test: found '20%' (only `val` can be a percentage"),
        ("val: 1%", "val: 1% of the 12 images of train are 0 (need at least one image in each"),
        ("val: 20%\nsplit_seed: -1", "split_seed: found -1"),
    ],
)
def test_random_split_is_refused_in_a_sentence(text, message, tiny, capsys):
    assert run_train(data=write_config(tiny, text), epochs=1) == 2
    assert_one_line_error(capsys.readouterr().err, message)


def test_random_split_needs_boxes_in_both(tiny):
    config = read_data_config(write_config(tiny, "val: 25%"))
    for name in names(read_split(config, "val")):
        (tiny.parent / "labels" / "train" / name).with_suffix(".txt").write_text("")
    with pytest.raises(UserError, match="val: no boxes found for the 3 images that are drawn"):
        read_split(config, "val")


def test_random_split_is_the_same_in_val_and_when_resumed(tiny, tmp_path, capsys):
    data = write_config(tiny, "val: 25%")
    options = {"data": data, "epochs": 2, "noplots": True, "batch_size": 6, "project": tmp_path}
    assert run_train(**options, name="whole") == 0
    with signal_at("batch", epoch=1):
        assert run_train(**options, name="cut") == 128 + signal.SIGTERM
    assert resume_train(tmp_path / "cut") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    part = names(read_split(read_data_config(data), "val"))
    weights = tmp_path / "whole" / "weights" / "best.pt"
    command = ["--weights", weights, "--device", "cpu", "--noplots", "--project", tmp_path / "val"]
    assert val.main([*map(str, [*command, "--save-json"])]) == 0
    predictions = json.loads((tmp_path / "val" / "exp" / "predictions.json").read_text())
    assert predictions and {row["file_name"] for row in predictions} <= set(part)

    write_config(tiny, "val: 25%\nsplit_seed: 7")
    capsys.readouterr()
    assert resume_train(tmp_path / "whole", epochs=3) == 2
    assert "the run to resume was started with" in capsys.readouterr().err
