"""Ids in a COCO json: what may be one, and which of two ids are the same."""

import re
import reprlib
from collections.abc import Collection, Sequence
from typing import Any

Id = int | str
INTEGER = re.compile(r"-?[0-9]{1,18}(\.0+)?")


def to_id(key: str, value: Any) -> Id:
    """Return the id `value`; a float that is whole, as pandas writes it, becomes an int.

    Raises ValueError, with the name `key` of the id, if it is neither an integer nor a string.
    """
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"found the {key} {reprlib.repr(value)} (need an integer or a string)")


def match_ids(ids: Sequence[Id], known: Collection[Id]) -> tuple[list[Id | None], list[bool]]:
    """Return for each of `ids` the same one of `known`, None if it is missing.

    The number 1 and the text "1" are the same if one is among `ids`, the other in `known`, and no
    other one of `known` is that number. Returns also for which of `ids` this was needed.
    """
    matches = [i if i in known else None for i in ids]
    is_other_kind = [False] * len(matches)
    unknown = [n for n, match in enumerate(matches) if match is None]
    by_number = _by_number(known) if unknown else {}
    for n in unknown:
        match = by_number.get(_number(ids[n]))
        if match is not None and isinstance(match, str) != isinstance(ids[n], str):
            matches[n], is_other_kind[n] = match, True
    return matches, is_other_kind


def _by_number(ids: Collection[Id]) -> dict[int | None, Id | None]:
    """Return the ids by the numbers that they are, None for a number that several are."""
    by_number: dict[int | None, Id | None] = {}
    for i in ids:
        number = _number(i)
        by_number[number] = None if number in by_number or number is None else i
    return by_number


def _number(value: Id) -> int | None:
    if isinstance(value, str):
        return int(value.partition(".")[0]) if INTEGER.fullmatch(value) else None
    return value
