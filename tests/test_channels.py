"""Images of 1, 2, 4 or more channels: read by rules, trained, resumed, evaluated, exported."""

import json
import os
import pickle
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    assert_one_line_error,
    assert_same_run,
    bitwise_equal,
    load_state,
    read_results,
    resume_train,
    run_train,
    signal_at,
    write_hyp,
    write_tiny,
)
from PIL import Image

import data.convert
import data.describe
import detect
import export
import models
import val
from data.augment import color_matrix
from data.config import read_data_config
from data.formats import read_split
from data.images import ImageStore, image_size, read_image
from models import build_model, load
from utils.errors import UserError
from utils.hyp import Hyp
from utils.plots import as_rgb

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (10, 12, 4), dtype=np.uint8)
GRAY = RGBA[..., 0]
LUMA = np.asarray(Image.fromarray(RGBA[..., :3]).convert("L"))
PALETTE, CMYK = Image.fromarray(GRAY).convert("P"), Image.fromarray(RGBA, "CMYK")
LA = Image.merge("LA", [Image.fromarray(np.ascontiguousarray(RGBA[..., k])) for k in (0, 3)])


def save(path: Path, pixels: np.ndarray | Image.Image | list[np.ndarray], **options) -> str:
    """Write an array as .npy or as an image, or a list of arrays as the pages of a TIFF."""
    if path.suffix == ".npy":
        np.save(path, pixels)
        return str(path)
    if isinstance(pixels, list):
        first, *rest = (Image.fromarray(np.ascontiguousarray(page)) for page in pixels)
        first.save(path, save_all=True, append_images=rest)
        return str(path)
    image = (
        Image.fromarray(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels
    )
    image.save(path, **options)
    return str(path)


def save_channels(path: Path, pixels: np.ndarray) -> None:
    """Write an array (h, w, 4) uint8 in one of the ways in which 4 channels are read."""
    number = int(path.stem) % 4
    if number == 0:
        save(path.with_suffix(".png"), pixels)
    elif number == 1:
        save(path.with_suffix(".npy"), pixels)
    elif number == 2:
        save(path.with_suffix(".tif"), [pixels[..., k] for k in range(4)])
    else:
        save(path.with_suffix(".npy"), pixels.astype(np.uint16) * 256 + 7)


def write_channels(folder: Path, channels: int) -> Path:
    """Write the dataset of `write_tiny` with 1 or 4 channels and return its data.yaml.

    The objects of 4 channels are brightest in the last one. Gray images are PNGs of 8 and 16 bits,
    JPEGs, and a color image.
    """
    config = write_tiny(folder, train=8, val=4)
    for file in sorted(folder.glob("images/*/*.png")):
        pixels = np.asarray(Image.open(file))
        file.unlink()
        if channels == 4:
            depth = np.where(pixels[..., :1] > 100, 255, 9).astype(np.uint8)
            save_channels(file, np.concatenate((pixels, depth), axis=2))
        elif file.stem == "0":
            save(file, pixels)
        elif file.stem == "1":
            save(file, pixels[..., 0].astype(np.uint16) * 256)
        else:
            save(file.with_suffix(".jpg"), pixels[..., 0])
    config.write_text(f"{config.read_text()}channels: {channels}\n")
    return config


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    """A folder with a dataset of 4 channels in `data`, and a run on it, `exp`, that was stopped in
    the middle of epoch 0 and resumed; `whole` is the same run without a stop."""
    folder = tmp_path_factory.mktemp("four")
    options = {
        "data": write_channels(folder / "data", 4),
        "hyp": write_hyp(folder, "close_mosaic: 1\nflipud: 0.5\n"),
        "project": folder,
        "epochs": 2,
        "cache": "disk",
    }
    assert run_train(**options, name="whole", noplots=True) == 0
    with signal_at("batch", epoch=0, batch=0):
        assert run_train(**options) == 128 + signal.SIGTERM
    assert resume_train(folder / "exp") == 0
    return folder


def weights(folder: Path) -> Path:
    return folder / "exp" / "weights" / "best.pt"


# ----------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(
    ("name", "pixels", "channels", "expected"),
    [
        ("gray.png", GRAY, 1, GRAY),
        ("gray.png", GRAY.astype(np.uint16) * 256 + 5, 1, GRAY),
        ("gray.tif", GRAY.astype(np.float32) / 255, 1, GRAY),
        ("gray.npy", GRAY, 1, GRAY),
        ("gray.npy", GRAY[..., None] / 255, 1, GRAY),
        ("gray.npy", GRAY > 99, 1, (GRAY > 99) * 255),
        ("gray.npy", GRAY.astype(np.int64) * 256, 1, GRAY),
        ("gray.npy", (GRAY.astype(">u2") * 256), 1, GRAY),
        ("gray.npy", np.asfortranarray(GRAY), 1, GRAY),
        ("color.png", RGBA[..., :3], 1, LUMA),
        ("alpha.png", RGBA, 1, LUMA),
        ("alpha.png", LA, 1, GRAY),
        ("alpha.png", LA, 2, RGBA[..., [0, 3]]),
        ("pages.tif", [RGBA[..., k] for k in range(2)], 2, RGBA[..., :2]),
        ("bands.npy", RGBA[..., :2], 2, RGBA[..., :2]),
        ("color.npy", RGBA[..., :3], 3, RGBA[..., :3]),
        ("gray.npy", GRAY, 3, np.dstack([GRAY] * 3)),
        ("alpha.png", RGBA, 3, RGBA[..., :3]),
        ("alpha.png", RGBA, 4, RGBA),
        ("alpha.tif", RGBA, 4, RGBA),
        ("pages.tif", [RGBA[..., k] for k in range(4)], 4, RGBA),
        ("pages.tif", [RGBA[..., k].astype(np.uint16) * 256 for k in range(4)], 4, RGBA),
        ("overview.tif", [GRAY, GRAY[::2, ::2]], 1, GRAY),
        ("bands.npy", np.dstack([RGBA, RGBA]), 8, np.dstack([RGBA, RGBA])),
        ("pages.tif", [RGBA[..., k % 4] for k in range(8)], 8, np.dstack([RGBA, RGBA])),
    ],
)  # fmt: skip
def test_image_is_read_with_its_channels(name, pixels, channels, expected, tmp_path):
    path = save(tmp_path / name, pixels)
    assert image_size(path, channels)[:2] == (12, 10)
    image = read_image(path, channels)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.permute(1, 2, 0), np.reshape(expected, (10, 12, channels)))


