"""Text that people's tools write: UTF-8 or UTF-16, with or without a byte order mark."""

import codecs

_MARKS = {  # the longer mark of two that begin alike comes first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode_text(content: bytes, errors: str = "strict") -> str:
    """Return `content` as text, without its byte order mark.

    Without a mark it is UTF-8, or UTF-16 if every other one of its first bytes is zero. What is
    invalid in UTF-8 is left to the codecs' error handler `errors`. Raises UnicodeDecodeError.
    """
    if content.startswith(tuple(_MARKS)):
        return content.decode(next(_MARKS[mark] for mark in _MARKS if content.startswith(mark)))
    if len(content) > 1 and b"\0" in content[:2] and any(content[:2]):
        return content.decode("utf-16-be" if content[0] == 0 else "utf-16-le")
    return content.decode("utf-8", errors)


def split_lines(text: str) -> list[str]:
    """Return the lines of `text`, which end with LF, CRLF or CR.

    Unlike `str.splitlines`, not with other characters, which may belong to a name.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
