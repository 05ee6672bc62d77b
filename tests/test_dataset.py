"""Samples: whatever the picture's format, boxes lie on the objects; and a sample depends on its key alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.config import read_data_config
from data.dataset import TrainSet, ValSet, collate
from data.formats import read_split
from data.images import read_image
from data.sampler import EpochBatchSampler
from utils.errors import UserError
from utils.hyp import Hyp

RED = (220, 30, 30)
BOX = (60, 20, 90, 70)  # of the red object, xyxy, in the 120x90 picture as shown
SIZE = (120, 90)
PLAIN = Hyp(mosaic=0, scale=0, translate=0, fliplr=0, hue=0, saturation=0, brightness=0)


def as_shown() -> Image.Image:
    picture = Image.new("RGB", SIZE, (20, 60, 20))
    picture.paste(RED, BOX)
    return picture


def write(kind: str, folder: Path) -> Path:
    picture = as_shown()
    if kind == "rgb.jpg":
        picture.save(folder / kind, quality=98)
    elif kind == "grey.jpg":
        Image.new("L", SIZE, 10).save(folder / kind)
        grey = Image.new("L", SIZE, 10)
        grey.paste(230, BOX)
        grey.save(folder / kind, quality=98)
    elif kind == "cmyk.jpg":
        picture.convert("CMYK").save(folder / kind, quality=98)
    elif kind.startswith("exif"):
        orientation = int(kind[4])
        turn = Image.Transpose
        undo = {3: turn.ROTATE_180, 5: turn.TRANSPOSE, 6: turn.ROTATE_90, 8: turn.ROTATE_270}
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.transpose(undo[orientation]).save(folder / kind, quality=98, exif=exif)
    elif kind == "alpha.png":
        picture.putalpha(Image.linear_gradient("L").resize(SIZE))
        picture.save(folder / kind)
    elif kind == "palette.png":
        picture.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / kind)
    elif kind == "deep.png":  # 16 bits a pixel, grey
        deep = np.full(SIZE[::-1], 2000, dtype=np.uint16)
        deep[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 60000
        Image.fromarray(deep).save(folder / kind)
    else:
        picture.save(folder / kind)
    return folder / kind


def data_set(folder: Path, kinds: list[str], lines: str):
    """A YOLO data set of one picture a kind, all with the same label lines; read as train."""
    for sub in ("images", "labels"):
        (folder / sub).mkdir()
    for kind in kinds:
        write(kind, folder / "images")
        (folder / "labels" / kind).with_suffix(".txt").write_text(lines)
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [object, other]\n")
    return read_split(read_data_config(folder / "data.yaml"), "train")


def yolo_line(box: tuple[int, int, int, int], label: int = 0) -> str:
    x1, y1, x2, y2 = box
    return f"{label} {(x1 + x2) / 2 / SIZE[0]} {(y1 + y2) / 2 / SIZE[1]} {(x2 - x1) / SIZE[0]} {(y2 - y1) / SIZE[1]}\n"


def contrast(image: torch.Tensor, box: torch.Tensor) -> tuple[float, float]:
    """Median of the first channel inside the box (shrunk by a pixel), and in a ring just outside it."""
    x1, y1, x2, y2 = box.round().int().tolist()
    red = image[0].float()
    near, within = torch.zeros_like(red, dtype=torch.bool), torch.zeros_like(red, dtype=torch.bool)
    near[max(0, y1 - 4) : y2 + 4, max(0, x1 - 4) : x2 + 4] = True
    near[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
    within[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] = True
    return float(red[within].median()), float(red[near].median())


KINDS = ["rgb.jpg", "grey.jpg", "cmyk.jpg", "exif3.jpg", "exif5.jpg", "exif6.jpg", "exif8.jpg", "alpha.png",
         "palette.png", "deep.png", "object.bmp", "object.webp", "object.gif"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augmented", [False, True])
def test_boxes_lie_on_the_objects(kind, augmented, tmp_path):
    annotations = data_set(tmp_path, [kind], yolo_line(BOX))
    assert annotations.errors == () and annotations.sizes.tolist() == [list(SIZE)]
    if augmented:
        samples = TrainSet(
            annotations, Hyp(brightness=0, saturation=0, hue=0, flipud=0.5), seed=1, mosaic_until=8
        )
        found = [samples[epoch, 0, (0, 0, 0, 0), 128] for epoch in range(16)]
    else:
        found = [
            ValSet(annotations, 128, stride=32)[0],
            TrainSet(annotations, PLAIN, seed=1, mosaic_until=0)[0, 0, (0,), 128],
        ]
    seen = 0
    for image, target in found:
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        for box in target["boxes"]:
            if min(box[2] - box[0], box[3] - box[1]) < 8:
                continue  # too thin to measure a ring around
            inside, outside = contrast(image, box)
            assert inside > 180 and outside < 150, (kind, box, inside, outside)
            seen += 1
    assert seen >= len(found) / 2


def test_a_picture_without_objects(tmp_path):
    annotations = data_set(tmp_path, ["object.png", "empty.png", "unlabelled.png"], yolo_line(BOX))
    (tmp_path / "labels" / "empty.txt").write_text("\n")
    (tmp_path / "labels" / "unlabelled.txt").unlink()
    annotations = read_split(read_data_config(tmp_path / "data.yaml"), "train")
    assert annotations.errors == () and len(annotations) == 3 and len(annotations.boxes) == 1
    for index, name in enumerate(annotations.files):
        _, target = TrainSet(annotations, PLAIN, seed=0, mosaic_until=0)[0, index, (index,), 64]
        count = 1 if Path(str(name)).stem == "object" else 0
        assert target["boxes"].shape == (count, 4) and target["labels"].shape == (count,)


def test_a_one_pixel_box(tmp_path):
    annotations = data_set(tmp_path, ["a.png"], yolo_line((100, 50, 101, 51), label=1))
    for image, target in (
        ValSet(annotations, 120, stride=32)[0],
        TrainSet(annotations, PLAIN, seed=0, mosaic_until=0)[0, 0, (0,), 120],
    ):
        assert target["labels"].tolist() == [1] and image.shape[0] == 3
        width, height = (target["boxes"][0, 2:] - target["boxes"][0, :2]).tolist()
        assert width == pytest.approx(1, abs=1e-3) and height == pytest.approx(1, abs=1e-3)


def test_pixels_of_a_plain_sample_are_the_picture(tmp_path):
    annotations = data_set(tmp_path, ["a.png"], yolo_line(BOX))
    image, target = TrainSet(annotations, PLAIN, seed=0, mosaic_until=0)[0, 0, (0,), 120]
    shown = torch.from_numpy(np.array(as_shown())).permute(2, 0, 1)
    assert torch.equal(image[:, 15:105], shown)
    assert (image[:, :15] == 114).all() and (image[:, 105:] == 114).all()
    assert target["boxes"].tolist() == [pytest.approx([60, 35, 90, 85], abs=1e-3)]


def test_flips_are_exact(tmp_path):
    annotations = data_set(tmp_path, ["a.png"], yolo_line(BOX))
    both = PLAIN.model_copy(update={"fliplr": 1.0, "flipud": 1.0})
    plain, _ = TrainSet(annotations, PLAIN, seed=0, mosaic_until=0)[0, 0, (0,), 120]
    image, target = TrainSet(annotations, both, seed=0, mosaic_until=0)[0, 0, (0,), 120]
    assert torch.equal(image, plain.flip(-1, -2))
    assert target["boxes"].tolist() == [pytest.approx([30, 35, 60, 85], abs=1e-3)]


def test_the_colour_matrix_is_torchvisions_adjustments():
    from torchvision.transforms.v2 import functional as F

    from data.augment import apply_color_matrix, color_matrix

    images = torch.randint(40, 160, (2, 3, 32, 48), dtype=torch.uint8)

    class Fixed:
        def __init__(self, *values):
            self.values = list(values)

        def uniform(self, low, high):
            return self.values.pop(0)

    # Of the second picture every channel moves on by one: a third of the circle.
    matrices = [
        torch.from_numpy(color_matrix(Hyp(), Fixed(*values)))
        for values in ((1.2, 0.6, 0.0), (1.0, 1.0, 1 / 3))
    ]
    expected = F.adjust_brightness(F.adjust_saturation(images[0], 0.6), 1.2), images[1].roll(1, 0)
    for dtype, near in ((torch.float32, 3 / 255), (torch.bfloat16, 6 / 255)):
        got = apply_color_matrix(images, matrices, dtype)
        assert got.dtype == dtype and got.shape == images.shape
        for one, other in zip(got, expected, strict=True):
            assert (one - other / 255).abs().max() <= near


def everything(annotations, workers: int, start: int = 0):
    samples = TrainSet(annotations, Hyp(), seed=3, mosaic_until=2)
    batches = EpochBatchSampler(len(samples), 5, (64, 64), seed=3)
    batches.epoch, batches.start = 1, start
    return list(DataLoader(samples, batch_sampler=batches, num_workers=workers, collate_fn=collate))


def test_a_sample_depends_on_its_key_alone(tiny):
    annotations = read_split(read_data_config(tiny), "train")
    whole = everything(annotations, workers=0)
    for other in (everything(annotations, workers=2), everything(annotations, workers=0, start=1)):
        for (images, targets), (again, targets_again) in zip(
            whole[-len(other) :], other, strict=True
        ):
            assert torch.equal(images, again)
            for a, b in zip(targets, targets_again, strict=True):
                assert torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"])


def test_val_samples_of_mixed_shapes_fit_one_shape(tmp_path):
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    for i, size in enumerate([(200, 100), (50, 80), (33, 33), (640, 7)]):
        Image.new("RGB", size).save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    samples = ValSet(read_split(read_data_config(tmp_path / "data.yaml"), "val"), 96, stride=32)
    for i in range(4):
        image, target = samples[i]
        assert image.shape == (3, 96, 96)
        width, height = samples.annotations.sizes[i]
        box = target["boxes"][0] / target["scale"].repeat(2)
        assert box.tolist() == pytest.approx([0, 0, width, height], abs=1e-3)


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("no picture")
    with pytest.raises(UserError, match=r"text\.jpg"):
        read_image(str(path))
