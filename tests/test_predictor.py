"""`load` returns what detect.py detects, for every kind of image that it takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detect
from models import load as load_model
from predictor import Predictor, load
from utils.errors import UserError

SIZES = [(80, 64), (160, 128), (70, 64), (120, 96), (40, 32), (64, 80), (640, 40), (1, 5)]


@pytest.fixture(scope="module")
def weights(trained_run) -> Path:
    return trained_run / "exp" / "weights" / "best.pt"


@pytest.fixture(scope="module")
def images(trained_run, tmp_path_factory) -> list[Path]:
    """Images of 8 sizes (width, height): the first of validation, PNG and JPEG in turns."""
    folder = tmp_path_factory.mktemp("sizes")
    files = []
    for i, size in enumerate(SIZES):
        files.append(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
        with Image.open(trained_run / "tiny" / "images" / "val" / "0.png") as image:
            image.resize(size).save(files[-1])
    return files


@pytest.fixture(scope="module")
def model(weights) -> Predictor:
    return load(weights, device="cpu")


@pytest.fixture(scope="module")
def sensitive(weights) -> Predictor:
    """The same with so low a threshold that every image has detections."""
    return load(weights, device="cpu", conf=0.01)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() == {"boxes", "scores", "labels"}
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("options", [{}, {"conf": 0.01, "iou": 0.7, "imgsz": 128}])
def test_load_equals_detect_box_by_box(options, weights, images, tmp_path):
    command = ["--weights", weights, "--source", images[0].parent, "--device", "cpu"]
    command += ["--save-json", "--project", tmp_path]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    assert detect.main([*map(str, command)]) == 0
    rows = json.loads((tmp_path / "exp" / "predictions.json").read_text())
    model = load(weights, device="cpu", **options)
    expected = [
        {
            "file": str(file),
            "frame": None,
            "class": model.names[label],
            "box": [round(value, 3) for value in box],
            "score": score,
        }
        for file, detections in zip(images, model(images), strict=True)
        for box, score, label in zip(*(t.tolist() for t in detections.values()), strict=True)
    ]
    assert rows == expected
    assert rows and (len({row["file"] for row in rows}) >= 5 or not options)


def test_load_takes_every_kind_of_image(images, sensitive):
    pngs = [file for file in images if file.suffix == ".png"]
    for file in pngs:
        with Image.open(file) as pil:
            array = np.array(pil)
            tensor = torch.from_numpy(array).permute(2, 0, 1)
            kinds = [
                file,
                str(file),
                pil,
                array,
                np.flip(array, 2)[..., ::-1],
                tensor,
                tensor / 255,
            ]
            first, *others = sensitive(kinds)
        for other in others:
            assert_same(first, other)
    results = sensitive(tuple(pngs))
    assert len(results) == len(pngs) and sum(len(d["boxes"]) for d in results)
    for detections in results:
        assert detections["boxes"].numpy().shape == (len(detections["scores"]), 4)


def test_load_turns_a_pil_image_as_its_exif_says(images, sensitive, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(images[0]) as image:
        image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert_same(*sensitive([tmp_path / "turned.png", turned]))


def test_load_thresholds_and_classes(weights, images, model, sensitive):
    def rows(detector: Predictor) -> list[tuple[float, int]]:
        return [
            (score, label)
            for detections in detector(images)
            for score, label in zip(
                detections["scores"].tolist(), detections["labels"].tolist(), strict=True
            )
        ]

    everything = rows(sensitive)
    assert rows(model) == [row for row in everything if row[0] > 0.25] != []
    for classes in (["class1"], [1]):
        one_class = load(weights, device="cpu", conf=0.01, classes=classes)
        assert rows(one_class) == [row for row in everything if row[1] == 1] != []
    one_class.conf, one_class.classes = 0.25, None  # attributes, as YOLOv5's model has them
    assert rows(one_class) == rows(model)
    with pytest.raises(AttributeError):
        one_class.max_det = 10


def test_load_keeps_the_torch_module_in_reach(weights, images, model):
    batch = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    boxes, scores = model.model.predict(batch.requires_grad_())
    assert boxes.shape[:2] == scores.shape[:2]
    (scores.sum() + boxes.sum()).backward()
    assert batch.grad.abs().sum() > 0
    reference = load_model(weights)
    reference.set_thresholds(0.25, 0.45)
    with torch.no_grad():
        expected = reference(batch)
        for one, other in zip(model.model(batch), expected, strict=True):
            assert_same(one, other)
    model.model.train()
    losses = model.model(batch, [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}] * 2)
    assert {"box", "cls", "dfl"} <= losses.keys()
    (detections,) = model(images[0])
    assert not model.model.training and not detections["boxes"].requires_grad


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("none.jpg", UserError, "none.jpg: cannot be read: No such file"),
        (3, TypeError, "found int (need a path, a PIL image"),
        (np.zeros((64, 80)), ValueError, "found an array (64, 80) of float64"),
        (np.zeros((3, 64, 80), np.uint8), ValueError, "need (h, w, 3) of uint8, in RGB"),
        (torch.zeros(2, 3, 64, 64), ValueError, "for several images a list"),
        (torch.full((3, 64, 64), 255.0), ValueError, "from 255 to 255 (need 0 to 1)"),
    ],
)
def test_load_refuses_what_is_no_image(image, error, message, model):
    with pytest.raises(error) as raised:
        model(image)
    assert message in str(raised.value)


def test_load_refuses_wrong_options(weights):
    for options, message in (
        ({"conf": 25}, "conf: found 25, need a number from 0 to 1"),
        ({"classes": ["cat"]}, "cat: not a class of the model"),
        ({"imgsz": 8}, "the model needs at least 32 pixels"),
    ):
        with pytest.raises(UserError, match=message):
            load(weights, device="cpu", **options)
