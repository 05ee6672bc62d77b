"""COCO's segmentation, polygons or a run-length encoded mask, as the box around it."""

import itertools
from typing import Any

import numpy as np

BBox = tuple[float, float, float, float]  # x, y, width and height in pixels


def bounding_box(segmentation: Any) -> tuple[BBox, tuple[float, float] | None]:
    """Return the box around `segmentation`, and width and height of its mask, None for polygons.

    Polygons are a list of lists of numbers x, y, x, y, ... with three points or more, one such
    list, or lists of points. A mask is an object with `size` (height, width) and `counts`, a list
    or COCO's compressed text. Raises ValueError with a message for the user if it is neither, or
    empty.
    """
    if isinstance(segmentation, dict):
        return _mask_box(segmentation)
    numbers = _flatten(segmentation)
    if len(numbers) < 6:
        content = f"{len(numbers)} numbers" if len(numbers) else "nothing"
        raise ValueError(f"found no bbox, and as segmentation {content} (need polygons or RLE)")
    if not np.isfinite(numbers).all():
        raise ValueError("found no bbox, and a segmentation with numbers that are not finite")
    points = numbers.reshape(-1, 2)
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return (x1, y1, x2 - x1, y2 - y1), None


def _flatten(polygons: Any) -> np.ndarray:
    """Return the numbers of nested lists, an even count. Raises ValueError if there are others."""
    try:
        while isinstance(polygons, list) and any(isinstance(entry, list) for entry in polygons):
            if any(len(entry) % 2 and not isinstance(entry[0], list) for entry in polygons):
                raise ValueError
            polygons = [*itertools.chain.from_iterable(polygons)]
        numbers = np.array(polygons, float)
        if numbers.ndim != 1 or len(numbers) % 2:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            "found no bbox, and a segmentation that is neither polygons (lists of x, y, x, y, ...) "
            "nor RLE"
        ) from None
    return numbers


def _mask_box(mask: dict[str, Any]) -> tuple[BBox, tuple[float, float]]:
    try:
        height, width = map(int, mask["size"])
        counts = mask["counts"]
        runs = _decompress(counts) if isinstance(counts, str) else np.array(counts, np.int64)
        if runs.ndim != 1 or runs.sum() != height * width or (runs < 0).any() or height < 1:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, IndexError):
        raise ValueError(
            "found no bbox, and an invalid RLE as segmentation (need `size`, and `counts` "
            "that add up to its pixels)"
        ) from None
    # Runs of pixels from top to bottom, column by column, in turns of the background and the mask.
    ends = runs.cumsum()
    starts, ends = (ends - runs)[1::2], ends[1::2]
    is_run = starts < ends
    starts, last = starts[is_run], ends[is_run] - 1
    if not len(starts):
        raise ValueError("found no bbox, and a segmentation without a pixel")
    columns = np.stack((starts // height, last // height))
    rows = np.stack((starts % height, last % height))
    # A run that continues in the next column reaches the bottom of one and the top of the other.
    crosses = columns[0] < columns[1]
    top = 0 if crosses.any() else int(rows.min())
    bottom = height if crosses.any() else int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    return (left, top, right - left, bottom - top), (width, height)


def _decompress(text: str) -> np.ndarray:
    """Return the runs of COCO's compressed counts.

    Numbers in groups of five bits, the lowest first, from the character "0" on; the sixth bit
    says that the number continues, the fifth of its last group that it is negative. From the fourth
    on they are differences to the number before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError
    return np.array(runs, np.int64)
