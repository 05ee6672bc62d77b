"""Images that are NumPy arrays, .npy files of height x width (x channels): multispectral, depth."""

import numpy as np

from data.pixels import DARK, to_8_bits

ARRAY_SUFFIX = ".npy"


def array_size(file: str, channels: int) -> tuple[int, int, bool]:
    """Return width and height of the array in `file`, and whether its integers are nearly black.

    Of an array of bytes or booleans only the header is read; other values must be looked at.
    Raises OSError, or ValueError with a message for the user, as `read_array` does.
    """
    # Mapped, not read; a file that is too short for its shape is an error.
    values = np.lib.format.open_memmap(file, mode="r")
    _check(values, channels)
    height, width = values.shape[:2]
    if values.dtype in (np.uint8, np.bool_):
        return width, height, False
    to_8_bits(values)
    return width, height, values.dtype.kind in "iu" and bool(values.max() < DARK)


def read_array(file: str, channels: int) -> np.ndarray:
    """Return the array in `file` as (h, w, channels) uint8; an array without channels has one.

    Booleans become 0 and 255, other numbers what `to_8_bits` says. One channel stands for three
    equal ones. Raises OSError if the file cannot be read, ValueError with a message for the user if
    it has another shape, or numbers without a rule. Pickled objects are not read.
    """
    with open(file, "rb") as stream:  # noqa: PTH123 - as in data.formats.yolo
        values = np.lib.format.read_array(stream, allow_pickle=False)
    _check(values, channels)
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
    elif values.dtype != np.uint8:
        values = to_8_bits(values)
    if values.ndim == 2:
        values = values[..., None]
    if values.shape[2] != channels:
        values = values.repeat(channels, axis=2)
    return np.ascontiguousarray(values)


def _check(values: np.ndarray, channels: int) -> None:
    """Raise ValueError if an array is not an image of `channels` channels."""
    shape = " x ".join(map(str, values.shape))
    num_bands = values.shape[2] if values.ndim == 3 else 1
    is_gray = num_bands == 1 and channels == 3
    if values.ndim not in (2, 3) or 0 in values.shape or (num_bands != channels and not is_gray):
        raise ValueError(
            f"found an array of {shape or 'no dimensions'} (need height x width x {channels})"
        )
    if values.dtype.kind not in "buif":
        raise ValueError(f"found an array of {values.dtype} (need integers or floating point)")
