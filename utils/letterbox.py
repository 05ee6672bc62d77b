"""Image sizes: what `--imgsz` means, and how an image is fitted into it."""

import math

from utils.errors import UserError
from utils.log import warning

GRAY = 114  # value of the padding around a letterboxed image, of 255
MIN_SMALL = 64  # pixels; of a smaller image batch norm sees one value, a feature map of 1 x 1
MAX_IMGSZ = 16384  # pixels; one training sample of this size takes 0.8 GB


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `value`."""
    return math.ceil(value / multiple) * multiple


def imgsz_bounds(imgsz: int | str, stride: int = 32) -> tuple[int, int]:
    """Return the lowest and highest size of `imgsz`, rounded up to multiples of `stride`.

    `imgsz` is a number of pixels or "MIN-MAX".
    """
    sizes = [round_up(int(size), stride) for size in str(imgsz).split("-")]
    return sizes[0], sizes[-1]


def small_bounds(bounds: tuple[int, int], stride: int, min_size: int) -> tuple[int, int]:
    """Return half of `bounds`, as of `imgsz_bounds`: of the samples in the first epochs of a run.

    Rounded up to multiples of `stride`; not below `MIN_SMALL` or the model's `min_size`,
    unless the full size is.
    """
    smallest = round_up(max(min_size, MIN_SMALL), stride)
    low, high = (min(size, max(smallest, round_up(size // 2, stride))) for size in bounds)
    return low, high


def round_imgsz(imgsz: int | str, stride: int = 32) -> int | str:
    """Return `imgsz`, pixels or "MIN-MAX", with sizes rounded up to multiples of `stride`."""
    low, high = imgsz_bounds(imgsz, stride)
    return high if low == high else f"{low}-{high}"


def imgsz_warning(imgsz: int | str, stride: int = 32) -> list[str]:
    """Return a list with a warning if a size in `imgsz` is not a multiple of `stride`, else []."""
    multiple = round_imgsz(imgsz, stride)
    if str(multiple) == str(imgsz):
        return []
    return [f"--imgsz {imgsz}: not a multiple of {stride}; using {multiple}"]


def fit_imgsz(imgsz: int | str, stride: int, min_size: int) -> int | str:
    """Return `imgsz`, pixels or "MIN-MAX", in multiples of the model's `stride`.

    Warns if they are other numbers. Raises UserError if one is below the model's `min_size`.
    """
    warning(*imgsz_warning(imgsz, stride))
    check_imgsz(imgsz_bounds(imgsz, stride)[0], min_size)
    return round_imgsz(imgsz, stride)


def check_imgsz(imgsz: int, min_size: int) -> None:
    """Raise UserError if `imgsz`, in pixels, is below the model's `min_size`."""
    if imgsz < min_size:
        raise UserError(f"--imgsz {imgsz}: the model needs at least {min_size} pixels")


def letterbox_size(height: int, width: int, imgsz: int) -> tuple[int, int]:
    """Return the height and width (>= 1) of an image whose longer side becomes `imgsz`."""
    ratio = imgsz / max(height, width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))
