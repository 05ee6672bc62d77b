"""Finds the label files of images in the YOLO layout, and those that belong to no image."""

import os
import unicodedata
from collections.abc import Collection
from pathlib import Path

IMAGE_DIRS = (
    "images",
    "jpegimages",
    "image",
)  # of a path, in lower case: becomes one of LABEL_DIRS
LABEL_DIRS = ("labels", "Labels", "label", "Label", "LABELS")
NO_LABELS = "classes.txt"  # which tools write into the directory of labels


class LabelFiles:
    """The label file of each image: in the directory of labels, or else beside the image.

    The directory of labels is that of the image with the last `images` in its path replaced by
    `labels`; if none of the spellings is there, an `images` before it.
    """

    def __init__(self) -> None:
        self.searched: dict[str, list[str]] = {}  # of each image directory: where labels may be
        self.num_ignored = 0  # label files of images that have another one, which is read
        self._found: dict[str, list[tuple[str, dict[str, str]]]] = {}

    def find(self, image: str) -> str | None:
        """Return the path of the label file of `image`, None if there is none."""
        directory, _, name = image.rpartition(os.sep)
        if directory not in self._found:
            self._search(directory)
        stem = _key(os.path.splitext(name)[0])  # noqa: PTH122 - a Path is slow, 100,000 times
        path = None
        for label_dir, label_names in self._found[directory]:
            label_name = label_names.get(stem) or label_names.get(_key(name))
            if label_name and path:
                self.num_ignored += 1
            elif label_name:
                path = f"{label_dir}{os.sep}{label_name}"
        return path

    def places(self, image: str) -> list[str]:
        """Return the directories, of those that were searched, to name to a person."""
        directory = image.rpartition(os.sep)[0]
        return [*dict.fromkeys((self.searched[directory][0], directory))]

    def missing(self, image: str) -> list[str]:
        """Return where a label file of `image` may appear, in most cases."""
        stem = os.path.splitext(os.path.basename(image))[0]  # noqa: PTH119, PTH122 - Path is slow
        return [f"{directory}{os.sep}{stem}.txt" for directory in self.places(image)]

    def directories(self) -> list[str]:
        """Return the directories of labels, and those looked for where there are none.

        Not those of images, in which other files may change.
        """
        directories = set()
        for image_dir, label_dirs in self.searched.items():
            label_dirs_of_image = [label_dir for label_dir, _ in self._found[image_dir]]
            directories.update(label_dirs_of_image or label_dirs)
        return sorted(directories - self.searched.keys())

    def orphans(self, used: Collection[str]) -> list[str]:
        """Return the label files in `directories()` that are not in `used`, sorted."""
        image_dirs = self.searched.keys()
        label_dirs = {
            d: names
            for label_dirs_of_image in self._found.values()
            for d, names in label_dirs_of_image
            if d not in image_dirs
        }
        return sorted(
            path
            for label_dir, names in label_dirs.items()
            for name in names.values()
            if (path := f"{label_dir}{os.sep}{name}") not in used and name != NO_LABELS
        )

    def _search(self, directory: str) -> None:
        """Look where the labels of the images in `directory` are."""
        self.searched[directory] = label_dirs = _label_dirs(directory)
        self._found[directory] = []
        seen = set()
        for label_dir in label_dirs:
            try:
                status = os.stat(label_dir)  # noqa: PTH116
                names = os.listdir(label_dir)  # noqa: PTH208 - quicker than Path
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:  # Labels may be labels on this disk
                seen.add((status.st_dev, status.st_ino))
                texts = [n for n in names if n[-4:].lower() == ".txt" and not n.startswith(".")]
                texts.sort(reverse=True)  # .txt after .TXT, and so before it in the dict
                if texts:
                    self._found[directory].append((label_dir, {_key(n[:-4]): n for n in texts}))


def _label_dirs(directory: str) -> list[str]:
    """Return the directories that may have the labels of the images in `directory`."""
    parts = Path(directory).parts
    positions = [i for i, part in enumerate(parts) if part.lower() in IMAGE_DIRS]
    label_dirs = [
        str(Path(*parts[:i], name, *parts[i + 1 :]))
        for i in reversed(positions)
        for name in LABEL_DIRS
    ]
    return [*label_dirs, directory]


def _key(name: str) -> str:
    """Return `name` so that it is the same whether accents are characters of their own or not."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
