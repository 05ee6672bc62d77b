"""Parses xml files in the encodings that people's tools write."""

import codecs
import re
from pathlib import Path
from xml.etree import ElementTree

MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ENCODING = re.compile(rb"""^\s*<\?xml[^>]*encoding\s*=\s*["']([\w.:-]+)["']""")


def read_xml(path: Path) -> ElementTree.Element:
    """Return the root of the xml file `path`; tags are without their namespaces.

    An encoding that the parser does not know (GBK, Big5, Shift JIS), bytes that are not of the
    stated encoding, and blank lines before the declaration are not errors. Entities that would grow
    without bound are: the parser limits them. Raises OSError, or ValueError if this is not xml.
    """
    content = path.read_bytes()
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError):
        try:
            root = ElementTree.fromstring(_decode(content))
        except ElementTree.ParseError as error:
            raise ValueError(str(error)) from None
    if "}" in root.tag:
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    return root


def _decode(content: bytes) -> str:
    """Return `content` as text; what is not of its encoding is replaced."""
    encoding = "utf-16" if content.startswith(MARKS[1:]) else "utf-8-sig"
    match = ENCODING.match(content)
    if match and not content.startswith(MARKS):
        try:
            encoding = codecs.lookup(match[1].decode()).name
        except LookupError:
            raise ValueError(f"found the unknown encoding {match[1].decode()!r}") from None
    return content.decode(encoding, "replace").strip().replace("\0", "")
