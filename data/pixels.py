"""Decoded images of any color mode with 8 bits, as RGB or with other channels, by fixed rules."""

from contextlib import suppress

import numpy as np
from PIL import Image

# Modes that Pillow converts to RGB whatever their pixels are.
PLAIN_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
NUM_CHANNELS = {"1": 1, "L": 1, "I": 1, "F": 1, "LA": 2, "RGBA": 4}  # the other modes are colors
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
SAMPLES_PER_PIXEL, EXTRA_SAMPLES = 277, 338  # tags of TIFF
DARK = 4096  # 12 bits
DARK_NOTE = (
    f"images of 16 or 32 bits with no value above {DARK - 1}, nearly black because the "
    "high byte of 0 to 65535 is taken (scale their values up)"
)
COLOR_NOTE = "color images, converted to gray because of `channels: 1`"


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in the mode RGB.

    Of 16-bit values, and 32-bit integers from 0 to 65535, the high byte is taken; floating-point
    values from 0 to 1 become 0 to 255. Alpha is dropped: a transparent pixel has the color that is
    stored for it. Raises ValueError for other values and for modes that have no conversion.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    elif image.mode not in PLAIN_MODES:
        raise ValueError(
            f"found the color mode {image.mode} (need grayscale, RGB, CMYK or a palette)"
        )
    return image.convert("RGB")


def to_bands(image: Image.Image, channels: int) -> list[Image.Image]:
    """Return images with 8 bits whose bands, in their order, are the `channels` of `image`.

    For 3 channels that is `to_rgb`. For others see `check_channels`; a color image becomes gray by
    the luma of ITU-R BT.601. Raises ValueError as `check_channels` and `to_rgb` do.
    """
    if channels == 3:
        return [to_rgb(image)]
    bands = []
    for page in check_channels(image, channels):
        image.seek(page)
        bands.append(to_rgb(image).getchannel(0))
    if bands:
        return bands
    if channels == 1:
        return [image if image.mode == "L" else to_rgb(image).convert("L")]
    return [image.convert("LA" if channels == 2 else "RGBA")]


def check_channels(image: Image.Image, channels: int) -> list[int]:
    """Check that `image` can have `channels`; return the pages that are these, or [].

    Any image can have 3, and any of one page 1. Otherwise a file must have as many: gray and alpha
    (2), RGBA (4), or a TIFF with a page of one band for each. Raises ValueError with a message for
    the user if it has not.
    """
    if channels == 3:
        return []
    _check_tiff(image)
    pages = _pages(image)
    num_bands = len(pages) or _count_channels(image)
    what = "pages of one band" if pages else f"in the mode {_mode(image)}"
    if num_bands != channels and (pages or channels != 1):
        raise ValueError(
            f"found {num_bands} channel{'s' * (num_bands > 1)} ({what}), need {channels}"
        )
    return pages


def becomes_gray(image: Image.Image, channels: int) -> bool:
    """Whether `to_bands` takes the luma of a color image."""
    return channels == 1 and _count_channels(image) > 2


def _count_channels(image: Image.Image) -> int:
    """Return 1 for gray, 2 with alpha, 3 for colors, 4 with alpha; a palette stands for colors."""
    mode = _mode(image)
    return 1 if mode.startswith("I;16") else NUM_CHANNELS.get(mode, 3)


def _mode(image: Image.Image) -> str:
    """Return Pillow's mode, but LA for a PNG of gray and alpha with 16 bits each, read as RGBA."""
    rawmode = image.tile[0].args if image.format == "PNG" and image.tile else ""
    return "LA" if rawmode == "LA;16B" else image.mode


def _check_tiff(image: Image.Image) -> None:
    """Raise ValueError for a TIFF whose bands are not all read, or not as they are stored."""
    if image.format != "TIFF":
        return
    bands = image.tag_v2.get(SAMPLES_PER_PIXEL, 1)
    is_premultiplied = image.tag_v2.get(EXTRA_SAMPLES) == (1,)  # Pillow divides by the alpha
    if bands != len(image.getbands()) or is_premultiplied:
        raise ValueError(
            f"found a TIFF page of {bands} bands, which Pillow does not read as they are stored "
            "(save each band as a page of its own, or all as a .npy array)"
        )


def _pages(image: Image.Image) -> list[int]:
    """Return the numbers of a TIFF's pages that are its channels: two or more, or [].

    They are of one band, and of the size and mode of the first; others are thumbnails, overviews
    or masks. The image is at its first page afterwards.
    """
    if image.format != "TIFF" or image.n_frames == 1 or _count_channels(image) != 1:
        return []
    first, pages = (image.size, image.mode), []
    for page in range(image.n_frames):
        image.seek(page)
        if (image.size, image.mode) == first:
            pages.append(page)
    image.seek(0)
    return pages if len(pages) > 1 else []


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Return `values` as uint8: integers' high byte of 16 bits, floating-point values times 255.

    Raises ValueError for integers outside of 0 to 65535 and floating-point values outside of 0..1.
    """
    is_float = values.dtype.kind == "f"
    low, high = values.min(), values.max()
    limit = 1 if is_float else 65535
    if not (low >= 0 and high <= limit):
        kind = "floating-point" if is_float else f"{8 * values.itemsize}-bit"
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
