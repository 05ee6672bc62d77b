"""What the readers share: the arrays of a split, and the collector that they fill."""

import dataclasses
import hashlib
import itertools
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from data.cache import Arrays
from data.file_names import FileNames
from data.images import ImageSize, image_size, image_suffixes
from data.threads import map_in_threads
from utils.ground_truth import GroundTruth
from utils.log import plural
from utils.track import Track

Labels = dict[str, int | None]  # class name in a source -> label, None for a class to skip
Box = tuple[float, float, float, float]  # xyxy as fractions of the image's width and height
MAX_SHOWN_ERRORS = 20


@dataclasses.dataclass(frozen=True)
class Annotations:
    """One split: n images with N boxes; rows offsets[i] to offsets[i + 1] belong to image i.

    Arrays instead of an object per box, so that DataLoader workers share their memory.
    """

    class_names: tuple[str, ...]
    files: FileNames  # n paths
    sizes: np.ndarray  # (n, 2) int32: width, height, with the EXIF rotation applied
    offsets: np.ndarray  # (n + 1,) int64
    boxes: np.ndarray  # (N, 4) float32: xyxy as fractions of the image's width and height
    labels: np.ndarray  # (N,) int64, 0-based
    crowd: np.ndarray  # (N,) bool: COCO's iscrowd; not trained on, ignored in evaluation
    errors: tuple[str, ...]  # one message for each skipped image or annotation
    notes: tuple[str, ...]  # what was not read as it stands, with counts; nothing is skipped
    channels: int = 3  # of the images

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "Annotations":
        """Return the annotations that `Scan.finish` returns as arrays."""
        fields = dict(arrays)
        files = FileNames(fields.pop("file_text"), fields.pop("file_ends"))
        strings = {key: tuple(arrays[key].tolist()) for key in ("class_names", "errors", "notes")}
        return cls(files=files, **fields | strings)

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        """Return the numbers of images and boxes and a hash, equal for the same data anywhere.

        The hash covers the file names and their order, sizes, boxes, labels and class names, but
        neither directories nor pixels. Other channels than 3 are named, too.
        """
        text = "\n".join([*self.class_names, *map(os.path.basename, self.files)])
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6)
        for numbers in (self.sizes, self.offsets, self.boxes, self.labels, self.crowd):
            digest.update(np.ascontiguousarray(numbers))
        images = plural(len(self), "image")
        if self.channels != 3:
            images += f" of {plural(self.channels, 'channel')}"
        return f"{images} with {plural(len(self.labels), 'box', 'boxes')} ({digest.hexdigest()})"

    def take(self, images: np.ndarray) -> "Annotations":
        """Return those of the images for which `images` (n,) bool is True, with their boxes."""
        counts = np.diff(self.offsets)
        boxes = np.repeat(images, counts)
        return dataclasses.replace(
            self,
            files=FileNames.of(itertools.compress(self.files, images)),
            sizes=self.sizes[images],
            offsets=np.concatenate(([0], np.cumsum(counts[images], dtype=np.int64))),
            boxes=self.boxes[boxes],
            labels=self.labels[boxes],
            crowd=self.crowd[boxes],
        )

    def as_single_class(self, name: str | None = None) -> "Annotations":
        """Return the annotations with all boxes in one class, whose label is 0.

        It is called `name`, by default as the only class there is, or "object". Of boxes that
        differed in their class only, the first is left.
        """
        name = name or (self.class_names[0] if len(self.class_names) == 1 else "object")
        counts, labels = np.diff(self.offsets), np.zeros_like(self.labels)
        image_indices = np.repeat(np.arange(len(self)), counts)
        repeats = repeated_rows(image_indices, labels, self.crowd, self.boxes)
        unique = np.delete(np.arange(len(labels)), repeats)
        counts = np.bincount(image_indices[unique], minlength=len(self))
        return dataclasses.replace(
            self,
            class_names=(name,),
            offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
            boxes=self.boxes[unique],
            labels=labels[unique],
            crowd=self.crowd[unique],
        )

    def ground_truth(self) -> GroundTruth:
        """Return the boxes in pixels; image i has the id i, class k the id k."""
        return GroundTruth.from_fractions(
            self.sizes, self.offsets, self.boxes, self.labels, self.crowd, self.class_names
        )

    def image_names(self, indices: Sequence[int]) -> str:
        """Return the file names, without directories, of the images at `indices`."""
        return ", ".join(os.path.basename(self.files[i]) for i in indices)  # noqa: PTH119

    def messages(self, split: str, limit: int = MAX_SHOWN_ERRORS) -> list[str]:
        """Return the notes, the first `limit` errors and their count, each beginning with `split`.

        Without notes and errors the list is empty.
        """
        lines = [*self.notes, *self.errors[:limit]]
        if self.errors:
            lines.append(f"skipped {invalid_count(len(self.errors))}")
        return [f"{split}: {message}" for message in lines]


