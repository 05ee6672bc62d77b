"""The YOLO layout: one text file per image, with a line "class cx cy w h" for each box.

The line of a segmentation data set, "class x1 y1 x2 y2 x3 y3 ...", or of one with rotated boxes,
which has four corners, stands for the polygon's box. A line with keypoints behind its box is known
by the `kpt_shape` of the data.yaml.
"""

import math
from collections import Counter
from collections.abc import Sequence

from data.formats.label_files import LabelFiles
from data.formats.scan import Box, Scan
from utils.textfile import decode_text
from utils.track import Track

ROUNDING = 1e-3  # what a coordinate may be beyond 0..1; that of a tool that rounds to 3 digits
IN_PIXELS = 2.0  # from this on, a number is not a fraction
POLYGONS = "polygons, of which the bounding boxes are taken"
KEYPOINTS = "boxes with keypoints, of which the keypoints are ignored"
CUT = "boxes that reach beyond their image, cut at its border"
TEXT_BEHIND = "label lines with text behind the five numbers, which is ignored"
NO_LABEL_FILES = "no label file for any image of {} (looked in {}); images without objects"
NO_LABEL_FILE = "images without a label file, taken as images without objects"
TWO_LABEL_FILES = (
    "label files that are not read, because their image has another one in the directory of labels"
)
SHARED_LABELS = "images whose name, but for the suffix, another one has, with the same label file"


def read_yolo(
    scan: Scan,
    where: str,
    images: list[str],
    labels: list[int | None],
    kpt_shape: Sequence[int] = (),
    is_directory: bool = False,
) -> list[str]:
    """Add images and the boxes of their label files to `scan`.

    `where` is the source as the data.yaml has it. `labels[k]` is the label of class number k in its
    label files, None for a class to skip; `kpt_shape` the number of keypoints behind each box, and
    of the numbers of each. If the images are all those of a directory, a label file without an
    image is an error. Returns the files and directories whose change may change the result.
    """
    label_files, inputs, num_missing, num_shared = LabelFiles(), [*images], 0, 0
    image_of: dict[str, str] = {}  # by label file
    for image in Track(images, "reading labels", len(images), "image"):
        image_index = scan.add_image(image)
        path = label_files.find(image)
        if path is None:
            inputs += label_files.missing(image)
            num_missing += 1
            continue
        inputs.append(path)
        num_shared += image_of.setdefault(path, image) != image
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - Path is slow, 100,000 times
                # What is not UTF-8 is in a comment: numbers are ASCII.
                lines = decode_text(file.read(), "backslashreplace").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            scan.skip_labels(image_index, f"{path}: cannot be read: {error}; labels skipped")
            continue
        for number, line in enumerate(lines, 1):
            try:
                parsed = _parse_line(line, len(labels), kpt_shape, scan.notes)
            except ValueError as error:
                scan.skip_labels(image_index, f"{path}: line {number}: {error}; box skipped")
            else:
                if parsed is not None:
                    scan.add_box(image_index, labels[parsed[0]], parsed[1])
    if num_missing and num_missing == len(images):
        looked = " or ".join(label_files.places(images[0]))
        scan.notes[NO_LABEL_FILES.format(where, looked)] += num_missing
    elif num_missing:
        scan.notes[NO_LABEL_FILE] += num_missing
    scan.notes[SHARED_LABELS] += num_shared
    scan.notes[TWO_LABEL_FILES] += label_files.num_ignored
    if is_directory:
        for path in label_files.orphans(image_of.keys()):
            scan.errors.append((len(scan.files), f"{path}: no image for these labels; skipped"))
    if is_directory or num_missing:
        inputs += label_files.directories()
    return inputs


