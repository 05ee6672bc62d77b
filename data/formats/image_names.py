"""Finds the image files that annotations name, even if a tool has written the names differently."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from data.images import IMAGE_SUFFIXES

# How a file was found: a sentence for `Scan.notes`, but for the first two.
AS_NAMED = ""
NOT_FOUND = "images not found"
OTHER_DIRECTORY = "file names with another directory than their files have, found without it"
OTHER_SPELLING = "file names in another spelling than their files (case, suffix, accents), found"
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio's, in front of an uploaded file
TRIED_NAMES = 100  # to choose a directory


class ImageFinder:
    """Finds image files by the names that annotations have for them.

    A name is tried as it stands, then without the directories that its tool has put in front of
    it (of another machine, with backslashes, of a URL), then in another spelling: upper and lower
    case, another suffix, composed or decomposed accents. A spelling that several files of a
    directory match is none.
    """

    def __init__(self, directory: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> None:
        self.directory, self.suffixes = directory, suffixes
        self._spellings: dict[str, dict[str, list[str]]] = {}  # of directories, see `_spelled`

    def find(self, name: str) -> tuple[str, str]:
        """Return the path for `name` and how it was found, one of the sentences above.

        If there is no such file, the path is the one of the name as it stands.
        """
        named = str(self.directory / name)
        if os.path.isfile(named):  # noqa: PTH113 - faster than Path, 100,000 times
            return named, AS_NAMED
        if "\\" in name:  # of Windows
            path = str(self.directory / name.replace("\\", "/"))
            if os.path.isfile(path):  # noqa: PTH113
                return path, AS_NAMED
        candidates = list(dict.fromkeys(_relative_paths(name)))
        for candidate in candidates:
            path = str(self.directory / candidate)
            if os.path.isfile(path):  # noqa: PTH113
                return path, OTHER_DIRECTORY
        for candidate in candidates:
            path = self._spelled(candidate)
            if path is not None:
                return path, OTHER_SPELLING
        return named, NOT_FOUND

    def _spelled(self, candidate: str) -> str | None:
        """Return the only file in the directory of `candidate` whose name is another spelling."""
        directory, _, name = str(self.directory / candidate).rpartition(os.sep)
        if directory not in self._spellings:
            self._spellings[directory] = _names_by_spelling(directory, self.suffixes)
        spellings = self._spellings[directory]
        for spelling in (_fold(name), _fold_stem(name, self.suffixes)):
            if len(spellings.get(spelling, ())) == 1:
                return f"{directory}{os.sep}{spellings[spelling][0]}"
        return None


def choose_directory(directories: Sequence[Path], names: Sequence[str]) -> Path:
    """Return the directory that has most of the images `names`, the first one of several."""
    if len(directories) == 1:
        return directories[0]
    counts = {
        directory: sum((directory / name).is_file() for name in names)
        for directory in dict.fromkeys(directories)
    }
    if not any(counts.values()):
        for directory in counts:
            finder = ImageFinder(directory)
            counts[directory] = sum(finder.find(name)[1] != NOT_FOUND for name in names)
    return max(counts, key=counts.__getitem__)


def _relative_paths(name: str) -> Iterator[str]:
    """Yield the paths, relative to a directory of images, that `name` may stand for."""
    for path in _unquoted_paths(name):
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            yield "/".join(parts[start:])
        if parts and UPLOAD_PREFIX.match(parts[-1]):
            yield UPLOAD_PREFIX.sub("", parts[-1], count=1)


def _unquoted_paths(name: str) -> Iterator[str]:
    """Yield `name` with slashes, then what it is if it is a URL."""
    name = name.strip().replace("\\", "/")
    yield name
    try:
        url = urlsplit(name)
        # Label Studio: /data/local-files/?d=images/a.jpg
        for file in parse_qs(url.query).get("d", []):
            yield file.replace("\\", "/")
        yield unquote(url.path)
    except ValueError:
        return


def _names_by_spelling(directory: str, suffixes: Collection[str]) -> dict[str, list[str]]:
    """Return the images of a directory by what their spellings share, with and without suffix."""
    names = defaultdict(list)
    try:
        files = sorted(os.listdir(directory))  # noqa: PTH208 - quicker than Path
    except (OSError, ValueError):
        return {}
    for file in files:
        if os.path.splitext(file)[1].lower() in suffixes:  # noqa: PTH122
            names[_fold(file)].append(file)
            names[_fold_stem(file, suffixes)].append(file)
    return dict(names)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _fold_stem(name: str, suffixes: Collection[str]) -> str:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    # With a slash, which is in no file name: the stem of one file is not the name of another.
    return f"{_fold(stem if suffix.lower() in suffixes else name)}/"
