"""The class names of a data.yaml: a list, numbers with names, or a text file with one per line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.textfile import decode_text, split_lines

QUOTES = "YAML reads yes, no, on, off, null and numbers as values: write such a name in quotes"


def class_names(names: Any, key: str, directory: Path) -> list[str]:
    """Return the class names that the value `names` of a data.yaml stands for.

    `key` names the file and the key in messages; the path of a text file is relative to
    `directory`. Raises UserError for a value that is not names, ids with a gap, no or duplicate
    names.
    """
    if isinstance(names, str):
        names = _read_names(names, key, directory)
    elif isinstance(names, Mapping):
        names = _in_order(names, key)
    elif not isinstance(names, list):
        raise UserError(f"{key}: found {names!r} (need a list of names, or a file with one a line)")
    names = [_name(name, key) for name in names]
    if not names:
        raise UserError(f"{key}: found none (need at least one class)")
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"{key}: found {duplicates[0]!r} {names.count(duplicates[0])} times (class names must "
            "be unique)"
        )
    return names


def _name(name: Any, key: str) -> str:
    if type(name) is int:  # of digits, say; YAML's integers here are written as str() writes them
        return str(name)
    if not isinstance(name, str):
        raise UserError(f"{key}: found {name!r}, which is not a string ({QUOTES})")
    if not name.strip():
        raise UserError(f"{key}: found {name!r} (a class needs a name)")
    return name


def _in_order(names: Mapping[Any, Any], key: str) -> list[Any]:
    """Return the names by their ids, which may be written as texts."""
    by_id: dict[int, Any] = {}
    for class_id, name in names.items():
        is_text = isinstance(class_id, str) and class_id.strip().isdecimal()
        number = int(class_id) if is_text and len(class_id) < 10 else class_id
        if type(number) is not int:
            raise UserError(f"{key}: found the id {class_id!r} (need numbers from 0)")
        if number in by_id:
            raise UserError(f"{key}: found the id {number} twice (need each number once)")
        by_id[number] = name
    if sorted(by_id) != list(range(len(by_id))):
        raise UserError(
            f"{key}: found the ids {sorted(by_id)} (need 0 to {len(by_id) - 1} without a gap)"
        )
    return [by_id[i] for i in range(len(by_id))]


def _read_names(text: str, key: str, directory: Path) -> list[str]:
    """Return the lines of a text file of names, such as classes.txt or obj.names."""
    path = directory / text
    try:
        names = split_lines(decode_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not valid UTF-8"
        raise UserError(
            f"{key}: found {text!r}, and {path} cannot be read: {reason} (need a list of names, or "
            "a file with one a line)"
        ) from None
    while names and not names[-1].strip():
        names.pop()
    return [name.strip() for name in names]