@pytest.mark.parametrize(
    ("name", "pixels", "channels", "message"),
    [
        ("gray.png", GRAY, 4, "found 1 channel (in the mode L), need 4"),
        ("gray.png", GRAY.astype(np.uint16), 2, "found 1 channel (in the mode I;16), need 2"),
        ("color.png", RGBA[..., :3], 4, "found 3 channels (in the mode RGB), need 4"),
        ("color.jpg", RGBA[..., :3], 4, "found 3 channels (in the mode RGB), need 4"),
        ("color.jpg", RGBA[..., :3], 2, "found 3 channels (in the mode RGB), need 2"),
        ("palette.png", PALETTE, 2, "found 3 channels (in the mode P), need 2"),
        ("alpha.png", RGBA, 5, "found 4 channels (in the mode RGBA), need 5"),
        ("cmyk.tif", CMYK, 4, "found 3 channels (in the mode CMYK), need 4"),
        ("pages.tif", [GRAY] * 3, 1, "found 3 channels (pages of one band), need 1"),
        ("pages.tif", [GRAY] * 3, 4, "found 3 channels (pages of one band), need 4"),
        ("bands.npy", RGBA, 1, "found an array of 10 x 12 x 4 (need height x width x 1)"),
        ("bands.npy", RGBA, 3, "found an array of 10 x 12 x 4 (need height x width x 3)"),
        ("bands.npy", RGBA.T, 4, "found an array of 4 x 12 x 10 (need height x width x 4)"),
        ("gray.npy", GRAY, 4, "found an array of 10 x 12 (need height x width x 4)"),
        ("one.npy", np.float32(1), 1, "found an array of no dimensions"),
        ("complex.npy", GRAY + 1j, 1, "found an array of complex128"),
        ("float.npy", GRAY + 0.5, 1, "found floating-point pixels from 3.5 to 249.5 (allowed"),
        ("nan.npy", GRAY * np.nan, 1, "found floating-point pixels from nan to nan"),
        ("signed.npy", GRAY.astype(np.int16) - 300, 1, "found 16-bit pixels from -"),
        ("objects.npy", np.array([[{}]]), 1, "Python objects in dtype"),
    ],
)  # fmt: skip
def test_clash_of_channels_is_an_error_with_path_and_reason(
    name, pixels, channels, message, tmp_path
):
    path = save(tmp_path / name, pixels)
    size = image_size(path, channels)
    assert isinstance(size, str) and size.startswith(path) and message in size
    with pytest.raises(UserError) as error:
        read_image(path, channels)
    assert str(error.value).startswith(path)


