"""detect.py as a user runs it: on images, directories, globs, lists and videos."""

import errno
import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from preloaded import run_python
from test_formats import png_bomb
from torchvision.transforms.v2.functional import to_pil_image

import detect
import val
from data.images import read_image
from predictor import load
from utils.plots import draw_boxes

ROOT = Path(__file__).parents[1]


def best_weights(trained_run: Path) -> Path:
    return trained_run / "exp" / "weights" / "best.pt"


def run_detect(trained_run: Path, source: object, project: Path, *options: object) -> Path:
    """Run detect.py in this process and return the directory of its results."""
    command = ["--weights", best_weights(trained_run), "--source", source, "--device", "cpu"]
    command += ["--project", project, *options]
    assert detect.main([str(word) for word in command]) == 0
    return project / "exp"


def read_labels(results: Path) -> dict[str, np.ndarray]:
    """Return the rows of each label file, by its stem."""
    files = sorted((results / "labels").iterdir())
    return {file.stem: np.loadtxt(file, ndmin=2) for file in files}


def test_detect_directory_matches_val(trained_run, tmp_path):
    """64 x 80 pixels become 52 x 64 and, in validation, with its padding 64 x 64."""
    images = trained_run / "tiny" / "images" / "val"
    command = [ROOT / "detect.py", "--weights", best_weights(trained_run)]
    command += ["--source", images, "--conf", "0.05", "--iou", "0.7", "--device", "cpu"]
    command += ["--save-txt", "--save-json"]
    process = run_python(command, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    results = tmp_path / "runs" / "detect" / "exp"
    assert {p.name for p in results.glob("*.png")} == {p.name for p in images.iterdir()}
    predictions = json.loads((results / "predictions.json").read_text())
    labels = read_labels(results)
    assert len(predictions) == sum(map(len, labels.values())) > 5

    command = ["--weights", best_weights(trained_run), "--conf", 0.05, "--device", "cpu"]
    command += ["--save-json", "--noplots", "--project", tmp_path / "val"]
    assert val.main([str(word) for word in command]) == 0
    val_predictions = json.loads((tmp_path / "val" / "exp" / "predictions.json").read_text())
    assert len(predictions) == len(val_predictions)
    for prediction, expected in zip(predictions, val_predictions, strict=True):
        x, y, w, h = expected["bbox"]
        assert Path(prediction["file"]).name == expected["file_name"]
        assert prediction["class"] == f"class{expected['category_id']}"
        assert prediction["box"] == pytest.approx([x, y, x + w, y + h], abs=0.01)
        assert prediction["score"] == pytest.approx(expected["score"], abs=1e-4)

    # The label files have the same boxes, as fractions of the 80 x 64 images.
    label_rows = [row for stem in labels for row in labels[stem]]
    for (label, cx, cy, w, h, score), prediction in zip(label_rows, predictions, strict=True):
        box = [(cx - w / 2) * 80, (cy - h / 2) * 64, (cx + w / 2) * 80, (cy + h / 2) * 64]
        assert box == pytest.approx(prediction["box"], abs=0.01)
        assert f"class{label:.0f}" == prediction["class"]
        assert score == pytest.approx(prediction["score"], abs=1e-4)
    with Image.open(results / "0.png") as output, Image.open(images / "0.png") as image:
        assert output.size == image.size and (np.asarray(output) != np.asarray(image)).any()


def test_detect_image_glob_and_list(trained_run, tmp_path):
    images = trained_run / "tiny" / "images"
    one = run_detect(trained_run, images / "val" / "1.png", tmp_path / "one")
    assert [p.name for p in one.iterdir()] == ["1.png"]
    assert (
        len([*run_detect(trained_run, images / "val" / "[0-2].png", tmp_path / "b").iterdir()]) == 3
    )
    (tmp_path / "list.txt").write_text(
        f"{images / 'val' / '3.png'}\n{images / 'train' / '3.png'}\n"
    )
    listed = run_detect(trained_run, tmp_path / "list.txt", tmp_path / "listed")
    assert {p.name for p in listed.iterdir()} == {"3.png", "3_2.png"}


def test_detect_classes_by_name_and_index(trained_run, tmp_path):
    images = trained_run / "tiny" / "images" / "val"

    def predictions(name: str, *classes: str) -> list[dict]:
        options = ["--classes", *classes] if classes else []
        project = tmp_path / name
        results = run_detect(trained_run, images, project, "--conf", 0.05, "--save-json", *options)
        return json.loads((results / "predictions.json").read_text())

    all_classes = predictions("all")
    class1 = [row for row in all_classes if row["class"] == "class1"]
    assert predictions("both", "0", "class1") == all_classes
    assert predictions("name", "class1") == predictions("index", "1") == class1 != all_classes


def test_detect_reports_corrupted_image_and_continues(trained_run, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(trained_run / "tiny" / "images" / "val", images)
    (images / "1.png").write_bytes(b"not an image")
    results = run_detect(trained_run, images, tmp_path / "runs")
    out, err = capsys.readouterr()
    assert f"detect.py: {images / '1.png'}: not an image in a supported format; skipped" in err
    assert "processed 4 images in " in out and "(1 failed)" in out
    assert {p.name for p in results.iterdir()} == {"0.png", "2.png", "3.png", "4.png"}


def test_detect_video(trained_run, tmp_path, capsys):
    video, images = tmp_path / "video.avi", trained_run / "tiny" / "images" / "val"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 64))
    for i in range(5):
        writer.write(cv2.imread(str(images / f"{i}.png")))
    writer.release()
    options = ["--save-txt", "--conf", 0.1]
    results = run_detect(trained_run, video, tmp_path / "runs", *options)
    assert f"{video}, frame 4: " in capsys.readouterr().out
    assert {p.stem for p in (results / "labels").iterdir()} == {f"video_{i}" for i in range(5)}
    output = cv2.VideoCapture(str(results / "video.mp4"))
    assert (output.get(cv2.CAP_PROP_FRAME_COUNT), output.get(cv2.CAP_PROP_FPS)) == (5, 10)
    assert output.read()[1].shape == (64, 80, 3)
    # The frames are JPEG images, so the pixels differ a little from the files'.
    from_images = run_detect(trained_run, images, tmp_path / "images", *options)
    num_boxes = sum(map(len, read_labels(results).values()))
    expected = sum(map(len, read_labels(from_images).values()))
    assert abs(num_boxes - expected) <= 0.5 * expected


