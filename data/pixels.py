"""Decoded images of any color mode as 8-bit RGB, by rules that are the same for every image."""

from contextlib import suppress

import numpy as np
from PIL import Image

# Modes that Pillow converts to RGB whatever their pixels are.
PLAIN_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
ORIENTATION_TAG = 0x0112  # of EXIF
# What is shown of an image with EXIF's orientation 2 to 8.
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DARK = 4096  # 12 bits
DARK_NOTE = (
    f"grayscale images of 16 or 32 bits with no value above {DARK - 1}, nearly black because the "
    "high byte of 0 to 65535 is taken (scale their values up)"
)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in the mode RGB.

    Of 16-bit values, and 32-bit integers from 0 to 65535, the high byte is taken; floating-point
    values from 0 to 1 become 0 to 255. Alpha is dropped: a transparent pixel has the color that is
    stored for it. Raises ValueError for other values and for modes that have no conversion.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.mode not in PLAIN_MODES:
        raise ValueError(
            f"found the color mode {image.mode} (need grayscale, RGB, CMYK or a palette)"
        )
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    is_float = values.dtype.kind == "f"
    low, high = values.min(), values.max()
    limit = 1 if is_float else 65535
    if not (low >= 0 and high <= limit):
        kind = "floating-point" if is_float else "32-bit"
        raise ValueError(f"found {kind} pixels from {low:g} to {high:g} (allowed: 0 to {limit})")
    return (np.rint(values * 255) if is_float else values >> 8).astype(np.uint8)


def is_dark(image: Image.Image) -> bool:
    """Whether the integers of a 16-bit or 32-bit image are so low that it is nearly black."""
    return image.mode.startswith("I") and bool(np.asarray(image).max() < DARK)


def exif_orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, from 1 to 8; 1 if there is none, or the block is damaged."""
    if "exif" not in image.info:
        return 1
    # Not image.getexif(): it decodes a PNG whose EXIF block is behind the pixels.
    exif, value = Image.Exif(), 1
    with suppress(Exception):  # damaged blocks raise exceptions of any type
        exif.load(image.info["exif"])
        value = exif.get(ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and value in TRANSPOSES else 1
