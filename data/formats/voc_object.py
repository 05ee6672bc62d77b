"""The objects of a Pascal VOC xml: names, `difficult`, and boxes, also those of other shapes."""

import math
from dataclasses import dataclass
from xml.etree import ElementTree

from data.formats.scan import Box

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """An object: its edges (x1, y1, x2, y2) in pixels, from 0, and `as_written`: as in the xml.

    `shape` is the element that they come from.
    """

    name: str
    edges: Box
    shape: str
    as_written: str
    is_difficult: bool

    def is_inside(self, width: float, height: float) -> bool:
        """Whether the box lies in an image of this size, but for a pixel of rounding."""
        x1, y1, x2, y2 = self.edges
        return min(x1, y1) >= -1 and x2 <= width + 1 and y2 <= height + 1

    def clip(self, width: float, height: float) -> Box:
        """Return the box, cut at the image, as fractions of its size.

        Raises ValueError with a message for the user if nothing is left.
        """
        x1, y1, x2, y2 = self.edges
        if x2 <= x1 or y2 <= y1:
            raise ValueError(
                f"{self.as_written}, which covers nothing of the {width:g}x{height:g} image: its "
                "minimum is above its maximum"
            )
        x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(width, x2), min(height, y2)
        if x2 <= x1 or y2 <= y1:
            raise ValueError(
                f"{self.as_written}, which covers nothing of the {width:g}x{height:g} image"
            )
        return x1 / width, y1 / height, x2 / width, y2 / height


def parse_object(element: ElementTree.Element) -> VocObject:
    """Return what an `object` element says. Raises ValueError with a message for the user.

    Its parts (of the person layout: head, hands, feet) have boxes of their own, which are not its.
    """
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no name")
    shapes = [shape for shape in _EDGES if element.find(shape) is not None]
    if not shapes:
        raise ValueError("has no bndbox")
    shape = shapes[0]
    if len(element.findall(shape)) > 1:
        raise ValueError(f"found {len(element.findall(shape))} elements {shape} (need one)")
    texts = [(e.text or "").strip() for e in element.find(shape).iter() if not len(e)]
    if shape == "bndbox":
        texts = [(element.findtext(f"bndbox/{key}") or "").strip() for key in CORNERS]
    as_written = f"found the {shape} {_shorten(' '.join(texts))!r}"
    try:
        edges = _EDGES[shape](element.find(shape))
    except ValueError:
        need = "four numbers" if shape in ("bndbox", "segm") else "numbers"
        raise ValueError(f"{as_written} (need {need})") from None
    if not all(map(math.isfinite, edges)):
        raise ValueError(f"{as_written}, which covers nothing of the image")
    difficult = (element.findtext("difficult") or "").strip().lower()
    return VocObject(name, edges, shape, as_written, difficult in ("1", "true"))


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def _number(element: ElementTree.Element, path: str) -> float:
    return float((element.findtext(path) or "").strip())


def _bndbox_edges(element: ElementTree.Element) -> Box:
    """VOC counts pixels from 1, and the last one belongs to the box."""
    x1, y1, x2, y2 = (_number(element, key) for key in CORNERS)
    return x1 - 1, y1 - 1, x2, y2


def _robndbox_edges(element: ElementTree.Element) -> Box:
    """roLabelImg's rectangle, turned by an angle in radians: the box around it."""
    cx, cy, w, h, angle = (_number(element, key) for key in ("cx", "cy", "w", "h", "angle"))
    if not math.isfinite(angle):
        raise ValueError
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    half_width, half_height = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height


def _polygon_edges(element: ElementTree.Element) -> Box:
    """The box around the points: LabelMe's <pt><x>, <y></pt>, Roboflow's <x1>, <y1>, <x2>, ..."""
    xs = [float(e.text or "") for e in element.iter() if e.tag[:1] == "x"]
    ys = [float(e.text or "") for e in element.iter() if e.tag[:1] == "y"]
    if len(xs) != len(ys) or len(xs) < 2:
        raise ValueError
    return min(xs), min(ys), max(xs), max(ys)


def _segm_edges(element: ElementTree.Element) -> Box:
    """The box that LabelMe states for a mask."""
    x1, y1, x2, y2 = (_number(element, f"box/{key}") for key in CORNERS)
    return x1, y1, x2, y2


_EDGES = {  # the first one that an object has is taken
    "bndbox": _bndbox_edges,
    "robndbox": _robndbox_edges,
    "polygon": _polygon_edges,
    "segm": _segm_edges,
}