def test_tiff_page_of_more_bands_than_pillow_keeps_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "bands.tif"
    save(path, RGBA)
    tag = struct.pack("<HHI", 338, 3, 1)  # ExtraSamples: 2 for an alpha, 0 for anything
    content = path.read_bytes()
    assert content.count(tag + b"\2") == 1
    path.write_bytes(content.replace(tag + b"\2", tag + b"\0"))
    assert image_size(str(path), 3)[:2] == (12, 10)
    message = "found a TIFF page of 4 bands, which Pillow does not read as they are stored"
    assert message in image_size(str(path), 4)
    assert ".npy array" in image_size(str(path), 4)


def test_array_with_pickled_objects_runs_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    np.save(tmp_path / "a.npy", np.array([[Payload()]], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Payload()))
    for name in ("a.npy", "b.npy"):
        assert isinstance(image_size(str(tmp_path / name), 1), str)
        with pytest.raises(UserError):
            read_image(str(tmp_path / name), 1)
    assert not (tmp_path / "executed").exists()


def test_array_of_bytes_is_sized_by_its_header_alone_and_a_short_file_is_an_error(tmp_path):
    path = tmp_path / "sparse.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (50_000, 40_000, 10))  # 20 GB, none on disk
    assert image_size(str(path), 10)[:2] == (40_000, 50_000)
    os.truncate(path, 10**9)
    assert "mmap length is greater than file size; skipped" in image_size(str(path), 10)


def test_scan_counts_what_clashes_and_what_becomes_gray(tmp_path):
    config = write_channels(tmp_path / "data", 1)
    folder = tmp_path / "data" / "images" / "train"
    save(folder / "bands.npy", np.dstack([GRAY] * 5))
    save(folder / "dark.npy", GRAY.astype(np.uint16))
    train = read_split(read_data_config(config), "train")
    assert train.channels == 1 and len(train) == 9
    (error,) = train.errors
    assert error.startswith(f"{folder}/bands.npy: cannot be read: found an array of 10 x 12 x 5")
    assert "color images, converted to gray because of `channels: 1`: 1" in train.notes
    assert any("nearly black" in note and note.endswith(": 1") for note in train.notes)


def test_data_yaml_with_other_channels_is_another_scan_and_another_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("data.cache.MIN_SCAN_SECONDS", -1.0)
    config = write_tiny(tmp_path / "data")
    text = config.read_text()
    for channels, count in ((3, 12), (1, 12), (3, 12)):
        config.write_text(f"{text}channels: {channels}\n")
        train = read_split(read_data_config(config), "train")
        assert len(train) == count and len(train.errors) == 0
        store = ImageStore(train.files, train.sizes, on_disk=True, channels=channels)
        store.fill_disk(range(2))
        assert torch.equal(store[0], read_image(train.files[0], channels))
        assert len(store[0]) == channels
    config.write_text(f"{text}channels: 4\n")
    with pytest.raises(UserError, match=r"no valid images .*first of 12 errors: .*need 4"):
        read_split(read_data_config(config), "train")


@pytest.mark.parametrize("value", ["0", "257", "true", "rgb", "3.5"])
def test_channels_that_are_not_a_number_of_channels_are_refused(value, tmp_path, capsys):
    config = write_tiny(tmp_path / "data")
    config.write_text(f"{config.read_text()}channels: {value}\n")
    assert run_train(data=config, project=tmp_path) == 2
    assert_one_line_error(capsys.readouterr().err, str(config), "channels")


@pytest.mark.parametrize("format", ["yolo", "coco", "voc"])
def test_converted_dataset_has_the_same_channels(format, four, tmp_path):
    target = tmp_path / "new"
    assert data.convert.main([format, str(four / "data" / "data.yaml"), str(target)]) == 0
    before, after = (
        read_split(read_data_config(path), "val")
        for path in (four / "data" / "data.yaml", target / "data.yaml")
    )
    assert after.channels == 4 and not after.errors and not after.notes
    np.testing.assert_allclose(before.boxes, after.boxes, atol=1e-5)
    for one, other in zip(before.files.tolist(), after.files.tolist(), strict=True):
        assert torch.equal(read_image(one, 4), read_image(other, 4))


