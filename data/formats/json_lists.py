"""Reads a json with long lists entry by entry, in little memory.

The json module needs some six times the size of the file, most of it for the numbers of COCO's
polygons. They are not needed here, and are removed from the text before it is parsed.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

CHUNK = 1 << 22  # characters that are read at once
WHITESPACE = re.compile(r"[ \t\n\r]*")
# A list of numbers, or of such lists, up to what follows it in an object. Within a string the
# quotation marks would have backslashes.
POLYGONS = re.compile(
    r'(?<!\\)"segmentation"\s*:\s*\[[-+0-9.eE,\[\]\s]*\](?=\s*(?:\}|,\s*"))', re.ASCII
)


def read_json_lists(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, entry) for every entry of the lists `keys` of the object in the file `path`.

    In the order of the file. An entry's `segmentation` is replaced by 0 if it has polygons. Raises
    OSError, ValueError for invalid json or a list whose entries are not objects, and KeyError for a
    list that is missing.
    """
    try:
        with path.open(encoding="utf-8") as file:
            yield from _read_lists(_Reader(file), keys)
    except json.JSONDecodeError:
        json.loads(path.read_text(encoding="utf-8"))  # its error has the position in the file
        raise


def _read_lists(reader: "_Reader", keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    missing = list(keys)
    for key in reader.object_keys():
        is_list = reader.peek() == "["
        if key not in keys:  # a list that is skipped may be long, too
            for _ in reader.entries() if is_list else [reader.value()]:
                pass
            continue
        if key not in missing:
            raise ValueError(f"{key} is there twice")
        missing.remove(key)
        for entry in reader.entries() if is_list else [None]:
            if not isinstance(entry, dict):
                raise ValueError(f"{key} is not a list of objects")
            yield key, entry
    if missing:
        raise KeyError(missing[0])


class _Reader:
    """Reads the tokens of a json file; raises JSONDecodeError where they are not what is due."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""  # a part of the file, without polygons
        self._position = 0  # in it: the next token
        self._no_block = False  # whether `_block` has failed in this text
        self._decode = json.JSONDecoder().raw_decode

    def object_keys(self) -> Iterator[Any]:
        """Yield the keys of the object that is the whole file, each before its value is read."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
        else:
            yield self._key()
            while self._take(",}") == ",":
                yield self._key()
        if self.peek():
            raise json.JSONDecodeError("Extra data", self._text, self._position)

    def entries(self) -> Iterator[Any]:
        """Yield the entries of a list."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        while True:
            yield from self._block() or [self.value()]
            if self._take(",]") == "]":
                return

    def _block(self) -> list[Any]:
        """Read all entries but the last in the text, which is faster than one by one.

        Returns [] if none ends where it seems to; then the entries are read one by one.
        """
        if self._no_block:
            return []
        cut = max(self._text.rfind(end, self._position) for end in ("}, {", "},{"))
        block = f"[{self._text[self._position : cut + 1]}]"
        try:
            entries, end = self._decode(block) if cut > 0 else ([], 0)
        except ValueError:  # cut within an entry
            entries, end = [], 0
        self._no_block = not entries
        if entries:  # they end before the end of the block if that is after the list
            self._position = cut + 1 if end == len(block) else self._position + end - 2
        return entries

    def value(self) -> Any:
        """Read a value of any type."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError:
                if not self._read_more():
                    raise
            else:
                # At the end of the text a number may not be complete: "1", "1." or "1e+".
                is_complete = self._text[end : end + 1] not in ("", ".", "e", "E")
                if is_complete or not self._read_more():
                    self._position = end
                    return value

    def peek(self) -> str:
        """Return the next character that is not white space, "" at the end of the file."""
        while True:
            self._position = WHITESPACE.match(self._text, self._position).end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_more():
                return ""

    def _key(self) -> Any:
        key = self.value()
        self._take(":")
        return key

    def _take(self, characters: str) -> str:
        character = self.peek()
        if not character or character not in characters:
            message = f"Expecting one of {characters}"
            raise json.JSONDecodeError(message, self._text, self._position)
        self._position += 1
        return character

    def _read_more(self) -> bool:
        """Append to the text from the next token on; return False at the end of the file.

        At least as much again, so that the text of a long value is not parsed too often.
        """
        rest = self._text[self._position :]
        chunk = self._file.read(max(CHUNK, len(rest)))
        if not chunk:
            return False
        self._text, self._position = POLYGONS.sub('"segmentation":0', rest + chunk), 0
        self._no_block = False
        return True
