"""Samples: boxes lie on the objects, and a sample depends on its key alone."""

import math
import os
from dataclasses import replace
from fractions import Fraction
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.config import read_data_config
from data.dataset import TrainSet, ValSet, collate
from data.formats import Annotations, read_split
from data.images import read_image
from data.sampler import EpochBatchSampler, SampleKey
from utils.errors import UserError
from utils.hyp import Hyp

RED = (220, 30, 30)
BOX = (60, 20, 90, 70)  # of the red object, xyxy, in the 120x90 image after EXIF rotation
SIZE = (120, 90)
PLAIN = Hyp(mosaic=0, scale=0, translate=0, fliplr=0, hue=0, saturation=0, brightness=0)


def make_image() -> Image.Image:
    image = Image.new("RGB", SIZE, (20, 60, 20))
    image.paste(RED, BOX)
    return image


def write(kind: str, folder: Path) -> Path:
    image = make_image()
    if kind == "rgb.jpg":
        image.save(folder / kind, quality=98)
    elif kind == "gray.jpg":
        gray = Image.new("L", SIZE, 10)
        gray.paste(230, BOX)
        gray.save(folder / kind, quality=98)
    elif kind == "cmyk.jpg":
        image.convert("CMYK").save(folder / kind, quality=98)
    elif kind.startswith("exif"):
        orientation = int(kind[4])
        turn = Image.Transpose
        undo = {3: turn.ROTATE_180, 5: turn.TRANSPOSE, 6: turn.ROTATE_90, 8: turn.ROTATE_270}
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.transpose(undo[orientation]).save(folder / kind, quality=98, exif=exif)
    elif kind == "alpha.png":
        image.putalpha(Image.linear_gradient("L").resize(SIZE))
        image.save(folder / kind)
    elif kind == "palette.png":
        image.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / kind)
    elif kind == "deep.png":  # grayscale with 16 bits per pixel
        deep = np.full(SIZE[::-1], 2000, dtype=np.uint16)
        deep[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 60000
        Image.fromarray(deep).save(folder / kind)
    else:
        image.save(folder / kind)
    return folder / kind


def write_dataset(folder: Path, kinds: list[str], lines: str):
    """Write one image of each kind, all with the same label lines; return the annotations."""
    for sub in ("images", "labels"):
        (folder / sub).mkdir()
    for kind in kinds:
        write(kind, folder / "images")
        (folder / "labels" / kind).with_suffix(".txt").write_text(lines)
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [object, other]\n")
    return read_split(read_data_config(folder / "data.yaml"), "train")


def yolo_line(box: tuple[int, int, int, int], label: int = 0) -> str:
    x1, y1, x2, y2 = box
    width, height = SIZE
    center = f"{(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height}"
    return f"{label} {center} {(x2 - x1) / width} {(y2 - y1) / height}\n"


def contrast(image: torch.Tensor, box: torch.Tensor) -> tuple[float, float]:
    """Return the median red inside the box, shrunk by a pixel, and in a ring just outside it."""
    x1, y1, x2, y2 = box.round().int().tolist()
    red = image[0].float()
    inside, ring = torch.zeros(2, *red.shape, dtype=torch.bool)
    ring[max(0, y1 - 4) : y2 + 4, max(0, x1 - 4) : x2 + 4] = True
    ring[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
    inside[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] = True
    return float(red[inside].median()), float(red[ring].median())


KINDS = [
    "rgb.jpg",
    "gray.jpg",
    "cmyk.jpg",
    "exif3.jpg",
    "exif5.jpg",
    "exif6.jpg",
    "exif8.jpg",
    "alpha.png",
    "palette.png",
    "deep.png",
    "object.bmp",
    "object.webp",
    "object.gif",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augmented", [False, True])
def test_samples_boxes_lie_on_the_objects(kind, augmented, tmp_path):
    annotations = write_dataset(tmp_path, [kind], yolo_line(BOX))
    assert annotations.errors == () and annotations.sizes.tolist() == [list(SIZE)]
    if augmented:
        hyp = Hyp(brightness=0, saturation=0, hue=0, flipud=0.5)
        train_set = TrainSet(annotations, hyp, seed=1, mosaic_until=8)
        samples = [train_set[SampleKey(epoch, 0, (0, 0, 0, 0), 128)] for epoch in range(16)]
    else:
        train_set = TrainSet(annotations, PLAIN, seed=1, mosaic_until=0)
        samples = [ValSet(annotations, 128, stride=32)[0], train_set[SampleKey(0, 0, (0,), 128)]]
    num_checked = 0
    for image, target in samples:
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        for box in target["boxes"]:
            if min(box[2] - box[0], box[3] - box[1]) < 8:
                continue  # too thin to measure a ring around
            inside, outside = contrast(image, box)
            assert inside > 180 and outside < 150, (kind, box, inside, outside)
            num_checked += 1
    assert num_checked >= len(samples) / 2


def test_train_set_image_without_objects(tmp_path):
    annotations = write_dataset(
        tmp_path, ["object.png", "empty.png", "unlabelled.png"], yolo_line(BOX)
    )
    (tmp_path / "labels" / "empty.txt").write_text("\n")
    (tmp_path / "labels" / "unlabelled.txt").unlink()
    annotations = read_split(read_data_config(tmp_path / "data.yaml"), "train")
    assert annotations.errors == () and len(annotations) == 3 and len(annotations.boxes) == 1
    for index, name in enumerate(annotations.files):
        train_set = TrainSet(annotations, PLAIN, seed=0, mosaic_until=0)
        _, target = train_set[SampleKey(0, index, (index,), 64)]
        count = 1 if Path(str(name)).stem == "object" else 0
        assert target["boxes"].shape == (count, 4) and target["labels"].shape == (count,)


def test_samples_keep_a_one_pixel_box(tmp_path):
    annotations = write_dataset(tmp_path, ["a.png"], yolo_line((100, 50, 101, 51), label=1))
    for image, target in (
        ValSet(annotations, 120, stride=32)[0],
        TrainSet(annotations, PLAIN, seed=0, mosaic_until=0)[SampleKey(0, 0, (0,), 120)],
    ):
        assert target["labels"].tolist() == [1] and image.shape[0] == 3
        width, height = (target["boxes"][0, 2:] - target["boxes"][0, :2]).tolist()
        assert width == pytest.approx(1, abs=1e-3) and height == pytest.approx(1, abs=1e-3)


def test_train_set_without_augmentation_keeps_pixels(tmp_path):
    annotations = write_dataset(tmp_path, ["a.png"], yolo_line(BOX))
    image, target = TrainSet(annotations, PLAIN, seed=0, mosaic_until=0)[SampleKey(0, 0, (0,), 120)]
    pixels = torch.from_numpy(np.array(make_image())).permute(2, 0, 1)
    assert torch.equal(image[:, 15:105], pixels)
    assert (image[:, :15] == 114).all() and (image[:, 105:] == 114).all()
    assert target["boxes"].tolist() == [pytest.approx([60, 35, 90, 85], abs=1e-3)]


def test_train_set_flips_are_exact(tmp_path):
    annotations = write_dataset(tmp_path, ["a.png"], yolo_line(BOX))
    both = PLAIN.model_copy(update={"fliplr": 1.0, "flipud": 1.0})
    plain, _ = TrainSet(annotations, PLAIN, seed=0, mosaic_until=0)[SampleKey(0, 0, (0,), 120)]
    image, target = TrainSet(annotations, both, seed=0, mosaic_until=0)[SampleKey(0, 0, (0,), 120)]
    assert torch.equal(image, plain.flip(-1, -2))
    assert target["boxes"].tolist() == [pytest.approx([30, 35, 60, 85], abs=1e-3)]


def test_color_matrix_equals_torchvision_adjustments():
    from torchvision.transforms.v2 import functional as F

    from data.augment import apply_color_matrix, color_matrix

    images = torch.randint(40, 160, (2, 3, 32, 48), dtype=torch.uint8)

    class FixedRng:
        def __init__(self, *values):
            self.values = list(values)

        def uniform(self, low, high):
            return self.values.pop(0)

    # The hue of the second image is rotated by a third of the circle: RGB becomes BRG.
    matrices = [
        torch.from_numpy(color_matrix(Hyp(), FixedRng(*values)))
        for values in ((1.2, 0.6, 0.0), (1.0, 1.0, 1 / 3))
    ]
    expected = F.adjust_brightness(F.adjust_saturation(images[0], 0.6), 1.2), images[1].roll(1, 0)
    for dtype, tolerance in ((torch.float32, 3 / 255), (torch.bfloat16, 6 / 255)):
        colored = apply_color_matrix(images, matrices, dtype)
        assert colored.dtype == dtype and colored.shape == images.shape
        for actual, reference in zip(colored, expected, strict=True):
            assert (actual - reference / 255).abs().max() <= tolerance


def load_epoch(annotations, workers: int, start_batch: int = 0):
    train_set = TrainSet(annotations, Hyp(), seed=3, mosaic_until=2)
    batches = EpochBatchSampler(len(train_set), 5, (64, 64), seed=3)
    batches.epoch, batches.start_batch = 1, start_batch
    loader = DataLoader(train_set, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    return list(loader)


def test_train_set_sample_depends_on_its_key_alone(tiny):
    annotations = read_split(read_data_config(tiny), "train")
    expected = load_epoch(annotations, workers=0)
    for actual in (
        load_epoch(annotations, workers=2),
        load_epoch(annotations, workers=0, start_batch=1),
    ):
        batches = zip(expected[-len(actual) :], actual, strict=True)
        for (images, targets), (other_images, other_targets) in batches:
            assert torch.equal(images, other_images)
            for a, b in zip(targets, other_targets, strict=True):
                assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def is_in_shared_memory(samples):
    """A `collate_fn`: whether the batch that `collate` makes of the samples is in shared memory."""
    return collate(samples)[0].is_shared()


@pytest.mark.parametrize("workers", [0, 1])
def test_collate_makes_batches_in_shared_memory_in_workers_only(tiny, workers):
    """Otherwise a batch would be copied there to be sent."""
    val_set = ValSet(read_split(read_data_config(tiny), "val"), 64, stride=32)
    loader = DataLoader(val_set, 2, num_workers=workers, collate_fn=is_in_shared_memory)
    assert list(loader) == [workers > 0] * 3


@pytest.mark.skipif(os.name != "posix", reason="needs file descriptors")
def test_train_set_is_sent_to_workers_as_references(tiny):
    """Neither annotations nor cached images are copied to a worker that is not forked."""
    annotations = read_split(read_data_config(tiny), "train")
    boxes = np.tile(annotations.boxes, (10_000, 1))
    many = replace(annotations, boxes=boxes, labels=np.zeros(len(boxes), np.int64))
    hyp = Hyp(scheduler={"name": "constant"})
    train_set = TrainSet(many, hyp, seed=3, mosaic_until=2)
    train_set.images.preload()
    try:
        assert len(ForkingPickler.dumps(train_set)) < 20_000
    finally:
        resource_sharer.stop()


class Recorder:
    """A transform that records the first number of its random stream and changes nothing."""

    name = "recorder"

    def __init__(self):
        self.numbers = []

    def __call__(self, sample, rng, context):
        self.numbers.append(rng.random())
        return sample


class PasteNeighbor:
    """A transform that needs another image: it pastes a corner of it."""

    name = "paste_neighbor"

    def __init__(self, p):
        self.p = p

    def __call__(self, sample, rng, context):
        if rng.random() >= self.p:
            return sample
        neighbor = context.neighbors[int(rng.integers(len(context.neighbors)))]
        image = sample.image.clone()
        image[:, :8, :8] = neighbor.image[:, :8, :8]
        return sample._replace(image=image)


def samples_of(train_set, epoch=0):
    batches = EpochBatchSampler(len(train_set), 5, (64, 64), seed=3)
    batches.epoch = epoch
    return [sample for keys in batches for sample in train_set.__getitems__(keys)]


def equal_samples(samples, others):
    return all(
        torch.equal(image, other_image) and all(torch.equal(a[key], b[key]) for key in a)
        for (image, a), (other_image, b) in zip(samples, others, strict=True)
    )


@pytest.mark.parametrize("position", [0, 1, 2, 3])
@pytest.mark.parametrize("extra", [Recorder(), PasteNeighbor(0.0)])
def test_train_set_extra_transform_does_not_change_the_others(tiny, position, extra):
    annotations = read_split(read_data_config(tiny), "train")
    hyp = Hyp(mosaic=0.5, flipud=0.5)
    train_set = TrainSet(annotations, hyp, seed=3, mosaic_until=2)
    expected = samples_of(train_set)
    train_set.transforms.insert(position, extra)
    assert equal_samples(samples_of(train_set), expected)


def test_train_set_each_transform_draws_independently_of_the_others(tiny):
    """The flips of a run stay the same when the probabilities of others become 0."""
    annotations = read_split(read_data_config(tiny), "train")
    numbers = []
    for hyp in (Hyp(), Hyp(mosaic=0, fliplr=0, scale=0, hue=0, saturation=0, brightness=0)):
        train_set = TrainSet(annotations, hyp, seed=3, mosaic_until=2)
        recorder = Recorder()
        train_set.transforms.append(recorder)
        colors = torch.stack([target["color"] for _, target in samples_of(train_set)])
        numbers.append(recorder.numbers)
    assert numbers[0] == numbers[1] and len(set(numbers[0])) == len(annotations)
    assert torch.equal(colors, torch.eye(3).expand_as(colors))


def test_train_set_flip_draws_do_not_depend_on_mosaic(tiny):
    annotations = read_split(read_data_config(tiny), "train")
    flipped = []
    for mosaic in (0.0, 1.0):
        samples = [
            samples_of(TrainSet(annotations, Hyp(mosaic=mosaic, fliplr=p), 3, mosaic_until=2))
            for p in (0.0, 0.5)
        ]
        pairs = zip(*samples, strict=True)
        flipped.append([not torch.equal(plain, flip) for (plain, _), (flip, _) in pairs])
    assert flipped[0] == flipped[1] and 0 < sum(flipped[0]) < len(flipped[0])


def test_train_set_transform_can_use_neighbors_that_source_images_names(tiny):
    annotations = read_split(read_data_config(tiny), "train")
    hyp = Hyp(mosaic=0.5)
    train_set = TrainSet(annotations, hyp, seed=3, mosaic_until=2)
    expected = samples_of(train_set)
    train_set.transforms.append(PasteNeighbor(1.0))
    loaded = []
    load = train_set._load_without_crowds
    train_set._load_without_crowds = lambda index: loaded.append(index) or load(index)
    batches = EpochBatchSampler(len(train_set), 5, (64, 64), seed=3)
    samples = []
    for batch, keys in enumerate(batches):
        loaded.clear()
        samples += train_set.__getitems__(keys)
        assert len(loaded) == len(set(loaded)), "an image was loaded twice for a batch"
        assert set(loaded) <= set(batches.source_images(batch, batch))
    assert not equal_samples(samples, expected)
    pairs = zip(samples, expected, strict=True)
    assert all(torch.equal(a[:, 8:, 8:], b[:, 8:, 8:]) for (a, _), (b, _) in pairs)


def test_train_set_without_mosaic_loads_only_the_images_of_the_batch(tiny):
    annotations = read_split(read_data_config(tiny), "train")
    train_set = TrainSet(annotations, Hyp(), seed=3, mosaic_until=0)
    loaded = []
    load = train_set._load_without_crowds
    train_set._load_without_crowds = lambda index: loaded.append(index) or load(index)
    samples_of(train_set)
    assert sorted(loaded) == list(range(len(annotations)))


def test_val_set_images_of_mixed_shapes_fit_one_shape(tmp_path):
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    for i, size in enumerate([(200, 100), (50, 80), (33, 33), (640, 7)]):
        Image.new("RGB", size).save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    annotations = read_split(read_data_config(tmp_path / "data.yaml"), "val")
    val_set = ValSet(annotations, 96, stride=32)
    for i in range(4):
        image, target = val_set[i]
        assert image.shape == (3, 96, 96)
        width, height = annotations.sizes[i]
        box = target["boxes"][0] / target["scale"].repeat(2)
        assert box.tolist() == pytest.approx([0, 0, width, height], abs=1e-3)


def one_image(width: int, height: int) -> Annotations:
    """Return the annotations of an image without boxes, whose file is not there."""
    sizes, offsets = np.int32([[width, height]]), np.zeros(2, np.int64)
    none = np.zeros(0, np.int64)
    boxes = np.zeros((0, 4), np.float32)
    return Annotations(("a",), np.array(["a.png"]), sizes, offsets, boxes, none, none > 0, (), ())


@pytest.mark.parametrize("imgsz", [320, 640, 960, 1280])
def test_val_set_shape_is_the_smallest_for_every_side(imgsz):
    """The longer side fills `imgsz`, never a stride more; the other is rounded up to a stride."""
    for side in range(1, 2001):
        assert ValSet(one_image(side, side), imgsz, 32).shape == (imgsz, imgsz), side
        shorter = Fraction(min(side, 1333) * imgsz, max(side, 1333))
        shape = ValSet(one_image(side, 1333), imgsz, 32).shape
        assert sorted(shape) == [math.ceil(shorter / 32) * 32, imgsz], side


def test_read_image_names_the_file_that_cannot_be_decoded(tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("not an image")
    with pytest.raises(UserError, match=r"text\.jpg"):
        read_image(str(path))