def test_detect_video_without_opencv(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    video = tmp_path / "video.avi"
    video.write_bytes(b"")
    command = [
        "--weights",
        best_weights(trained_run),
        "--source",
        video,
        "--project",
        tmp_path / "d",
    ]
    assert detect.main([str(word) for word in command]) == 2
    assert capsys.readouterr().err == (
        f"detect.py: --source {video}: videos and cameras need OpenCV "
        "(pip install opencv-python-headless)\n"
    )
    assert not (tmp_path / "d").exists()


def test_detect_ctrl_c_keeps_results(trained_run, tmp_path, monkeypatch, capsys):
    def interrupted(source: str, channels: int):
        for i in range(5):
            if i == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield detect.Frame(f"{i}.png", None, torch.zeros(3, 64, 80, dtype=torch.uint8))

    monkeypatch.setattr(detect, "iter_images", interrupted)
    results = run_detect(trained_run, "0", tmp_path, "--save-json")
    out = capsys.readouterr().out
    assert "stopped by SIGINT\n" in out and "processed 2 images in " in out
    assert {p.name for p in results.iterdir()} == {"0.png", "1.png", "predictions.json"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "nowhere"], "--source nowhere: not found (need an image, directory, glob"),
        (["--source", "nowhere.mp4"], "--source nowhere.mp4: not found"),
        (["--source", "text.mp4"], "--source text.mp4: no frame could be read"),
        (["--source", "empty"], "--source empty: contains no images"),
        (
            ["--source", "tiny/images/val", "--classes", "cat"],
            "--classes cat: not a class of the model (choose from class0, class1, or 0 to 1)",
        ),
        (
            ["--source", "tiny/images/val", "--classes", "2"],
            "--classes 2: not a class of the model",
        ),
        (["--source", "tiny/images/val", "--iou", "-0.1"], "--iou: found '-0.1'"),
        (
            ["--source", "tiny/images/val", "--weights", "tiny/data.yaml"],
            "tiny/data.yaml: not a checkpoint of this project",
        ),
    ],
)
def test_detect_error_is_one_line_and_creates_no_directory(
    options, message, trained_run, capfd, monkeypatch
):
    monkeypatch.chdir(trained_run)
    (trained_run / "empty").mkdir(exist_ok=True)
    (trained_run / "text.mp4").write_text("not a video")
    assert detect.main(["--weights", "exp/weights/best.pt", "--device", "cpu", *options]) == 2
    lines = capfd.readouterr().err.splitlines()  # OpenCV writes lines of its own
    errors = [line for line in lines if line.startswith("detect.py: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (trained_run / "runs").exists()


def test_predict_keeps_boxes_inside_images_of_extreme_shapes(trained_run):
    model = load(best_weights(trained_run), conf=0.001, imgsz=96)
    for shape in ((3, 1, 1), (3, 7, 900), (3, 333, 64)):
        (detections,) = model(torch.zeros(shape, dtype=torch.uint8))
        boxes = detections["boxes"]
        assert (boxes <= torch.tensor([shape[2], shape[1]] * 2) + 0.01).all()


def test_detect_does_not_decode_image_larger_than_memory(trained_run, tmp_path, capsys):
    png_bomb(tmp_path / "bomb.png")
    run_detect(trained_run, tmp_path, tmp_path / "d")
    out, err = capsys.readouterr()
    assert "bomb.png: too large to decode" in err
    assert "processed 0 images in " in out and "(1 failed)" in out


def test_detect_writes_and_prints_what_one_image_after_the_other_does(
    trained_run, tmp_path, capsys
):
    images = tmp_path / "images"
    images.mkdir()
    files = sorted((trained_run / "tiny" / "images" / "val").iterdir())
    for i in range(12):  # of different sizes, so that some take longer than those after them
        with Image.open(files[i % len(files)]) as image:
            size = (640, 512) if i % 4 == 0 else (80, 64)
            image.resize(size).save(images / f"{i:02}.{'jpg' if i % 2 else 'png'}")
    (images / "06.png").write_bytes(b"not an image")
    results = run_detect(trained_run, images, tmp_path / "runs", "--conf", 0.01, "--save-json")
    out, err = capsys.readouterr()

    predictor = load(best_weights(trained_run), device="cpu", conf=0.01)
    lines, num_rows = [], 0
    for file in sorted(images.iterdir()):
        if file.name == "06.png":
            continue
        (detections,) = predictor(file)
        names = Counter(predictor.names[k] for k in detections["labels"].tolist())
        counts = ", ".join(f"{n} {name}" for name, n in names.most_common())
        lines.append(f"{file}: {counts or 'no detections'}")
        num_rows += len(detections["labels"])
        drawn = draw_boxes(read_image(str(file)), detections, predictor.names)
        to_pil_image(drawn).save(tmp_path / file.name)
        assert (results / file.name).read_bytes() == (tmp_path / file.name).read_bytes()
    assert out.splitlines()[:-1] == lines
    assert err == f"detect.py: {images / '06.png'}: not an image in a supported format; skipped\n"
    assert len(list(results.iterdir())) == 12  # 11 images and predictions.json
    assert len(json.loads((results / "predictions.json").read_text())) == num_rows > 11


def test_detect_on_a_full_disk_is_one_line(trained_run, tmp_path, monkeypatch, capsys):
    def save(self: Image.Image, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Image.Image, "save", save)
    command = ["--weights", best_weights(trained_run), "--device", "cpu", "--project", tmp_path]
    command += ["--source", trained_run / "tiny" / "images" / "val"]
    assert detect.main([str(word) for word in command]) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and error.count("\n") == 1
