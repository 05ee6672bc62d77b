"""Class names as they are drawn: every one readable, with the fonts that the machine has.

Matplotlib brings DejaVu Sans, which has Latin, Greek, Cyrillic, Hebrew, Arabic and more. For other
scripts, an installed font is used. A name that no font has is drawn as the number of its class.
"""

import functools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from PIL import ImageFont

from utils.log import plural, warning
from utils.text import one_line


def drawable_names(class_names: Sequence[str]) -> list[str]:
    """Return for each class a text on one line that the fonts can draw.

    Without the characters of a name that no font has; it then begins with "class" and the number of
    the class. Warns, once for each such set of names, and says what to install.
    """
    return [*_drawable_names(tuple(class_names))]


@functools.cache
def _drawable_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    names = [one_line(name) for name in class_names]
    chars = sorted(set("".join(names)))
    fonts = _fonts_of("".join(chars))
    missing = {char for char, font in zip(chars, fonts, strict=True) if font is None}
    lost = sorted(char for char in missing if not _is_invisible(char))
    if lost:
        affected = sum(not set(lost).isdisjoint(name) for name in names)
        packages = ", ".join(sorted({_package_with(char) for char in lost}))
        warning(
            f"no installed font has {' '.join(lost[:10])}: images show "
            f"{plural(affected, 'class name')} as numbers (install {packages}, or copy a font file "
            "to ~/.local/share/fonts)"
        )
    texts = []
    for k, name in enumerate(names):
        text = " ".join("".join(c for c in name if c not in missing).split())
        is_whole = bool(text) and set(lost).isdisjoint(name)
        texts.append(text if is_whole else f"class {k} {text}".strip())
    return tuple(texts)


def _package_with(char: str) -> str:
    """Return the package of Debian and Ubuntu that has a font for `char`."""
    if unicodedata.name(char, "").startswith(("CJK", "HANGUL", "HIRAGANA", "KATAKANA")):
        return "fonts-noto-cjk"
    return "fonts-symbola" if unicodedata.category(char) == "So" else "fonts-noto-core"


def _is_invisible(char: str) -> bool:
    """Return whether nothing is lost without `char`: a joiner, a direction or emoji mark."""
    return unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f"


# ----------------------------------------------------------------------------------------------
# The font of each character


def _fonts_of(text: str) -> list[str | None]:
    """Return for each character of `text` the file of a font that has it, None if no font does."""
    unknown = set(text) - _font_of.keys()
    for file in _font_files():
        if not unknown:
            break
        covered = unknown - _without(unknown, file)
        _font_of.update(dict.fromkeys(covered, file))
        unknown -= covered
    _font_of.update(dict.fromkeys(unknown))
    return [_font_of[char] for char in text]


_font_of: dict[str, str | None] = {}  # what was found so far


def _without(chars: set[str], file: str) -> set[str]:
    """Return those of `chars` that a font lacks: all if it cannot be drawn at every size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):  # damaged, or of a kind that FreeType does not know
        return chars
    if not font.scalable or "LastResort" in font.postscript_name:  # that has boxes for all
        return chars
    return {char for char in chars if not font.get_char_index(ord(char))}


def _font_files() -> Iterator[str]:
    """Yield the file of DejaVu Sans, and only then look for the others."""
    yield _default_font()
    yield from _installed_fonts()


@functools.cache
def _default_font() -> str:
    from matplotlib import get_data_path

    return f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"


@functools.cache
def _installed_fonts() -> tuple[str, ...]:
    """Return the files of the installed fonts, those of regular width and weight first."""
    from matplotlib.font_manager import findSystemFonts

    def rank(file: str) -> tuple[bool, bool, str]:
        name = Path(file).stem.lower()
        is_styled = any(style in name for style in ("bold", "italic", "oblique", "light", "black"))
        return is_styled, "sans" not in name, file

    return tuple(sorted(findSystemFonts(), key=rank))


# ----------------------------------------------------------------------------------------------
# Matplotlib and Pillow with these fonts


@contextmanager
def plain_text(texts: Iterable[str] = ()) -> Iterator[None]:
    """Context in which matplotlib draws text as it is: not as markup, in fonts that have `texts`.

    A figure has to be made and saved inside.
    """
    from matplotlib import font_manager, rc_context

    default = _default_font()
    others = sorted({file for file in _fonts_of("".join(texts)) if file} - {default})
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for file in others:
        if file not in known:
            font_manager.fontManager.addfont(file)
    families = [font_manager.FontProperties(fname=file).get_name() for file in (default, *others)]
    style = {"font.family": families, "text.parse_math": False, "text.usetex": False}
    with rc_context(style):
        yield


def font_runs(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Return the parts of `text` in the order in which they are drawn, each with its font."""
    pairs = zip(text, _fonts_of(text), strict=True)
    return [
        ("".join(char for char, _ in run), _pillow_font(file or _default_font(), size))
        for file, run in groupby(pairs, key=lambda pair: pair[1])
    ]


@functools.lru_cache(maxsize=64)
def _pillow_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
