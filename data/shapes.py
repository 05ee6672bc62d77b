"""The built-in dataset: colored, rotated, overlapping shapes on textured backgrounds.

With it a fresh clone trains and tests without a download. It is drawn once, from a seed, and
written in the YOLO layout.
"""

import colorsys
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.config import DataConfig

COUNTS = {"train": 400, "val": 80}
IMAGE_SIZES = (128, 192)  # smallest and largest width and height, pixels
RADII = (12, 44)  # smallest and largest half-diagonal of a shape, pixels
MAX_HIDDEN = 0.2  # largest fraction of a shape that later ones may hide
SUPERSAMPLING = 4  # outlines are drawn this many times larger and scaled down, for smooth edges
DISC, SQUARE, TRIANGLE, STAR, CROSS = range(5)  # labels


def make_builtin(config: DataConfig) -> bool:
    """Draw the built-in dataset if `config` asks for it and its directory does not exist.

    Returns whether it was drawn. Raises OSError if it cannot be written.
    """
    return config.make == "shapes" and make_shapes(Path(config.path))


def make_shapes(root: Path, seed: int = 0) -> bool:
    """Draw the dataset into the directory `root`, the same for the same seed, if it does not exist.

    Returns whether it was drawn. The directory appears complete or not at all, also if two
    processes draw it at the same time. Raises OSError if it cannot be written.
    """
    if root.exists():
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=root.name + "-", dir=root.parent))
    try:
        for number, (split, count) in enumerate(COUNTS.items()):
            for kind in ("images", "labels"):
                (temporary / kind / split).mkdir(parents=True)
            for i in range(count):
                image, lines = _draw_image(np.random.default_rng((seed, number, i)))
                image.save(temporary / "images" / split / f"{i:04d}.jpg", quality=92)
                label_file = temporary / "labels" / split / f"{i:04d}.txt"
                label_file.write_text("".join(lines), encoding="utf-8")
        temporary.chmod(0o755)
        # Fails, as it should, if another process was faster and the directory is not empty.
        os.rename(temporary, root)  # noqa: PTH104
    except BaseException as error:  # KeyboardInterrupt, too
        shutil.rmtree(temporary, ignore_errors=True)
        if not (isinstance(error, OSError) and root.exists()):
            raise
        return False
    return True


def _outline(label: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Return the corners (n, 2) of a shape around (0, 0), within `radius`, rotated at random."""
    if label == DISC:
        turns, reach = np.arange(48) / 48, np.ones(48)
    elif label in (SQUARE, TRIANGLE):
        corners = 4 if label == SQUARE else 3
        turns, reach = np.arange(corners) / corners, np.ones(corners)
    elif label == STAR:
        turns, reach = np.arange(10) / 10, np.tile([1.0, 0.42], 5)
    else:  # the twelve corners of two crossed bars, each 0.36 times as wide as long
        half_turn = math.atan2(0.36, 1) / (2 * math.pi)
        inner = math.hypot(0.36, 0.36) / math.hypot(1, 0.36)
        turns = (np.arange(4)[:, None] / 4 + [-half_turn, half_turn, 1 / 8]).ravel()
        reach = np.tile([1.0, 1.0, inner], 4)
    angles = 2 * math.pi * (turns + rng.random())
    stretch = rng.uniform(0.75, 1.0) if label in (DISC, SQUARE, TRIANGLE) else 1.0
    points = radius * np.stack((reach * np.cos(angles), reach * np.sin(angles)), axis=1)
    angle = 2 * math.pi * rng.random()
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return points * (1.0, stretch) @ rotation


def _noise(height: int, width: int, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise (height, width) in 0..1 with blobs of about `cell` pixels."""
    coarse = rng.random((height // cell + 2, width // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return two muted colors mixed by noise of three scales: (height, width, 3), 0..255."""
    mix = sum(
        weight * _noise(height, width, cell, rng)
        for weight, cell in ((0.5, 48), (0.3, 12), (0.2, 2))
    )
    low, high = rng.uniform(20, 235, (2, 1)) + rng.uniform(-25, 25, (2, 3))
    return low + (high - low) * mix[..., None]


def _shape_color(label: int, rng: np.random.Generator) -> np.ndarray:
    """Return a color (3,), 0..255, more saturated than the background's.

    The hue correlates with the class, but is not unique to it.
    """
    hue = (label / 5 + rng.normal(0, 0.1)) % 1
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0)))


def _coverage(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the fraction (height, width, 1) float32 of each pixel that a polygon covers."""
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points * SUPERSAMPLING], fill=255)
    mask = mask.resize((width, height), Image.Resampling.BOX)
    return np.asarray(mask, dtype=np.float32)[..., None] / 255


def _draw_image(rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """Draw one image and return it with its label lines."""
    width, height = (int(size) for size in rng.integers(IMAGE_SIZES[0], IMAGE_SIZES[1] + 1, 2))
    pixels = _background(height, width, rng)
    shape_index = np.full((height, width), -1)  # of the shape that each pixel shows
    areas: list[int] = []
    lines: list[str] = []
    for _ in range(int(rng.integers(1, 13))):
        label = int(rng.integers(5))
        radius = math.exp(rng.uniform(math.log(RADII[0]), math.log(RADII[1])))
        outline = _outline(label, radius, rng)
        low, high = (radius / 2, radius / 2), (width - radius / 2, height - radius / 2)
        points = outline + rng.uniform(low, high)
        alpha = _coverage(points, width, height)
        covered = alpha[..., 0] > 0.5
        visible = [np.count_nonzero((shape_index == i) & ~covered) for i in range(len(areas))]
        if not covered.any() or any(
            pixels_left < (1 - MAX_HIDDEN) * area
            for pixels_left, area in zip(visible, areas, strict=True)
        ):
            continue  # it would hide too much of an earlier shape
        color, contrast = _shape_color(label, rng), rng.uniform(0, 60)
        noise = _noise(height, width, int(rng.integers(2, 9)), rng)
        texture = color + contrast * (noise[..., None] - 0.5)
        pixels = pixels * (1 - alpha) + texture * alpha
        shape_index[covered] = len(areas)
        areas.append(int(covered.sum()))
        lines.append(_label_line(label, points, width, height))
    pixels = pixels + rng.normal(0, rng.uniform(0, 8), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), lines


def _label_line(label: int, points: np.ndarray, width: int, height: int) -> str:
    """Return the YOLO line of the box around `points`, clipped to the image."""
    (x1, y1), (x2, y2) = points.min(0).clip(0), points.max(0).clip(None, (width, height))
    box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return f"{label} " + " ".join(f"{value:.6f}" for value in box) + "\n"
