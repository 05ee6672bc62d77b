"""The built-in data set: coloured, rotated, overlapping shapes on textured backgrounds, drawn from a seed.

It exists so that a fresh clone trains and tests with no download. It is written once, in the ordinary YOLO layout.
"""

import colorsys
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COUNTS = {"train": 400, "val": 80}
SIDES = (128, 192)  # smallest and largest width and height, pixels
RADII = (12, 44)  # smallest and largest half-diagonal of a shape, pixels
HIDDEN = 0.2  # no shape is hidden by later ones by more than this share
FINE = 4  # outlines are drawn this many times larger and scaled down, for smooth edges


def make_shapes(folder: Path, seed: int = 0) -> bool:
    """Draw the data set into `folder` unless it is there; True if it was drawn. The same seed gives the same pictures.

    It appears whole or not at all, also when two processes make it at once. Raises OSError when it cannot be written.
    """
    if folder.exists():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=folder.name + "-", dir=folder.parent))
    try:
        for number, (split, count) in enumerate(COUNTS.items()):
            for kind in ("images", "labels"):
                (temporary / kind / split).mkdir(parents=True)
            for i in range(count):
                image, lines = _draw(np.random.default_rng((seed, number, i)))
                image.save(temporary / "images" / split / f"{i:04d}.jpg", quality=92)
                (temporary / "labels" / split / f"{i:04d}.txt").write_text(
                    "".join(lines), encoding="utf-8"
                )
        temporary.chmod(0o755)
        os.rename(temporary, folder)  # noqa: PTH104 - fails on a folder that has meanwhile been filled, as it should
    except BaseException as error:  # a signal, too
        shutil.rmtree(temporary, ignore_errors=True)
        if not (isinstance(error, OSError) and folder.exists()):
            raise
        return False
    return True


def _outline(label: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Corners (n, 2) of a shape of class `label` around (0, 0), rotated at random, within `radius`."""
    if label == 0:
        turns, reach = np.arange(48) / 48, np.ones(48)
    elif label in (1, 2):
        corners = 4 if label == 1 else 3
        turns, reach = np.arange(corners) / corners, np.ones(corners)
    elif label == 3:
        turns, reach = np.arange(10) / 10, np.tile([1.0, 0.42], 5)
    else:  # a cross: the twelve corners of two bars, each 0.36 as wide as it is long
        wide, deep = (
            math.atan2(0.36, 1) / (2 * math.pi),
            math.hypot(0.36, 0.36) / math.hypot(1, 0.36),
        )
        turns = (np.arange(4)[:, None] / 4 + [-wide, wide, 1 / 8]).ravel()
        reach = np.tile([1.0, 1.0, deep], 4)
    angles = 2 * math.pi * (turns + rng.random())
    stretch = rng.uniform(0.75, 1.0) if label in (0, 1, 2) else 1.0
    points = radius * np.stack((reach * np.cos(angles), reach * np.sin(angles)), axis=1)
    tilt = 2 * math.pi * rng.random()
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    return points * (1.0, stretch) @ turn


def _noise(height: int, width: int, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (height, width) in 0..1 with blots of about `cell` pixels."""
    coarse = rng.random((height // cell + 2, width // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Two muted colours, mixed by noise of three finenesses: (height, width, 3) float, 0..255."""
    mix = sum(
        weight * _noise(height, width, cell, rng)
        for weight, cell in ((0.5, 48), (0.3, 12), (0.2, 2))
    )
    low, high = rng.uniform(20, 235, (2, 1)) + rng.uniform(-25, 25, (2, 3))
    return low + (high - low) * mix[..., None]


def _paint(label: int, rng: np.random.Generator) -> np.ndarray:
    """A colour (3,), stronger than the background's. A class has hues it likes, as things in the world do, but shares them."""
    hue = (label / 5 + rng.normal(0, 0.1)) % 1
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0)))


def _draw(rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """One picture and its label lines."""
    width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    pixels = _background(height, width, rng)
    owner = np.full((height, width), -1)  # which shape each pixel shows
    areas: list[int] = []
    lines: list[str] = []
    for _ in range(int(rng.integers(1, 13))):
        label = int(rng.integers(5))
        radius = math.exp(rng.uniform(math.log(RADII[0]), math.log(RADII[1])))
        points = _outline(label, radius, rng) + rng.uniform(
            (radius / 2, radius / 2), (width - radius / 2, height - radius / 2)
        )
        mask = Image.new("L", (width * FINE, height * FINE))
        ImageDraw.Draw(mask).polygon([tuple(p) for p in points * FINE], fill=255)
        alpha = (
            np.asarray(mask.resize((width, height), Image.Resampling.BOX), dtype=np.float32)[
                ..., None
            ]
            / 255
        )
        covered = alpha[..., 0] > 0.5
        left = [np.count_nonzero((owner == i) & ~covered) for i in range(len(areas))]
        if not covered.any() or any(
            now < (1 - HIDDEN) * area for now, area in zip(left, areas, strict=True)
        ):
            continue  # it would hide too much of an earlier one
        texture = _paint(label, rng) + rng.uniform(0, 60) * (
            _noise(height, width, int(rng.integers(2, 9)), rng)[..., None] - 0.5
        )
        pixels = pixels * (1 - alpha) + texture * alpha
        owner[covered] = len(areas)
        areas.append(int(covered.sum()))
        (x1, y1), (x2, y2) = points.min(0).clip(0), points.max(0).clip(None, (width, height))
        box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in box) + "\n")
    pixels = pixels + rng.normal(0, rng.uniform(0, 8), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), lines
