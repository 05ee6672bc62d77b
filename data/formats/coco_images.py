"""The images of a COCO json: their files, ids and sizes."""

import math
import reprlib
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.formats.coco_ids import Id, to_id
from data.formats.image_names import (
    AS_NAMED,
    NOT_FOUND,
    TRIED_NAMES,
    ImageFinder,
    choose_directory,
)
from data.formats.scan import Scan
from data.threads import map_in_threads
from utils.errors import UserError

INVALID_NUMBER = (ValueError, KeyError, TypeError, OverflowError)
SKIPPED = -1
REPEATED = "images that are listed twice, read once with the boxes of both"
NO_SIZE = "images without a width and height, taken from the image files"
BY_URL = "images without a file_name, found by the end of their coco_url"


class CocoImages:
    """Collects the images of a json, finds their files, and adds them to a `Scan`."""

    def __init__(self, path: Path) -> None:
        self.notes: Counter[str] = Counter()
        self.index_of: dict[Id, int] = {}  # of each id: its image in the `Scan`, or SKIPPED
        self.first_index = 0  # of these images in the `Scan`
        self.sizes = array("d")  # of each image there: width and height in pixels
        self._path = path
        # Of each entry: its id, None if it is invalid, and its name, which `_find` replaces by the
        # file. Not an object for each, which would take several times the memory.
        self._ids: list[Id | None] = []
        self._files: list[str] = []
        self._stated_sizes = array("d")  # nan if missing or no positive numbers
        self._reasons: dict[int, str] = {}  # why an entry is skipped

    def add(self, image: dict[str, Any]) -> None:
        """Add an image; one without a valid id and file name is skipped by `add_to`."""
        number = len(self._ids)
        try:
            image_id, name = to_id("id", image["id"]), self._name(image)
        except KeyError as error:
            image_id, name = None, ""
            self._reasons[number] = f"{self._path}: image {number}: {error} is missing"
        except ValueError as error:
            image_id, name = None, ""
            self._reasons[number] = f"{self._path}: image {number}: {error}"
        self._ids.append(image_id)
        self._files.append(name)
        self._stated_sizes.extend(_stated_size(image))

    def _name(self, image: dict[str, Any]) -> str:
        url = image.get("coco_url")
        if image.get("file_name") is None and isinstance(url, str) and url:
            self.notes[BY_URL] += 1  # LVIS
            return url
        name = image["file_name"]
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise ValueError(f"found the file_name {reprlib.repr(name)} (need a string)")
        return name

    def add_to(self, scan: Scan, directories: Sequence[Path]) -> None:
        """Add the images to `scan`, and an error for each one that is skipped.

        The directory is that of `directories` which has most of the images. Raises UserError if
        none of them is found.
        """
        self.first_index = len(scan.files)
        position_of: dict[int, int] = {}  # of the entries that are kept
        primaries = self._find(directories)
        for number, primary in enumerate(primaries):
            if number in self._reasons:
                index = self.first_index + len(position_of)
                scan.errors.append((index, f"{self._reasons[number]}; image skipped"))
            elif primary == number:
                position_of[number] = len(position_of)
                size = self._stated_size(number)
                self.sizes.extend(size)
                scan.add_image(self._files[number], *size, str(self._path))
        for number, primary in enumerate(primaries):
            is_kept = primary in position_of and number not in self._reasons
            index = self.first_index + position_of[primary] if is_kept else SKIPPED
            if self._ids[number] is not None:
                self.index_of.setdefault(self._ids[number], index)
        self._fill_sizes(scan)

    def ids_by_file(self, directories: Sequence[Path]) -> dict[str, Id]:
        """Return the id of each file, the first one if it has several."""
        return {
            self._files[number]: self._ids[number]
            for number, primary in enumerate(self._find(directories))
            if primary == number and number not in self._reasons
        }

    def _stated_size(self, number: int) -> tuple[float, float]:
        return self._stated_sizes[2 * number], self._stated_sizes[2 * number + 1]

    def _find(self, directories: Sequence[Path]) -> list[int]:
        """Replace the names by the files; return for each entry the first one of the same image.

        Adds a reason to skip for every entry that may be another image than it seems to be.
        """
        self._check_ids()
        valid = [n for n in range(len(self._ids)) if n not in self._reasons]
        primaries = list(range(len(self._ids)))
        if not valid:
            return primaries
        names = [self._files[n] for n in valid[:TRIED_NAMES]]
        directory = choose_directory(directories, names)
        if directory != directories[0]:
            self.notes[f"images, which are taken from {directory} (no key `images`)"] += len(valid)
        other_names = self._find_files(directory, valid)
        primary_of: dict[str, int] = {}
        for number in valid:
            if number not in other_names:
                primary_of.setdefault(self._files[number], number)
        for number in other_names:  # a file that has the name itself comes first
            primary = primary_of.setdefault(self._files[number], number)
            if other_names[number] != other_names.get(primary):
                for n in {number, primary} & other_names.keys():
                    self._reasons[n] = (
                        f"{self._path}: image {n}: {other_names[n]!r} is not in {directory}, and "
                        f"{self._files[n]} is not only its closest match, but another image's"
                    )
        for number in valid:
            primaries[number] = primary = primary_of[self._files[number]]
            if primary != number and number not in self._reasons:
                self._check_same(number, primary)
        return primaries

    def _check_ids(self) -> None:
        """Add a reason to skip for the images of each id that several images have."""
        entry_of: dict[Id, int] = {}
        others: dict[Id, str] = {}  # of an id that is not unique: the name of its second image
        for number, image_id in enumerate(self._ids):
            first = number if image_id is None else entry_of.setdefault(image_id, number)
            if self._files[first] != self._files[number]:
                others.setdefault(image_id, self._files[number])
        for number, image_id in enumerate(self._ids) if others else ():
            if image_id in others:
                first, other, name = entry_of[image_id], others[image_id], self._files[number]
                other = other if name == self._files[first] else self._files[first]
                self._reasons[number] = (
                    f"{self._path}: image {number}: {name!r} and {other!r} have the same id "
                    f"{image_id!r}, so that their boxes cannot be told apart"
                )

    def _find_files(self, directory: Path, valid: Sequence[int]) -> dict[int, str]:
        """Replace the names of `valid` by the files; return the names that these do not have."""
        finder, other_names = ImageFinder(directory), {}
        missing = 0
        for number in valid:
            name = self._files[number]
            self._files[number], how = finder.find(name)
            if how == NOT_FOUND:
                missing += 1
            elif how != AS_NAMED:
                other_names[number] = name
                self.notes[how] += 1
        if missing == len(valid):
            which = "its image is not" if missing == 1 else f"none of its {missing} images is"
            raise UserError(
                f"{self._path}: {which} in {directory} (looked for {self._files[valid[0]]}; the "
                "key `images` of a source is the directory that its file names are relative to)"
            )
        return other_names

    def _check_same(self, number: int, primary: int) -> None:
        """Add a note that two entries are one image, or a reason to skip if their sizes differ."""
        (width, height), stated = self._stated_size(number), self._stated_size(primary)
        if math.isnan(width) or math.isnan(stated[0]) or (width, height) == stated:
            self.notes[REPEATED] += 1
        else:
            self._reasons[number] = (
                f"{self._path}: image {number}: {self._files[number]} is listed twice, as "
                f"{stated[0]:g}x{stated[1]:g} and as {width:g}x{height:g}"
            )

    def _fill_sizes(self, scan: Scan) -> None:
        """Read the sizes that the json does not state from the image files."""
        missing = [i for i in range(len(self.sizes) // 2) if math.isnan(self.sizes[2 * i])]
        files = [scan.files[self.first_index + i] for i in missing]
        headers = map_in_threads(scan.image_size, files, 8)
        for i, size in zip(missing, headers, strict=True):
            # The boxes of an image that cannot be read are not wrong, they go with the image.
            is_read = not isinstance(size, str)
            self.sizes[2 * i], self.sizes[2 * i + 1] = size[:2] if is_read else (math.inf,) * 2
            if is_read:
                self.notes[NO_SIZE] += 1


def _stated_size(image: dict[str, Any]) -> tuple[float, float]:
    """Return width and height, nan if they are missing or no positive numbers."""
    try:
        width, height = float(image["width"]), float(image["height"])
    except INVALID_NUMBER:
        return math.nan, math.nan
    if 0 < width < math.inf and 0 < height < math.inf:
        return width, height
    return math.nan, math.nan
