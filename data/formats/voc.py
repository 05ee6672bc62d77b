"""Pascal VOC: one xml per image, with boxes whose pixel coordinates begin at 1."""

import math
from pathlib import Path
from xml.etree import ElementTree

from data.config import AnnotatedSource
from data.formats.scan import Box, Labels, Scan
from utils.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(scan: Scan, root: Path, source: AnnotatedSource, labels: Labels) -> list[str]:
    """Add the images and boxes of `source`, whose paths are relative to `root`.

    Returns the files and directories that were read. Raises UserError if the directory of xml
    files or the image set cannot be read.
    """
    xml_dir = root / source.annotations
    stems = _stems(root, source)
    # The time of a directory changes with the files in it.
    inputs = [] if source.image_set is None else [str(root / source.image_set)]
    inputs.append(str(xml_dir))
    for stem in stems:
        path, image_index = xml_dir / f"{stem}.xml", len(scan.files)
        inputs.append(str(path))
        try:
            tree = ElementTree.parse(path).getroot()
            width, height = _parse_size(tree)
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
            message = f"{path}: not a VOC xml with the image size: {error}; image skipped"
            scan.errors.append((image_index, message))
            continue
        file_name = tree.findtext("filename") or f"{stem}.jpg"
        scan.add_image(str(root / source.images / file_name), width, height, str(path))
        for number, obj in enumerate(tree.iter("object")):
            try:
                label, box = _parse_object(obj, width, height, labels)
            except ValueError as error:
                message = f"{path}: object {number}: {error}; box skipped"
                scan.errors.append((image_index, message))
            else:
                scan.add_box(image_index, label, box)
    return inputs


def _stems(root: Path, source: AnnotatedSource) -> list[str]:
    """Return the image names of the image set, or without one those of all xml files."""
    path = root / (source.annotations if source.image_set is None else source.image_set)
    try:
        if source.image_set is None:
            return sorted(file.stem for file in path.iterdir() if file.suffix == ".xml")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return [line.split()[0] for line in lines if line.strip()]  # class lists have a second column


def _parse_size(tree: ElementTree.Element) -> tuple[float, float]:
    """Return the image's width and height. Raises ValueError if they are not positive numbers."""
    width, height = (float(tree.findtext(f"size/{key}", "")) for key in ("width", "height"))
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"found the size {width:g}x{height:g}")
    return width, height


def _parse_object(
    obj: ElementTree.Element, width: float, height: float, labels: Labels
) -> tuple[int | None, Box]:
    """Return label and box, clipped to the image. Raises ValueError with a message for the user.

    VOC counts pixels from 1, and the last one belongs to the box.
    """
    name = (obj.findtext("name") or "").strip()
    if name not in labels:
        raise ValueError(f"found the name {name!r} (known: {[*labels]})")
    texts = [(obj.findtext(f"bndbox/{key}") or "").strip() for key in CORNERS]
    bndbox = f"found the bndbox {' '.join(texts)!r}"
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError:
        raise ValueError(f"{bndbox} (need four numbers)") from None
    finite = all(map(math.isfinite, (x1, y1, x2, y2)))
    x1, y1, x2, y2 = max(0.0, x1 - 1), max(0.0, y1 - 1), min(width, x2), min(height, y2)
    if not finite or x2 <= x1 or y2 <= y1:
        raise ValueError(f"{bndbox}, which covers nothing of the {width:g}x{height:g} image")
    return labels[name], (x1 / width, y1 / height, x2 / width, y2 / height)
