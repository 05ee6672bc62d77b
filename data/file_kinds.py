"""What an unreadable image file begins with: says more than that it cannot be read."""

_TIFF = "a TIFF with bands or values that are not supported (see Channels in docs/data.md)"
# (offset, bytes there, what the file is)
_KINDS = (
    (0, b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
    (0, b"<!DOCTYPE html", "an HTML page"),
    (0, b"<!doctype html", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"%PDF", "a PDF document"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\xff\xd8\xff", "a JPEG whose header is damaged or not supported"),
    (0, b"\x89PNG", "a PNG whose header is damaged or not supported"),
    (0, b"GIF8", "a GIF whose header is damaged"),
    (8, b"WEBP", "a WebP whose header is damaged"),
    (0, b"II*\x00", _TIFF),
    (0, b"MM\x00*", _TIFF),
    (0, b"II+\x00", _TIFF),
    (0, b"MM\x00+", _TIFF),
    (4, b"ftypavi", "an AVIF image that is damaged or not supported by this Pillow"),
    (8, b"AVI ", "a video"),
    (0, b"\x1a\x45\xdf\xa3", "a video"),
)
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def kind_of(head: bytes) -> str:
    """Return what a file is that begins with `head` (32 bytes or more), "" if that is unknown."""
    if not head:
        return "an empty file"
    if not any(head):
        return "a file of zeros (its content is lost)"
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS:
        return "a HEIC image, which pillow-heif reads (pip install pillow-heif)"
    for offset, mark, kind in _KINDS:
        if head[offset:].startswith(mark):
            return kind
    return "a video" if head[4:8] == b"ftyp" else ""
