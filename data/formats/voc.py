"""Pascal VOC: one xml per image, with boxes whose pixel coordinates begin at 1.

An xml belongs to the image that has its name. What else it says about the image, `filename` and
`size`, tools and people leave as it was when they rename, convert or resize images.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from data.arrays import ARRAY_SUFFIX
from data.config import AnnotatedSource
from data.formats.image_names import NOT_FOUND, ImageFinder
from data.formats.scan import Labels, Scan, unknown_class
from data.formats.voc_object import VocObject, parse_object
from data.formats.xml_file import read_xml
from data.images import IMAGE_SUFFIXES
from data.listing import has_suffix
from utils.errors import UserError
from utils.textfile import decode_text, split_lines

OTHER_NAME = "xml files whose `filename` is another image, taken with the image that has their name"
BY_FILENAME = "xml files whose name no image has, taken with the image of their `filename`"
NO_SIZE = "xml files without an image size, taken from the image files"
WRONG_SIZE = "xml files with an image size that their boxes exceed, taken from the image files"
SHAPES = "objects with a {} instead of a bndbox, whose box is taken"
DIFFICULT = "objects with `difficult`, taken as crowds: not trained on, no error in evaluation"
DELETED = "objects with `deleted`, ignored"
FROM_ZERO = "boxes that begin at pixel 0, which VOC calls 1, taken as at the image's border"
CUT = "boxes that reach beyond their image, cut at its border"
NEGATIVE = "lines with -1, a class that is not in the image, which is used all the same"
NO_XML = "listed images without an xml file, taken as images without objects"
UNUSED_IMAGES = "images in {} without an xml file in {}, ignored"


def read_voc(scan: Scan, root: Path, source: AnnotatedSource, labels: Labels) -> list[str]:
    """Add the images and boxes of `source`, whose paths are relative to `root`.

    Returns the files and directories that were read. Raises UserError if the directory of xml
    files or the image set cannot be read, or is empty.
    """
    xml_dir = root / source.annotations
    xml_files, inputs = _find_xml(xml_dir)
    # The time of a directory changes with the files in it.
    names, notes = list(xml_files), Counter()
    finder = ImageFinder(root / source.images, scan.suffixes)
    images = _VocImages(finder, xml_files, notes)
    if source.image_set is not None:
        inputs.append(str(root / source.image_set))
        names = _read_image_set(scan, root / source.image_set, xml_files, images, notes)
    for name in names:
        if name not in xml_files:  # CVAT writes none for an image without objects
            notes[NO_XML] += 1
            scan.add_image(images.without_xml(name))
            continue
        path, image_index = xml_files[name], len(scan.files)
        inputs.append(str(path))
        try:
            tree = _read_annotation(path)
            file = images.find(name, (tree.findtext("filename") or "").strip())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            scan.errors.append((image_index, f"{path}: {reason}; image skipped"))
            continue
        objects = _parse_objects(scan, path, image_index, tree, labels, notes)
        size = _add_image(scan, path, file, tree, objects.values(), notes)
        for number, obj in objects.items() if size else ():
            try:
                scan.add_box(image_index, labels[obj.name], obj.clip(*size), obj.is_difficult)
            except ValueError as error:
                message = f"{path}: object {number}: {error}; box skipped"
                scan.errors.append((image_index, message))
            else:
                _count(obj, size, notes)
    if source.image_set is None:
        images.count_unused(xml_dir)
    inputs += sorted(images.directories)
    scan.notes.update({f"{xml_dir}: {sentence}": n for sentence, n in notes.items() if n})
    return inputs


def _find_xml(xml_dir: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the xml files in a directory and below it, by name, and the directories.

    A name is the path in the directory without the suffix. Raises UserError if there is no file.
    """
    if not xml_dir.is_dir():
        problem = "a file" if xml_dir.exists() else "not found"
        # The other format that is an xml is a single file.
        cvat = "; CVAT's own xml is not read: export Pascal VOC" if problem == "a file" else ""
        raise UserError(
            f"{xml_dir}: {problem} (need a directory of VOC xml files, or a COCO .json{cvat})"
        )
    files, directories = {}, []
    for directory, subdirectories, names in os.walk(xml_dir):
        directories.append(directory)
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        for name in names:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - as in os.walk
            if suffix.lower() == ".xml" and not name.startswith(
                "."
            ):  # copies, of macOS for example
                path = Path(directory, name)
                files[(path.parent.relative_to(xml_dir) / stem).as_posix()] = path
    if not files:
        raise UserError(f"{xml_dir}: no .xml file in this directory (need VOC xml files)")
    return dict(sorted(files.items())), directories


