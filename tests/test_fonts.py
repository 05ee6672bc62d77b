"""utils/fonts.py and utils/text.py: names as they are drawn and printed."""

from pathlib import Path

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from utils import fonts
from utils.metrics import METRICS, Result, format_table
from utils.plots import draw_boxes, draw_confusion
from utils.text import display_width, one_line, pad


def write_font(path: Path, name: str, **sizes: int) -> str:
    """Write a font with a square of each size for each character."""

    def square(size: int) -> object:
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for point in ((size, 0), (size, size), (0, size)):
            pen.lineTo(point)
        pen.closePath()
        return pen.glyph()

    glyphs = {f"u{ord(char):x}": square(size) for char, size in sizes.items()}
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", *glyphs])
    builder.setupCharacterMap({ord(char): f"u{ord(char):x}" for char in sizes})
    builder.setupGlyf({".notdef": square(100), **glyphs})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *glyphs], (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular", "psName": name})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def installed(monkeypatch):
    """Sets which fonts are installed besides matplotlib's."""

    def install(*files: str) -> None:
        monkeypatch.setattr(fonts, "_installed_fonts", lambda: files)
        monkeypatch.setattr(fonts, "_font_of", {})
        fonts._drawable_names.cache_clear()

    yield install
    fonts._drawable_names.cache_clear()


def drawing(name: str, names: list[str]) -> torch.Tensor:
    target = {"boxes": torch.tensor([[20.0, 60, 300, 300]]), "labels": torch.tensor([0])}
    return draw_boxes(torch.zeros(3, 320, 320, dtype=torch.uint8), target, [name, *names])


def test_an_installed_font_is_used_for_what_dejavu_lacks(installed, tmp_path, capsys, recwarn):
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    font = write_font(tmp_path / "Test Sans.ttf", "TestSans", 猫=300, 狗=700)
    installed(str(tmp_path / "damaged.ttf"), font)
    assert fonts.drawable_names(["猫", "狗 $x$", "c"]) == ["猫", "狗 $x$", "c"]
    runs = [(part, used.path) for part, used in fonts.font_runs("猫狗 0.9", 12)]
    assert runs == [("猫狗", font), (" 0.9", fonts._default_font())]
    assert not torch.equal(drawing("猫", ["b"]), drawing("狗", ["b"]))
    draw_confusion(torch.zeros(3, 3).int().numpy(), ["猫", "狗"], tmp_path / "matrix.png")
    assert capsys.readouterr().err == "" and not recwarn.list


def test_names_that_no_font_has_are_numbers_and_said_once(installed, tmp_path, capsys, recwarn):
    installed()
    names = ["猫", "狗", "cat 🂡 แ", "b"]
    assert fonts.drawable_names(names) == ["class 0", "class 1", "class 2 cat 🂡", "b"]
    assert capsys.readouterr().err == (
        "no installed font has แ 狗 猫: images show 3 class names as numbers (install "
        "fonts-noto-cjk, fonts-noto-core, or copy a font file to ~/.local/share/fonts)\n"
    )
    draw_confusion(torch.zeros(5, 5).int().numpy(), names, tmp_path / "matrix.png")
    drawing("猫", names[1:])
    assert capsys.readouterr().err == "" and not recwarn.list


def test_names_without_a_character_to_draw(installed, capsys):
    installed()
    names = ["", " \n", "\u200d\ufe0f", "👍\ufe0f", "a\ud800"]
    drawable = fonts.drawable_names(names)
    assert drawable[:2] == ["class 0", "class 1"] and drawable[4] == "a?"
    assert all(name.strip() for name in drawable)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a\nb\t\x01c", "a b c"),
        ("  x ", "x"),
        ("caf\udce9", "caf?"),
        ("x" * 41, "x" * 26 + "…" + "x" * 13),
        ("y" * 40, "y" * 40),
    ],
)
def test_one_line(name, expected):
    assert one_line(name) == expected


def test_display_width_and_pad():
    assert [*map(display_width, ["abc", "猫", "e\u0301", "ｱ", "한글", ""])] == [3, 2, 1, 1, 4, 0]
    assert pad("猫", 5) == "猫   "


def test_table_is_aligned_with_wide_names():
    numbers = dict.fromkeys(METRICS, 0.5)
    names = ["猫", "a\nb", "고양이", "x" * 100]
    rows = [{"class": name, "images": 1, "boxes": 2} | numbers for name in names]
    lines = format_table(Result(numbers, rows)).splitlines()
    assert len(lines) == 6 and len({display_width(line) for line in lines}) == 1


@pytest.mark.parametrize(
    "box", [[-50.0, -50, -10, -10], [400, 400, 500, 500], [5, 5, 5, 5], [9, 9, 1, 1]]
)
def test_draw_boxes_outside_the_picture_or_without_area(box):
    image = torch.zeros(3, 32, 48, dtype=torch.uint8)
    target = {"boxes": torch.tensor([box]).float(), "labels": torch.tensor([0])}
    assert draw_boxes(image, target, ["x" * 99]).shape == image.shape
    target["boxes"][0, 0] = torch.nan
    assert draw_boxes(image, target, ["x"]).shape == image.shape