def test_describe_says_the_channels_and_draws(four, tmp_path, capsys):
    grid = tmp_path / "grid.jpg"
    assert data.describe.main([str(four / "data"), "--out", str(grid)]) == 0
    assert "train: 8 images of 4 channels, " in capsys.readouterr().out
    assert Image.open(grid).mode == "RGB"


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_images_are_shown_as_gray_or_by_their_first_three_channels(channels):
    image = torch.arange(channels).reshape(channels, 1, 1).expand(channels, 2, 2)
    bands = [0, 0, 0] if channels < 3 else [0, 1, 2]
    assert as_rgb(image)[:, 0, 0].tolist() == bands
    assert as_rgb(image[None]).shape == (1, 3, 2, 2)


def test_color_of_other_channels_is_brightness_alone():
    hyp = Hyp(brightness=0.5, saturation=0.9, hue=0.3)
    for channels in (1, 2, 4, 9):
        matrix = color_matrix(hyp, np.random.default_rng(3), channels)
        brightness = np.random.default_rng(3).uniform(0.5, 1.5)
        np.testing.assert_array_equal(matrix, np.float32(brightness) * np.eye(channels))


# ----------------------------------------------------------------------------------------------
# Runs


def test_run_of_4_channels_is_resumed_bitwise(four):
    assert_same_run(four / "exp", four / "whole", ignore=("args",))
    state = load_state(four / "exp")
    assert state["model_config"]["channels"] == 4
    assert state["model"]["backbone.stem.0.0.weight"].shape[1] == 4
    for name in ("train_batch.jpg", "val_batch.jpg", "report.html"):
        assert (four / "exp" / name).stat().st_size > 1000


def test_val_of_4_channels_prints_the_metrics_of_training(four, tmp_path):
    assert val.main(["--weights", str(weights(four)), "--project", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "exp" / "metrics.json").read_text())["all"]
    rows = read_results(four / "exp")
    best = max(rows, key=lambda row: float(row["metrics/mAP50-95"]))
    columns = {key: float(value) for key, value in best.items() if key.startswith("metrics/")}
    assert columns["metrics/recall"] > 0
    for key, value in columns.items():
        assert round(metrics[key.removeprefix("metrics/")], 5) == value, key


def test_detect_of_4_channels_is_the_same_for_every_kind_of_file(four, tmp_path, capsys):
    image = read_image(str(four / "data" / "images" / "val" / "0.png"), 4).permute(1, 2, 0).numpy()
    source = tmp_path / "source"
    source.mkdir()
    save(source / "a.png", image)
    save(source / "b.npy", image)
    save(source / "c.tif", [image[..., k] for k in range(4)])
    save(source / "d.jpg", image[..., :3])
    (source / "e.mp4").write_bytes(b"")
    options = ["--source", source, "--project", tmp_path, "--conf", "0.001", "--save-json"]
    assert detect.main(["--weights", *map(str, [weights(four), *options])]) == 0
    predictions = json.loads((tmp_path / "exp" / "predictions.json").read_text())
    boxes = {}
    for row in predictions:
        boxes.setdefault(Path(row.pop("file")).name, []).append(row)
    assert boxes["a.png"] == boxes["b.npy"] == boxes["c.tif"]
    errors = capsys.readouterr().err
    assert "d.jpg: cannot be read: found 3 channels (in the mode RGB), need 4" in errors
    assert "e.mp4: a video has 3 channels, the model needs 4" in errors
    image_file = Image.open(tmp_path / "exp" / "b.jpg")
    assert image_file.mode == "RGB" and image_file.size == image.shape[1::-1]


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_export_of_4_channels(format, four, tmp_path, capsys):
    target = tmp_path / "best.pt"
    target.write_bytes(weights(four).read_bytes())
    assert export.main(["--weights", str(target), "--format", format]) == 0
    assert "max difference from PyTorch on random input: " in capsys.readouterr().out
    images = torch.rand(1, 4, 64, 64)
    metadata = {"channels": ""}
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "best.onnx")
        metadata = session.get_modelmeta().custom_metadata_map
        boxes = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    else:
        boxes, _ = torch.jit.load(tmp_path / "best.torchscript", _extra_files=metadata)(images)
    assert metadata["channels"] in ("4", b"4")
    with torch.no_grad():
        expected, _ = load(target).predict(images)
    assert torch.allclose(boxes, expected, atol=1e-2)


