"""Finds what a path in a data.yaml means, as the tools write it from which datasets come."""

import glob
import os
from pathlib import Path, PurePosixPath

from utils.errors import UserError
from utils.yamlfile import find_file

DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml")  # looked for in a directory


def find_data_yaml(text: str, fallback_dir: Path) -> Path:
    """Return the data.yaml that `text` names: a file, one in `fallback_dir`, or in a directory.

    A directory must have a data.yaml, or a single YAML file. Raises UserError if there is none.
    """
    directory = Path(text)
    if not text or not directory.is_dir():
        return find_file(text, fallback_dir, "--data")
    candidates = [directory / name for name in DATA_FILES if (directory / name).is_file()]
    if not candidates:
        candidates = sorted(path for path in directory.glob("*.y*ml") if path.is_file())
        if len(candidates) != 1:
            names = ", ".join(path.name for path in candidates)
            has = f"found {names}" if candidates else "it has none"
            raise UserError(f"{text}: a directory (need its data.yaml; {has})")
    return candidates[0]


def locate(root: Path, text: str) -> str:
    """Return the path `text`, relative to `root`, spelled so that it exists, if it does.

    As it stands, without spaces around it, with slashes for backslashes, with the home directory
    for `~`.
    """
    spellings = (text, text.strip(), text.strip().replace("\\", "/"))
    for spelling in dict.fromkeys((*spellings, os.path.expanduser(spellings[-1]))):  # noqa: PTH111
        if spelling and exists(root, spelling):
            return spelling
    return text


def exists(root: Path, text: str) -> bool:
    """Return whether something is at the path `text`, relative to `root`, or matches it."""
    if "\0" in text:
        return False
    if os.path.exists(root / text):  # noqa: PTH110 - Path.exists raises an error for a long name
        return True
    pattern = Path(glob.escape(str(root))) / text
    return glob.has_magic(text) and any(glob.iglob(str(pattern), recursive=True))  # noqa: PTH207


def similar(root: Path, text: str) -> str:
    """Return the longest end of the path `text` that is in `root`, "" if there is none."""
    parts = PurePosixPath(text.replace("\\", "/")).parts
    ends = ("/".join(parts[i:]) for i in range(1, len(parts)))
    return next((end for end in ends if exists(root, end)), "")


def below(text: str) -> str:
    """Return the path `text` without the leading `..`, as Roboflow means it; "" if it has none."""
    parts = PurePosixPath(text.strip().replace("\\", "/")).parts
    count = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    return "/".join(parts[count:]) if count else ""
