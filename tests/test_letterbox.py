"""utils/letterbox.py: rounding to the stride, and the aspect ratio."""

import pytest

from utils.errors import UserError
from utils.letterbox import (
    check_imgsz,
    imgsz_bounds,
    imgsz_warning,
    letterbox_size,
    round_imgsz,
    round_up,
)


@pytest.mark.parametrize(("value", "expected"), [(1, 32), (32, 32), (33, 64), (0, 0)])
def test_round_up(value, expected):
    assert round_up(value, 32) == expected


@pytest.mark.parametrize(
    ("imgsz", "stride", "bounds", "expected"),
    [
        (640, 32, (640, 640), 640),
        (50, 32, (64, 64), 64),
        ("320-640", 32, (320, 640), "320-640"),
        ("300-620", 32, (320, 640), "320-640"),
        ("33-64", 32, (64, 64), 64),
        (641, 64, (704, 704), 704),
    ],
)
def test_imgsz_is_rounded_up_to_the_stride(imgsz, stride, bounds, expected):
    assert imgsz_bounds(imgsz, stride) == bounds
    assert round_imgsz(imgsz, stride) == expected


def test_imgsz_warning_names_the_size_in_use():
    assert imgsz_warning(640) == imgsz_warning("320-640") == []
    assert imgsz_warning(50) == ["--imgsz 50: not a multiple of 32; using 64"]
    assert imgsz_warning("50-100") == ["--imgsz 50-100: not a multiple of 32; using 64-128"]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (480, 640)), (640, 480, (640, 480)), (100, 50, (640, 320)), (1, 5000, (1, 640))],
)
def test_letterbox_size_keeps_the_aspect_ratio(height, width, expected):
    assert letterbox_size(height, width, 640) == expected


def test_check_imgsz_names_the_smallest_size():
    check_imgsz(64, 64)
    with pytest.raises(UserError, match=r"--imgsz 32: the model needs at least 64 pixels"):
        check_imgsz(32, 64)
