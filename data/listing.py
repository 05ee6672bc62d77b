"""Lists the images of a source: of a directory, a .txt list, an image, or a glob."""

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from data.arrays import ARRAY_SUFFIX
from data.images import IMAGE_SUFFIXES
from utils.textfile import decode_text, split_lines

# Folders of file systems, network drives and archives, in lower case; those with a dot are hidden.
SYSTEM_DIRS = {
    "@eadir",
    "@recycle",
    "#recycle",
    "$recycle.bin",
    "__macosx",
    "lost+found",
    "system volume information",
}
# Images of other formats: not read, and not passed over in silence.
OTHER_SUFFIXES = {
    *(".jp2", ".jxl", ".ppm", ".pgm", ".tga", ".psd"),
    *(".svg", ".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw", ".dcm"),
}
HIDDEN = "hidden and system folders and images in {} ignored"


@dataclass
class Listing:
    """The images that a source names, and what is to be said about it.

    `errors` has a message for everything that names no image, `notes` counts by a sentence what
    was ignored or is unusual, as those of a `Scan`.
    """

    files: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def list_images(
    path: Path, root: Path | None = None, suffixes: Collection[str] = IMAGE_SUFFIXES
) -> Listing | None:
    """List the image files that `path` names: a directory, a .txt list, an image, or a glob.

    A directory is searched recursively, without hidden and system folders; links to folders are
    followed. A list has one path per line, relative to the list, to `root`, or to the list's parent
    directory. Files are those with one of the `suffixes`, sorted, those of a list in its order.
    Returns None if `path` is none of these.
    """
    if "\0" in str(path):
        return None
    if path.is_dir():
        return _walk(str(path), suffixes)
    if path.is_file() and path.suffix.lower() == ".txt":
        return _read_list(path, root, suffixes)
    if path.is_file() and has_suffix(path.name, suffixes):
        return Listing([str(path)])
    if not os.path.lexists(path) and glob.has_magic(str(path)):
        return _glob(path, suffixes)
    return None


def has_suffix(name: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> bool:
    """Return whether the file name ends in one of the `suffixes`, in any case.

    x.png.npy does not: it is what `--cache disk` writes next to x.png.
    """
    return _suffix(name) in suffixes and not _is_cache(name, suffixes)


def _is_cache(name: str, suffixes: Collection[str]) -> bool:
    return name.endswith(ARRAY_SUFFIX) and _suffix(name[: -len(ARRAY_SUFFIX)]) in suffixes


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path is slow, for 100,000 names


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_DIRS


def _walk(top: str, suffixes: Collection[str]) -> Listing:
    """List a directory and those in it, each once, even if links lead to it again."""
    listing, visited = Listing(), set()
    # Links come last, so that a folder's own name goes before that of a link to it.
    directories, links = [top], []
    while directories or links:
        directory = directories.pop() if directories else links.pop()
        try:
            status = os.stat(directory)  # noqa: PTH116 - as in os.walk
            entries = [*os.scandir(directory)]
        except OSError as error:
            listing.errors.append(f"{directory}: cannot be read: {error.strerror}; skipped")
            continue
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            suffix = _suffix(entry.name)
            is_file = suffix in suffixes and not entry.is_dir(follow_symlinks=False)
            is_dir = not is_file and _is_dir(entry)
            if is_file and _is_cache(entry.name, suffixes):
                continue
            if (is_file or is_dir) and _is_hidden(entry.name):
                listing.notes[HIDDEN.format(top)] += 1
            elif is_file:
                listing.files.append(entry.path)
            elif is_dir:
                (links if entry.is_symlink() else directories).append(entry.path)
            elif suffix in OTHER_SUFFIXES:
                message = f"{entry.path}: {suffix} is not a supported image format; skipped"
                listing.errors.append(message)
            elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                listing.errors.append(f"{entry.path}: a link to nothing; skipped")
    listing.files.sort()
    listing.errors.sort()
    return listing


def _is_dir(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():  # for one to itself, entry.is_dir() raises an error
        return os.path.isdir(entry.path)  # noqa: PTH112
    return entry.is_dir()


def _glob(path: Path, suffixes: Collection[str]) -> Listing:
    """List the images that match a pattern, and those in directories that match."""
    base = path  # what exists is not a pattern, whatever its characters
    while not base.exists() and base != base.parent:
        base = base.parent
    pattern = Path(glob.escape(str(base))) / path.relative_to(base)
    listing = Listing()
    for match in glob.glob(str(pattern), recursive=True):  # noqa: PTH207 - it may be absolute
        if has_suffix(match, suffixes):
            listing.files.append(match)
        elif os.path.isdir(match):  # noqa: PTH112 - a Path is slow, for 100,000 names
            inside = _walk(match.rstrip(os.sep), suffixes)
            listing.files += inside.files
            listing.errors += inside.errors
            listing.notes += inside.notes
    listing.files = sorted({*listing.files})
    listing.errors = sorted({*listing.errors})
    return listing


def _read_list(path: Path, root: Path | None, suffixes: Collection[str]) -> Listing:
    """List the images that the lines of a file name, with an error for each line without one."""
    listing = Listing()
    try:
        # A name need not be UTF-8: whatever its bytes are, they are those of the file's name.
        lines = split_lines(decode_text(path.read_bytes(), "surrogateescape"))
    except (OSError, UnicodeDecodeError) as error:
        listing.errors.append(f"{path}: cannot be read: {error}; skipped")
        return listing
    directories = [path.parent, *([root] if root else []), path.parent.parent]
    places = [*dict.fromkeys(map(str, directories))]
    names_in = cache(_names_in)

    def exists(file: str) -> bool:
        # The names of a directory are read once: quicker than to ask for each, on a network drive.
        directory, _, name = file.rpartition(os.sep)
        return name in names_in(directory or os.sep)

    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        file = next(filter(exists, _candidates(line, places)), None)
        if file is None and not line.lstrip().startswith("#"):
            looked = ", ".join(places)
            problem = f"{path}: line {number}: {line.strip()!r} not found"
            listing.errors.append(f"{problem} (looked in {looked}); skipped")
        elif file is not None and not has_suffix(file, suffixes) and os.path.isdir(file):  # noqa: PTH112
            message = f"{path}: line {number}: {line.strip()!r} is a directory, need an image"
            listing.errors.append(f"{message}; skipped")
        elif file is not None:
            listing.files.append(file)
    return listing


def _candidates(line: str, places: list[str]) -> Iterator[str]:
    """Yield the files that a line of a list may mean, the likeliest first."""
    for name in _spellings(line):
        for place in places:
            yield str(Path(place) / name)


def _spellings(line: str) -> Iterator[str]:
    """Yield a line as it stands, without spaces and quotes around it, with slashes for backslashes,

    and without the `data/` with which CVAT begins every line.
    """
    yield line
    bare = line.strip()
    unquoted = bare.strip("\"'")
    slashes = unquoted.replace("\\", "/")
    yield from (bare, unquoted, slashes)
    yield os.path.expanduser(slashes)  # noqa: PTH111 - not an error without a home directory
    yield slashes.removeprefix("data/")


def _names_in(directory: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(directory))  # noqa: PTH208 - quicker than Path
    except (OSError, ValueError):  # ValueError: a zero byte in a name
        return frozenset()