def invalid_count(count: int) -> str:
    """Return "1 invalid image or annotation", or the like for another count."""
    return plural(count, "invalid image or annotation", "invalid images or annotations")


def label_table(names: Sequence[str], remap: dict[str, str | None]) -> Labels:
    """Return the label of every class name that a source may use: `names`, and keys of `remap`."""
    labels: Labels = {name: label for label, name in enumerate(names)}
    return labels | {old: None if new is None else names.index(new) for old, new in remap.items()}


def unknown_class(name: str, labels: Labels) -> str:
    """Return the message for a source's class `name` that is not in `labels`."""
    return (
        f"found the class {name!r} (known: {[*labels]}; use `remap` to map it to one of the names, "
        "or to null to skip it)"
    )


class Scan:
    """Collects the images, boxes and errors of a split as flat arrays, without an object per box.

    A reader calls `add_image`, then `add_box` or `skip_labels` with the index that it returned, and
    appends (image index, message) to `errors` for everything else that it skips. What it does not
    read as it stands, without skipping it, it counts in `notes` by a sentence that says what was
    done. `files` are the images so far; they are read with `channels`.
    """

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels
        self.files: list[str] = []
        self.errors: list[tuple[int, str]] = []
        self.notes: Counter[str] = Counter()
        self._stated_sizes = array("d")  # of each image: width and height, nan if not stated
        self._stated_in: list[str] = []  # of each image: the file that states its size
        self._image_indices = array("q")  # of each box: index into `files`
        self._boxes = array("f")  # four numbers each
        self._labels = array("q")
        self._crowd = array("b")
        self._with_invalid: set[int] = set()  # images with a label that is invalid
        self._with_dropped: set[int] = set()  # images with a valid one of a class to skip

    @property
    def suffixes(self) -> set[str]:
        """The suffixes of images in directories."""
        return image_suffixes(self.channels)

    def image_size(self, file: str) -> ImageSize | str:
        """Return the size of the image `file`, or a message if it cannot be used."""
        return image_size(file, self.channels)

    def add_image(
        self, file: str, width: float = math.nan, height: float = math.nan, stated_in: str = ""
    ) -> int:
        """Add an image and return its index.

        `width` and `height` are those that the annotations in the file `stated_in` state, if they
        do. `finish` compares them with the image.
        """
        self.files.append(file)
        self._stated_sizes.extend((width, height))
        self._stated_in.append(stated_in)
        return len(self.files) - 1

    def add_box(
        self, image_index: int, label: int | None, box: Iterable[float], crowd: bool = False
    ) -> None:
        """Add a box (xyxy, fractions of the image size) to an image; a label of None skips it."""
        if label is None:
            self._with_dropped.add(image_index)
            return
        self._image_indices.append(image_index)
        self._labels.append(label)
        self._boxes.extend(box)
        self._crowd.append(crowd)

    def skip_labels(self, image_index: int, message: str) -> None:
        """Add an error for one or more labels of an image that are invalid.

        An image without a valid label is skipped, too: it has objects, and as an image without
        them it would teach a model not to detect them.
        """
        self.errors.append((image_index, message))
        self._with_invalid.add(image_index)

    def drop_boxes(self, image_indices: np.ndarray) -> None:
        """Record that images have a valid box of a class to skip, as `add_box` does for None."""
        self._with_dropped.update(np.unique(image_indices).tolist())

    def add_boxes(
        self, image_indices: np.ndarray, labels: np.ndarray, boxes: np.ndarray, crowd: np.ndarray
    ) -> None:
        """Add boxes (n, 4) with `image_indices`, `labels` and `crowd` (n,), as `add_box` does."""
        self._image_indices.frombytes(image_indices.astype(np.int64).tobytes())
        self._labels.frombytes(labels.astype(np.int64).tobytes())
        self._boxes.frombytes(boxes.astype(np.float32).tobytes())
        self._crowd.frombytes(crowd.astype(np.int8).tobytes())

    def finish(self, names: Sequence[str]) -> Arrays:
        """Return arrays for `Annotations.from_arrays`, with boxes in the order of their images.

        Reads the header of every image, and skips images that cannot be used.
        """
        sizes, orientations = self._read_sizes()
        self._skip_images_without_valid_labels(sizes)
        usable = sizes[:, 0] > 0
        image_indices = np.frombuffer(self._image_indices, np.int64)
        order = image_indices.argsort(kind="stable")
        order = order[usable[image_indices[order]]]
        image_indices = image_indices[order]
        boxes = np.frombuffer(self._boxes, np.float32).reshape(-1, 4)[order]
        labels = np.frombuffer(self._labels, np.int64)[order]
        crowd = np.frombuffer(self._crowd, np.int8)[order].astype(bool)
        if len(repeats := repeated_rows(image_indices, labels, crowd, boxes)):
            for i, count in zip(
                *np.unique(image_indices[repeats], return_counts=True), strict=True
            ):
                duplicates = plural(count, "duplicate box", "duplicate boxes")
                message = f"{self.files[i]}: {duplicates}; skipped"
                self.errors.append((int(i), message))
            image_indices, labels, crowd, boxes = (
                np.delete(array, repeats, 0) for array in (image_indices, labels, crowd, boxes)
            )
        _turn_boxes(boxes, orientations[image_indices])
        counts = np.bincount(image_indices, minlength=len(usable))[usable]
        errors = [message for _, message in sorted(self.errors, key=lambda error: error[0])]
        notes = [f"{sentence}: {count}" for sentence, count in self.notes.items() if count]
        files = FileNames.of(itertools.compress(self.files, usable))
        return {
            "class_names": np.array(names, dtype=str),
            "file_text": files.text,
            "file_ends": files.ends,
            "sizes": sizes[usable],
            "offsets": np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
            "boxes": boxes,
            "labels": labels,
            "crowd": crowd,
            "errors": np.array(errors, dtype=str),
            "notes": np.array(notes, dtype=str),
        }

    def _skip_images_without_valid_labels(self, sizes: np.ndarray) -> None:
        """Set the size (n, 2) of the images all of whose labels are invalid to 0, with an error."""
        invalid = np.array([*(self._with_invalid - self._with_dropped)], np.int64)
        for i in np.setdiff1d(invalid, np.frombuffer(self._image_indices, np.int64)).tolist():
            if sizes[i, 0] > 0:  # otherwise it is skipped already
                self.errors.append(
                    (i, f"{self.files[i]}: none of its labels is valid; image skipped")
                )
                sizes[i] = 0

    def _read_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return width and height (n, 2) int32 of every image, 0 and an error if it is unusable,
        and the EXIF orientation (n,) that its boxes need, 1 if they are right as they are."""
        count = len(self.files)
        sizes, orientations = np.zeros((count, 2), np.int32), np.ones(count, np.int8)
        # Threads, because on a network file system most of this is waiting.
        headers = map_in_threads(self.image_size, self.files, 8)
        for i, size in enumerate(Track(headers, "reading image headers", count, "image")):
            if isinstance(size, str):
                self.errors.append((i, size))
            else:
                sizes[i], orientations[i] = size[:2], size.orientation
                if size.note:
                    self.notes[size.note] += 1
        stated = np.frombuffer(self._stated_sizes).reshape(-1, 2)
        as_shown = np.isnan(stated[:, 0]) | (stated == sizes).all(1)
        as_stored = (stated == sizes[:, ::-1]).all(1) & (orientations > 1)
        orientations[as_shown] = 1
        for i in np.flatnonzero((sizes[:, 0] > 0) & ~as_shown & ~as_stored):
            message = (
                f"{self.files[i]}: found {sizes[i, 0]}x{sizes[i, 1]} pixels, but "
                f"{self._stated_in[i]} expects {stated[i, 0]:g}x{stated[i, 1]:g}; image skipped"
            )
            self.errors.append((int(i), message))
            sizes[i] = 0
        return sizes, orientations


def repeated_rows(
    image_indices: np.ndarray, labels: np.ndarray, crowd: np.ndarray, boxes: np.ndarray
) -> np.ndarray:
    """Return the indices, ascending, of the rows that equal an earlier one in everything.

    `boxes` (n, 4) float32, the others (n,).
    """
    # Equal rows have equal hashes, and to sort numbers is quick.
    columns = boxes.view(np.uint64).T
    hashes = (image_indices.astype(np.uint64) << np.uint64(1)) ^ crowd.astype(np.uint64)
    for column in (labels.view(np.uint64), *columns):
        hashes *= np.uint64(0x9E3779B97F4A7C15)  # an odd number with bits all over
        hashes ^= hashes >> np.uint64(29)
        hashes ^= column
    in_order = np.sort(hashes)
    shared = in_order[1:][in_order[1:] == in_order[:-1]]
    rows = np.flatnonzero(np.isin(hashes, shared)) if len(shared) else np.zeros(0, np.int64)
    content = np.column_stack((image_indices[rows], labels[rows], crowd[rows], boxes[rows]))
    first = np.unique(content, axis=0, return_index=True)[1]
    return np.delete(rows, first)


def _turn_boxes(boxes: np.ndarray, orientations: np.ndarray) -> None:
    """Turn boxes (n, 4), in place, with the images whose stored sides EXIF swaps.

    Boxes are xyxy as fractions of the sides. The orientations 5 to 8 are what is shown of the
    stored pixels: mirrored at the diagonal, turned clockwise, mirrored at the other diagonal,
    turned counterclockwise.
    """
    rows = np.flatnonzero(orientations > 1)
    if not len(rows):
        return
    orientation = orientations[rows, None]
    x, y = boxes[rows][:, [1, 3]], boxes[rows][:, [0, 2]]
    x = np.where((orientation == 6) | (orientation == 7), 1 - x[:, ::-1], x)
    y = np.where((orientation == 8) | (orientation == 7), 1 - y[:, ::-1], y)
    boxes[rows] = np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)