def _parse_line(
    line: str, num_classes: int, kpt_shape: Sequence[int], notes: Counter[str]
) -> tuple[int, Box] | None:
    """Return class number and box of "class cx cy w h", cut at the image, or of a polygon.

    Returns None for a line without numbers: an empty one or a comment. Counts in `notes` what is
    not read as it stands. Raises ValueError with a message for the user.
    """
    fields = line.split()
    try:
        label, *numbers = map(float, fields)
    except ValueError:
        fields = _number_fields(line, notes)
        if not fields:
            return None
        label, *numbers = map(float, fields)
    if not (label.is_integer() and 0 <= label < num_classes):
        raise ValueError(f"found class {fields[0]} (allowed: 0 to {num_classes - 1})")
    if kpt_shape and len(numbers) == 4 + math.prod(kpt_shape):
        numbers = numbers[:4]
        notes[KEYPOINTS] += 1
    if len(numbers) == 4:
        cx, cy, w, h = numbers
        x1, y1, x2, y2 = corners = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        if 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1:  # nearly all: nothing to cut or to report
            return int(label), corners
        return int(label), _cut(corners, numbers, fields[1:], "box", notes)
    _check_polygon(numbers, kpt_shape)
    xs, ys = numbers[::2], numbers[1::2]
    box = _cut((min(xs), min(ys), max(xs), max(ys)), numbers, fields[1:], "polygon", notes)
    notes[POLYGONS] += 1
    return int(label), box


def _cut(
    corners: Box, numbers: list[float], fields: list[str], shape: str, notes: Counter[str]
) -> Box:
    """Return the corners of a box, cut at the image. Raises ValueError with a message for the user.

    `numbers` are those of the line, `fields` as it has them.
    """
    x1, y1, x2, y2 = corners
    box = max(0.0, x1), max(0.0, y1), min(1.0, x2), min(1.0, y2)
    lowest, highest = min(numbers), max(numbers)
    is_inside = lowest >= -ROUNDING and highest <= 1 + ROUNDING and not math.isnan(sum(numbers))
    if not (is_inside and box[0] < box[2] and box[1] < box[3]):
        problem = f"found the {shape} {_shorten(' '.join(fields))}"
        if IN_PIXELS <= highest < math.inf:
            raise ValueError(
                f"{problem}, in pixels or percent (allowed: 0 to 1, as fractions of the image's "
                "width and height)"
            )
        raise ValueError(f"{problem} (allowed: 0 to 1, width and height above 0)")
    if (
        lowest < 0
        or highest > 1
        or min(x1, y1) < -ROUNDING
        or max(x2, y2) > 1 + ROUNDING  # of a box that is inside by its center and size
    ):
        notes[CUT] += 1
    return box


def _number_fields(line: str, notes: Counter[str]) -> list[str]:
    """Return the fields of a line that are not all numbers between spaces.

    Allowed are a comment behind `#`, commas or semicolons between the fields, commas for points
    within them, and text behind a box. Raises ValueError with a message for the user.
    """
    text = line.partition("#")[0].replace(";", " ")
    if "," in text:
        has_decimal_commas = "." not in text and len(text.split()) >= 5
        text = text.replace(",", "." if has_decimal_commas else " ")
    fields = text.split()
    count = next((i for i, field in enumerate(fields) if not _is_number(field)), len(fields))
    if count == 5 and len(fields) > 5:
        notes[TEXT_BEHIND] += 1
    elif fields and count == 0:
        raise ValueError(f"found the class {_shorten(fields[0])!r} (need its number)")
    elif count < len(fields):
        needed = len(fields) if len(fields) >= 7 and len(fields) % 2 == 1 else "five"
        raise ValueError(f"found {_shorten(line.strip())!r} (need {needed} numbers)")
    return fields[:5] if count == 5 else fields


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _check_polygon(numbers: list[float], kpt_shape: Sequence[int]) -> None:
    """Raise ValueError with a message for the user if `numbers` are not those of a polygon."""
    count = len(numbers) + 1
    if kpt_shape:
        allowed = f"need {5 + math.prod(kpt_shape)}: class cx cy w h and, by kpt_shape, keypoints"
    elif count == 6:
        allowed = "need 5: class cx cy w h; a sixth is a prediction's confidence, no label's"
    elif count > 6 and count % 2 == 1 and not _look_like_keypoints(numbers):
        return
    else:
        allowed = "need 5: class cx cy w h, or the x y of a polygon"
        if count > 6:
            allowed += "; keypoints behind the box need the key kpt_shape in the data.yaml"
    raise ValueError(f"found {count} fields ({allowed})")


def _look_like_keypoints(numbers: list[float]) -> bool:
    """Return whether the numbers behind a box are x, y and visibility, 0 to 2 with one 2."""
    visibilities = numbers[6::3]
    return len(numbers) % 3 == 1 and 2 in visibilities and {*visibilities} <= {0, 1, 2}


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