def _read_image_set(
    scan: Scan,
    path: Path,
    xml_files: dict[str, Path],
    images: "_VocImages",
    notes: Counter[str],
) -> list[str]:
    """Return the names of the xml files, or else of the images, that the lines of a list mean.

    Adds an error for each line with neither. Raises UserError if the file cannot be read.
    """
    try:
        lines = split_lines(decode_text(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from None
    if not any(line.strip() for line in lines):
        raise UserError(f"{path}: an empty list (need an image name per line)")
    names = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line:
            continue
        listed = list(_listed_names(line))
        name = next((name for name in listed if name in xml_files), None)
        name = name or next(filter(images.without_xml, listed), None)
        if name is None:
            message = f"{path}: line {number}: neither an xml file nor an image for {line!r}"
            scan.errors.append((len(scan.files), f"{message}; image skipped"))
            continue
        names.append(name)
        notes[NEGATIVE] += line.endswith(" -1") and name != line
    return names


def _listed_names(line: str) -> Iterable[str]:
    """Yield the names that a line may mean: of an image, with a suffix, path or second column."""
    first, _, last = line.rpartition(" ")
    texts = [line]
    if last in ("-1", "0", "1"):  # of a list for a class
        texts.append(first.strip())
    texts += [text.strip('"') for text in texts if text.startswith('"')]
    for text in texts:
        name = text.replace("\\", "/").removeprefix("./")
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - not a path of this machine
        names = (
            [name, stem] if suffix.lower() in {*IMAGE_SUFFIXES, ARRAY_SUFFIX, ".xml"} else [name]
        )
        yield from names
        yield from (name.rpartition("/")[2] for name in names)


def _read_annotation(path: Path) -> ElementTree.Element:
    """Return the root of a VOC xml. Raises OSError, or ValueError with a message for the user."""
    try:
        tree = read_xml(path)
    except ValueError as error:
        raise ValueError(f"not a VOC xml: {error}") from None
    if tree.tag == "annotations":
        raise ValueError(
            "not a VOC xml, but CVAT's own format (export it as Pascal VOC, COCO or YOLO)"
        )
    if tree.tag != "annotation":
        raise ValueError(f"not a VOC xml: found the root <{tree.tag}> (need <annotation>)")
    return tree


class _VocImages:
    """Finds the images of xml files, each for one xml file only."""

    def __init__(
        self, finder: ImageFinder, xml_files: dict[str, Path], notes: Counter[str]
    ) -> None:
        self.directories: set[str] = set()  # of the images found
        self._finder, self._notes = finder, notes
        self._xml_files = xml_files
        self._xml_of_stem = {name.rpartition("/")[2]: path for name, path in xml_files.items()}
        self._name_of: dict[str, str] = {}  # by image: the name of its xml file

    def find(self, name: str, filename: str) -> str:
        """Return the image of the xml file `name`, which says `filename`.

        The one that has its name, or if no image has, that of its `filename`. Raises ValueError
        with a message for the user if there is none, or it is another xml file's.
        """
        directory, slash, stem = name.rpartition("/")
        said = filename.replace("\\", "/").rpartition("/")[2]
        is_same = stem in (said, os.path.splitext(said)[0])  # noqa: PTH122 - of another machine
        # The name with a suffix comes first: it is found without a look at the other files.
        names = [f"{directory}{slash}{said}", name] if is_same else [name]
        file, how = self._find_first(names)
        if how == NOT_FOUND and filename:
            file, how = self._finder.find(filename)
            if how != NOT_FOUND and not is_same:
                self._check_filename(filename, Path(file).stem)
        elif filename and not is_same:
            self._notes[OTHER_NAME] += 1
        if how == NOT_FOUND:
            other = "" if is_same or not filename else f", and for its `filename`, {filename!r}"
            raise ValueError(
                f"its image is not found (looked in {self._finder.directory} for {stem!r} with "
                f"the suffix of an image{other})"
            )
        other = self._name_of.setdefault(file, name)
        if other != name:
            raise ValueError(f"its image {file} is that of {self._xml_files[other]}, too")
        self.directories.add(os.path.dirname(file))  # noqa: PTH120 - as `file`
        return file

    def without_xml(self, name: str) -> str:
        """Return the image `name` of a list, "" if there is none."""
        file, how = self._finder.find(name)
        return "" if how == NOT_FOUND else file

    def _find_first(self, names: Iterable[str]) -> tuple[str, str]:
        for name in names:
            file, how = self._finder.find(name)
            if how != NOT_FOUND:
                break
        return file, how

    def _check_filename(self, filename: str, stem: str) -> None:
        """Raise ValueError if the image `filename`, with that stem, has an xml file of its name."""
        if stem in self._xml_of_stem:
            raise ValueError(
                f"no image has its name, and its `filename`, {filename!r}, is the image of "
                f"{self._xml_of_stem[stem]}"
            )
        self._notes[BY_FILENAME] += 1

    def count_unused(self, xml_dir: Path) -> None:
        """Note the images next to those found that no xml file has."""
        for directory in sorted(self.directories):
            names = os.listdir(directory)  # noqa: PTH208 - quicker than Path
            suffixes = self._finder.suffixes
            count = sum(has_suffix(name, suffixes) for name in names if name[0] != ".")
            used = sum(os.path.dirname(file) == directory for file in self._name_of)  # noqa: PTH120
            self._notes[UNUSED_IMAGES.format(directory, xml_dir)] += count - used


def _parse_objects(
    scan: Scan,
    path: Path,
    image_index: int,
    tree: ElementTree.Element,
    labels: Labels,
    notes: Counter[str],
) -> dict[int, VocObject]:
    """Return the objects by number; those that are invalid are errors of the image."""
    objects = {}
    for number, element in enumerate(tree.iter("object")):
        if (element.findtext("deleted") or "").strip() == "1":  # LabelMe's
            notes[DELETED] += 1
            continue
        try:
            obj = parse_object(element)
            if obj.name not in labels:
                raise ValueError(unknown_class(obj.name, labels))
        except ValueError as error:
            scan.errors.append((image_index, f"{path}: object {number}: {error}; box skipped"))
        else:
            objects[number] = obj
    return objects


def _add_image(
    scan: Scan,
    path: Path,
    file: str,
    tree: ElementTree.Element,
    objects: Iterable[VocObject],
    notes: Counter[str],
) -> tuple[float, float] | None:
    """Add the image to `scan`; return the size that the boxes are in, None if it has none.

    The stated size is that of the image file, or the boxes show that it is wrong, or `scan` says
    so. An image that EXIF turns may have boxes in the frame that is stored.
    """
    objects = list(objects)
    stated = _parse_size(tree)
    fits = stated is not None and all(obj.is_inside(*stated) for obj in objects)
    if not fits:
        size = scan.image_size(file)
        if isinstance(size, str):
            scan.add_image(file)
            return None  # its boxes go with it
        as_shown = float(size.width), float(size.height)
        frames = [as_shown, as_shown[::-1]] if size.orientation > 1 else [as_shown]
        if stated not in frames:
            inside = [f for f in frames if all(obj.is_inside(*f) for obj in objects)]
            if stated is None or inside:
                notes[NO_SIZE if stated is None else WRONG_SIZE] += 1
                stated = (inside or frames)[0]
    scan.add_image(file, *stated, str(path))
    return stated


def _parse_size(tree: ElementTree.Element) -> tuple[float, float] | None:
    """Return the image's width and height, None if they are missing or not positive numbers."""
    try:
        width, height = (float(tree.findtext(f"size/{key}") or "") for key in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if 0 < width < math.inf and 0 < height < math.inf else None


def _count(obj: VocObject, size: tuple[float, float], notes: Counter[str]) -> None:
    """Note what is not read as it stands."""
    x1, y1, x2, y2 = obj.edges
    notes[DIFFICULT] += obj.is_difficult
    if obj.shape != "bndbox":
        notes[SHAPES.format(obj.shape)] += 1
    if min(x1, y1) < -1 or x2 > size[0] or y2 > size[1]:
        notes[CUT] += 1
    elif min(x1, y1) < 0:
        notes[FROM_ZERO] += 1
