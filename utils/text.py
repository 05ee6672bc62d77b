"""Names as text on one line: of classes and files, which may hold any character."""

import unicodedata

MAX_LENGTH = 40  # characters of a name in a table or an image


def one_line(name: str, max_length: int = MAX_LENGTH) -> str:
    """Return `name` on one line: without control characters, its middle ignored if it is long.

    A byte of a file name that is not UTF-8 becomes a question mark.
    """
    kinds = {"Cc": " ", "Zl": " ", "Zp": " ", "Cs": "?"}
    text = "".join(kinds.get(unicodedata.category(c), c) for c in name)
    text = " ".join(text.split())
    if len(text) <= max_length:
        return text
    end = max_length // 3
    return f"{text[: max_length - end - 1]}…{text[-end:]}"


def display_width(text: str) -> int:
    """Return the columns of `text` in a terminal: 2 for a wide character, 0 for a mark on one."""
    return sum(
        0
        if unicodedata.category(c) in ("Mn", "Me", "Cf")
        else 1 + (unicodedata.east_asian_width(c) in ("W", "F"))
        for c in text
    )


def pad(text: str, width: int) -> str:
    """Return `text` with spaces at the end, so that it has `width` columns in a terminal."""
    return text + " " * (width - display_width(text))
