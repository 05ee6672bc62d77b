"""Reads a json with long lists entry by entry, in little memory.

The json module needs some six times the size of the file, most of it for the numbers of COCO's
polygons. They are not needed here, and are removed from the text before it is parsed.
"""

import json
import re
import reprlib
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


def open_json(path: Path) -> TextIO:
    """Open a json file as text, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark."""
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))
    return path.open(encoding=encoding)


def read_json(path: Path) -> Any:
    """Return the content of a json file. Raises OSError, and ValueError with a message."""
    try:
        with open_json(path) as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        raise _whole_file_error(error) from None
    except UnicodeDecodeError as error:
        raise _encoding_error(error) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json_lists(
    path: Path, keys: Sequence[str], polygons: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, entry) for every entry of the lists `keys` of the object in the file `path`.

    In the order of the file. Without `polygons` an entry's `segmentation` is replaced by 0 if it is
    a list of numbers. Raises OSError, ValueError for invalid json or a list whose entries are not
    objects, and KeyError for a list that is missing.
    """
    try:
        with open_json(path) as file:
            yield from _read_lists(JsonReader(file, polygons), keys)
    except json.JSONDecodeError:
        read_json(path)  # its error has the position in the file
        raise
    except UnicodeDecodeError as error:
        raise _encoding_error(error) from None


def _whole_file_error(error: json.JSONDecodeError) -> ValueError:
    """Return the error of a file that was read whole, which says so if the file is cut off."""
    if not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string"):
        place = f"line {error.lineno} column {error.colno}"
        message = f"{error.msg}: the file is cut off, it ends within a value: {place}"
        return ValueError(message)
    return error


def _encoding_error(error: UnicodeDecodeError) -> ValueError:
    return ValueError(
        f"found the byte 0x{error.object[error.start]:02x}, which is not valid in {error.encoding} "
        "(save the file as UTF-8)"
    )


def _read_lists(reader: "JsonReader", keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
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
        if not is_list:
            raise ValueError(f"{key} is not a list of objects")
        for number, entry in enumerate(reader.entries()):
            if not isinstance(entry, dict):
                problem = f"found {reprlib.repr(entry)} as entry {number}"
                raise ValueError(f"{key} is not a list of objects: {problem}")
            yield key, entry
    if missing:
        raise KeyError(missing[0])


class JsonReader:
    """Reads the tokens of a json file; raises JSONDecodeError where they are not what is due."""

    def __init__(self, file: TextIO, polygons: bool = True) -> None:
        self._file = file
        self._polygons = polygons  # whether they are kept
        self._text = ""  # a part of the file
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
        text = rest + chunk
        self._text = text if self._polygons else POLYGONS.sub('"segmentation":0', text)
        self._position = 0
        self._no_block = False
        return True
