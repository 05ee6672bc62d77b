"""The YOLO layout: one text file per image, with a line "class cx cy w h" for each box.

The line of a segmentation data set, "class x1 y1 x2 y2 x3 y3 ...", stands for the polygon's box.
"""

import os

from data.formats.scan import Box, Scan


def label_file(image: str) -> str:
    """Return the path of an image's label file.

    The last directory named `images` becomes `labels`, the suffix becomes .txt.
    """
    directory, _, name = image.rpartition(os.sep)
    before, images, after = f"{os.sep}{directory}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    if images:
        directory = f"{before}{os.sep}labels{os.sep}{after}"[1:].rstrip(os.sep)
    return f"{directory}{os.sep}{os.path.splitext(name)[0]}.txt"  # noqa: PTH122


def read_yolo(scan: Scan, images: list[str], labels: list[int | None]) -> None:
    """Add images and the boxes of their label files to `scan`.

    `labels[k]` is the label of class number k in these files, None for a class to skip.
    """
    for image in images:
        image_index = scan.add_image(image)
        path = label_file(image)
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123 - Path is slow, 100,000 times
                lines = file.read().splitlines()
        except FileNotFoundError:
            continue  # an image without objects needs no label file
        except (OSError, UnicodeDecodeError) as error:
            scan.errors.append((image_index, f"{path}: cannot be read: {error}; labels skipped"))
            continue
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                class_number, box = _parse_line(line, len(labels))
            except ValueError as error:
                scan.errors.append((image_index, f"{path}: line {number}: {error}; box skipped"))
            else:
                scan.add_box(image_index, labels[class_number], box)


def find_orphan_labels(scan: Scan, images: list[str]) -> list[str]:
    """Add an error for each label file that belongs to none of `images`.

    `images` are all images of a directory. Returns the label directories that were searched:
    those without images of their own, because next to images a text file may be anything.
    """
    expected = {label_file(image) for image in images}
    label_dirs = {path.rpartition(os.sep)[0] for path in expected}
    image_dirs = {image.rpartition(os.sep)[0] for image in images}
    searched = sorted(label_dirs - image_dirs)
    for directory in filter(os.path.isdir, searched):
        for name in sorted(os.listdir(directory)):  # noqa: PTH208 - quicker than Path
            path = f"{directory}{os.sep}{name}"
            if name.endswith(".txt") and name != "classes.txt" and path not in expected:
                scan.errors.append((len(scan.files), f"{path}: no image for these labels; skipped"))
    return searched


def _parse_line(line: str, num_classes: int) -> tuple[int, Box]:
    """Return class number and box of "class cx cy w h", clipped to the image, or of a polygon.

    Raises ValueError with a message for the user.
    """
    fields = line.split()
    is_polygon = len(fields) >= 7 and len(fields) % 2 == 1
    if len(fields) != 5 and not is_polygon:
        raise ValueError(
            f"found {len(fields)} fields (need 5: class cx cy w h, or the x y of a polygon)"
        )
    try:
        label, *numbers = (float(field) for field in fields)
    except ValueError:
        count = len(fields) if is_polygon else "five"
        raise ValueError(f"found {_shorten(line.strip())!r} (need {count} numbers)") from None
    if not (label.is_integer() and 0 <= label < num_classes):
        raise ValueError(f"found class {fields[0]} (allowed: 0 to {num_classes - 1})")
    x1, y1, x2, y2 = _polygon_corners(numbers) if is_polygon else _box_corners(numbers)
    if not all(0 <= value <= 1 for value in numbers) or x1 == x2 or y1 == y2:
        shape = f"{'polygon' if is_polygon else 'box'} {_shorten(' '.join(fields[1:]))}"
        raise ValueError(f"found the {shape} (allowed: 0 to 1, width and height above 0)")
    return int(label), (max(0.0, x1), max(0.0, y1), min(1.0, x2), min(1.0, y2))


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def _box_corners(numbers: list[float]) -> Box:
    cx, cy, w, h = numbers
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def _polygon_corners(numbers: list[float]) -> Box:
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)