def test_run_of_1_channel_is_resumed_validated_and_detects(tmp_path, capsys):
    config = write_channels(tmp_path / "data", 1)
    options = {"data": config, "epochs": 1, "noplots": True, "project": tmp_path, "cache": "ram"}
    assert run_train(**options, name="whole") == 0
    output = capsys.readouterr()
    assert "channels: 1: hue and saturation have no effect" in output.out
    assert "train: color images, converted to gray because of `channels: 1`: 1" in output.err
    with signal_at("batch", epoch=0, batch=0):
        assert run_train(**options) == 128 + signal.SIGTERM
    assert resume_train(tmp_path / "exp") == 0
    assert_same_run(tmp_path / "exp", tmp_path / "whole", ignore=("args",))
    best = str(weights(tmp_path))
    assert val.main(["--weights", best, "--project", str(tmp_path / "val"), "--noplots"]) == 0
    source = str(tmp_path / "data" / "images" / "val")
    options = ["--source", source, "--project", str(tmp_path / "detect")]
    assert detect.main(["--weights", best, *options]) == 0
    assert len(list((tmp_path / "detect" / "exp").iterdir())) == 4


def test_other_channels_than_those_of_the_run_are_refused(four, tmp_path, capsys):
    config = write_tiny(tmp_path / "data")
    best, last = weights(four), four / "exp" / "weights" / "last.pt"
    assert val.main(["--weights", str(best), "--data", str(config)]) == 2
    expected = "has channels: 3, but", "was trained on images of 4 channels"
    assert_one_line_error(capsys.readouterr().err, str(config), *expected, command="val.py")
    same = (four / "data" / "data.yaml").read_text().replace("channels: 4", "channels: 3")
    other = four / "data" / "three.yaml"
    other.write_text(same)
    assert resume_train(last, data=other, epochs=4) == 2
    error = capsys.readouterr().err
    assert (
        "three.yaml: " in error and "8 images of 4 channels" in error and "Traceback" not in error
    )


def test_weights_of_3_channels_initialize_all_but_the_first_convolution(four, tmp_path, capsys):
    state = load_state(four / "exp", "best.pt")
    model = build_model("yolo-n", 2)
    checkpoint = state | {"model_config": model.config, "ema": {"model": model.state_dict()}}
    torch.save(checkpoint, tmp_path / "three.pt")
    options = {"data": four / "data" / "data.yaml", "noplots": True, "epochs": 1}
    with signal_at("batch", epoch=0, batch=0):
        run_train(**options, weights=tmp_path / "three.pt", project=tmp_path)
    message = "the first convolution stays random: it is for 4 channels, that of the weights for 3"
    output = capsys.readouterr().out
    assert message in output and "(1 of " in output


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("yolo-n", None),
        ("yolo-n", "torchvision/resnet18"),
        ("yolo-n", "torchvision/mobilenet_v3_small"),
        ("torchvision/ssdlite320_mobilenet_v3_large", None),
        ("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", None),
    ],
)
def test_every_model_takes_the_channels_it_is_built_for(name, backbone, channels):
    torch.manual_seed(0)
    model = build_model(name, 2, backbone, channels).eval()
    assert model.channels == channels and model.config["channels"] == channels
    rebuilt = build_model(**model.config)
    rebuilt.load_state_dict(model.state_dict())
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.in_channels == channels and first.weight.shape[1] == channels
    image = torch.rand(channels, 64, 64)
    with torch.no_grad():
        one, other = model([image]), rebuilt.eval()([image])
    assert bitwise_equal(one, other)


def test_model_for_rgb_only_is_refused_for_other_channels(tmp_path, monkeypatch, capsys):
    class ForRGB(models.Detector):
        def __init__(self, num_classes: int) -> None:
            super().__init__()

    monkeypatch.setitem(models.MODELS, "for-rgb", ForRGB)
    config = write_channels(tmp_path / "data", 1)
    assert run_train(data=config, model="for-rgb", project=tmp_path) == 2
    expected = "--model for-rgb: takes images of 3 channels, not of 1 (allowed: yolo-n, "
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()
