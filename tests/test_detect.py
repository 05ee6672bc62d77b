"""detect.py as a user starts it: on pictures, folders, globs, lists and films."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detect
import val

ROOT = Path(__file__).parents[1]


def run(trained: Path, source: object, folder: Path, *options: object) -> Path:
    """The folder that a run in this process leaves, which must succeed."""
    weights = trained / "exp" / "weights" / "best.pt"
    command = [
        "--weights",
        weights,
        "--source",
        source,
        "--device",
        "cpu",
        "--project",
        folder,
        *options,
    ]
    assert detect.main([*map(str, command)]) == 0
    return folder / "exp"


def lines(folder: Path) -> dict[str, np.ndarray]:
    return {file.stem: np.loadtxt(file, ndmin=2) for file in sorted((folder / "labels").iterdir())}


def test_a_folder_of_pictures(trained, tmp_path):
    pictures = trained / "tiny" / "images" / "val"
    command = [sys.executable, ROOT / "detect.py", "--weights", trained / "exp" / "weights" / "best.pt", "--source", pictures,
               "--conf", "0.05", "--iou", "0.7", "--device", "cpu", "--save-txt", "--save-json"]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "detect" / "exp"
    assert sorted(p.name for p in folder.glob("*.png")) == sorted(
        p.name for p in pictures.iterdir()
    )
    found = json.loads((folder / "predictions.json").read_text())
    labels = lines(folder)
    assert len(found) == sum(map(len, labels.values())) > 5

    # The same detections as val.py's, which training's figures come from.
    arguments = ["--weights", trained / "exp" / "weights" / "best.pt", "--conf", 0.05, "--device", "cpu", "--save-json",
                 "--noplots", "--project", tmp_path / "val"]  # fmt: skip
    assert val.main([*map(str, arguments)]) == 0
    expected = json.loads((tmp_path / "val" / "exp" / "predictions.json").read_text())
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        x, y, w, h = other["bbox"]
        assert (
            Path(mine["file"]).name == other["file_name"]
            and mine["class"] == f"class{other['category_id']}"
        )
        assert mine["box"] == pytest.approx([x, y, x + w, y + h], abs=0.01) and mine[
            "score"
        ] == pytest.approx(other["score"], abs=1e-4)

    # The label lines are those boxes, as shares of the 80 x 64 pictures; what is drawn differs from what was there.
    rows = [row for name in labels for row in labels[name]]
    for (label, cx, cy, w, h, score), mine in zip(rows, found, strict=True):
        corners = [(cx - w / 2) * 80, (cy - h / 2) * 64, (cx + w / 2) * 80, (cy + h / 2) * 64]
        assert (
            corners == pytest.approx(mine["box"], abs=0.01) and f"class{label:.0f}" == mine["class"]
        )
        assert score == pytest.approx(mine["score"], abs=1e-4)
    with Image.open(folder / "0.png") as drawn, Image.open(pictures / "0.png") as picture:
        assert drawn.size == picture.size and (np.asarray(drawn) != np.asarray(picture)).any()


def test_one_picture_a_glob_and_a_list(trained, tmp_path):
    pictures = trained / "tiny" / "images" / "val"
    assert [p.name for p in run(trained, pictures / "1.png", tmp_path / "a").iterdir()] == ["1.png"]
    assert len([*run(trained, pictures / "[0-2].png", tmp_path / "b").iterdir()]) == 3
    (tmp_path / "list.txt").write_text(
        f"{pictures / '3.png'}\n{trained / 'tiny' / 'images' / 'train' / '3.png'}\n"
    )
    assert {p.name for p in run(trained, tmp_path / "list.txt", tmp_path / "c").iterdir()} == {
        "3.png",
        "3_2.png",
    }


def test_classes_by_name_and_number(trained, tmp_path):
    pictures = trained / "tiny" / "images" / "val"
    kept = []
    for i, options in enumerate(
        ([], ["--classes", "class1"], ["--classes", "1"], ["--classes", "0", "class1"])
    ):
        folder = run(trained, pictures, tmp_path / f"{i}", "--conf", 0.05, "--save-json", *options)
        kept.append(json.loads((folder / "predictions.json").read_text()))
    assert (
        kept[0] == kept[3]
        and kept[1] == kept[2] == [row for row in kept[0] if row["class"] == "class1"] != kept[0]
    )


def test_a_broken_picture_is_said_and_the_others_go_on(trained, tmp_path, capsys):
    shutil.copytree(trained / "tiny" / "images" / "val", tmp_path / "pictures")
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    folder = run(trained, tmp_path / "pictures", tmp_path / "runs")
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'pictures' / '1.png'}: not an image in a supported format; skipped" in err
    assert "4 pictures" in out and "1 more could not be decoded" in out
    assert {p.name for p in folder.iterdir()} == {"0.png", "2.png", "3.png", "4.png"}


def test_a_film(trained, tmp_path, monkeypatch, capsys):
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 64))
    for i in range(5):
        writer.write(cv2.imread(str(trained / "tiny" / "images" / "val" / f"{i}.png")))
    writer.release()
    folder = run(trained, film, tmp_path / "runs", "--save-txt", "--conf", 0.1)
    assert sorted(p.stem for p in (folder / "labels").iterdir()) == [f"film_{i}" for i in range(5)]
    drawn = cv2.VideoCapture(str(folder / "film.mp4"))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (5, 10)
    assert drawn.read()[1].shape == (64, 80, 3)
    # JPEG in the film changes the pixels a little, and not what is seen.
    still = run(
        trained,
        trained / "tiny" / "images" / "val",
        tmp_path / "still",
        "--save-txt",
        "--conf",
        0.1,
    )
    film_boxes, still_boxes = (sum(map(len, lines(f).values())) for f in (folder, still))
    assert abs(film_boxes - still_boxes) <= 0.5 * still_boxes

    monkeypatch.setitem(sys.modules, "cv2", None)  # as where it is not installed
    command = [
        "--weights",
        trained / "exp" / "weights" / "best.pt",
        "--source",
        film,
        "--project",
        tmp_path / "none",
    ]
    assert detect.main([*map(str, command)]) == 2
    assert capsys.readouterr().err == (
        f"detect.py: --source {film}: videos and cameras need OpenCV (pip install opencv-python-headless)\n"
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "nowhere"], "--source nowhere: is not there; allowed are a picture"),
        (["--source", "nowhere.mp4"], "--source nowhere.mp4: not found"),
        (["--source", "text.mp4"], "--source text.mp4: no frame could be read"),
        (["--source", "empty"], "--source empty: has no picture"),
        (
            ["--source", "tiny/images/val", "--classes", "cat"],
            "--classes cat: is not there; the model knows class0, class1",
        ),
        (["--source", "tiny/images/val", "--classes", "2"], "--classes 2: is not there"),
        (["--source", "tiny/images/val", "--iou", "-0.1"], "--iou: found '-0.1'"),
        (
            ["--source", "tiny/images/val", "--weights", "tiny/data.yaml"],
            "tiny/data.yaml: is no checkpoint of this project",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_folder(
    options, message, trained, capfd, monkeypatch
):
    monkeypatch.chdir(trained)
    (trained / "empty").mkdir(exist_ok=True)
    (trained / "text.mp4").write_text("no film")
    assert detect.main(["--weights", "exp/weights/best.pt", "--device", "cpu", *options]) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("detect.py: ")]
    assert len(said) == 1 and message in said[0]
    assert not (trained / "runs").exists()


def test_pictures_of_any_shape(trained):
    model = detect.load(trained / "exp" / "weights" / "best.pt")
    for shape in ((3, 1, 1), (3, 7, 900), (3, 333, 64)):
        found = detect.look(model, torch.zeros(shape, dtype=torch.uint8), 96, torch.device("cpu"))
        assert (found["boxes"] <= torch.tensor([shape[2], shape[1]] * 2) + 0.01).all()


def test_a_picture_that_no_memory_holds_is_not_decoded(trained, tmp_path, capsys):
    from test_formats import png_bomb

    png_bomb(tmp_path / "bomb.png")
    arguments = [
        "--weights",
        trained / "exp/weights/best.pt",
        "--source",
        tmp_path,
        "--project",
        tmp_path / "d",
    ]
    assert detect.main([*map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert (
        "bomb.png: too large to decode" in captured.err
        and "1 more could not be decoded" in captured.out
    )
