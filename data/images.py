"""Image files: their sizes, and decoded images, kept in memory or on disk."""

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import (  # noqa: F401 - the plugins register formats
    AvifImagePlugin,
    Image,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from data.arrays import ARRAY_SUFFIX, array_size, read_array
from data.file_kinds import kind_of
from data.pixels import (
    COLOR_NOTE,
    DARK_NOTE,
    PLAIN_MODES,
    TRANSPOSES,
    becomes_gray,
    check_channels,
    exif_orientation,
    is_dark,
    to_bands,
)
from data.threads import map_in_threads
from utils.atomic import atomic_write
from utils.cpus import cpu_count
from utils.errors import DISK_ERRORS, UserError
from utils.memory import available_memory
from utils.shared_memory import SharedArray, shared_zeros
from utils.track import Track

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
}
# Not all that Pillow knows: for an EPS file it would start Ghostscript.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
with suppress(ImportError):  # for HEIC, if it is installed
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)
SWAPPED_ORIENTATIONS = (5, 6, 7, 8)  # of EXIF: values that swap width and height
# Dimensions of (channels, h, w) -> orientations that flip them, after the swap.
FLIPS = {-1: (2, 3, 6, 7), -2: (3, 4, 7, 8)}
JPEG_READ_MODES = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}  # by number of channels
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Pillow's warnings name no file. What matters in them becomes an error of `image_size`.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def image_suffixes(channels: int) -> set[str]:
    """Return the suffixes of images of `channels` channels.

    Arrays (.npy) are among those of a directory only if there are not 3: tools write caches of RGB
    images as .npy files next to them. Those that a list or annotations name are read anyway.
    """
    return IMAGE_SUFFIXES if channels == 3 else IMAGE_SUFFIXES | {ARRAY_SUFFIX}


def unique_stem(file: str, used_stems: set[str]) -> str:
    """Return the name of `file` without directory and suffix, made unique, and add it to the set.

    If it is in `used_stems` it gets a number: image, image_2, image_3.
    """
    stem = unique = Path(file).stem
    number = 1
    while unique in used_stems:
        number += 1
        unique = f"{stem}_{number}"
    used_stems.add(unique)
    return unique


class ImageSize(NamedTuple):
    """Width and height in pixels, as the image is shown.

    `orientation` is EXIF's number if it swaps the sides that the file has, otherwise 1. `note` says
    what a person should know about the pixels.
    """

    width: int
    height: int
    orientation: int = 1
    note: str = ""


def image_size(file: str, channels: int = 3) -> ImageSize | str:
    """Return the size of the image, or a message if it is invalid or cannot have `channels`.

    Of a JPEG only the header and the end are read, of a PNG also the checksums of the pixels: an
    image too large for any memory is recognized without decoding it. Other formats have neither,
    so their files are decoded, and those to which a phone has appended a video.
    """
    try:
        if _is_array(file):
            width, height, is_dark_array = array_size(file, channels)
            return ImageSize(width, height, note=DARK_NOTE if is_dark_array else "")
        with Path(file).open("rb") as raw, Image.open(raw, formats=FORMATS) as image:
            width, height = image.size
            orientation, note = exif_orientation(image), ""
            if image.format == "PNG":
                _check_png(raw)
            elif image.format not in ("JPEG", "MPO") or not _has_jpeg_end(raw):
                image.load()
            check_channels(image, channels)
            if becomes_gray(image, channels):
                note = COLOR_NOTE
            if image.mode not in PLAIN_MODES:
                note = DARK_NOTE if is_dark(image) else note
                to_bands(image, channels)
            elif image.format == "TIFF" and channels != 3:  # it may have more pages
                to_bands(image, channels)
    except Exception as error:  # corrupted bytes raise exceptions of any type in a decoder
        return f"{_error_message(file, error, 'read')}; skipped"
    if orientation in SWAPPED_ORIENTATIONS:
        return ImageSize(height, width, orientation, note)
    return ImageSize(width, height, note=note)


def _is_array(file: str) -> bool:
    return file[-4:].lower() == ARRAY_SUFFIX


def _has_jpeg_end(raw: BinaryIO) -> bool:
    """Whether the end marker is behind the header, which may have a whole image in it, as well."""
    start = max(raw.tell(), os.fstat(raw.fileno()).st_size - 4096)
    raw.seek(start)
    return JPEG_END in raw.read()


def _check_png(raw: BinaryIO) -> None:
    """Raise OSError if a PNG is cut off, or a checksum of its pixels is wrong."""
    raw.seek(8)
    while len(header := raw.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return
        if kind == b"IDAT":
            checksum = zlib.crc32(raw.read(length), zlib.crc32(kind))
            if raw.read(4) != struct.pack(">I", checksum):
                raise OSError("PNG pixels are damaged or cut off (wrong checksum)")
        else:  # damage there does not matter
            raw.seek(length + 4, os.SEEK_CUR)
    raise OSError("PNG file is cut off")


def _error_message(file: str, error: Exception, verb: str) -> str:
    """Return why `file` cannot be read or decoded."""
    if isinstance(error, Image.DecompressionBombError):
        return f"{file}: too large to decode"
    if isinstance(error, UnidentifiedImageError):
        with suppress(OSError), Path(file).open("rb") as raw:
            if kind := kind_of(raw.read(32)):
                return f"{file}: cannot be {verb}: found {kind}"
        return f"{file}: not an image in a supported format"
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"{file}: cannot be {verb}: {reason or type(error).__name__}"


def read_image(path: str, channels: int = 3) -> Tensor:
    """Decode an image to (channels, h, w) uint8; 3 channels are RGB.

    The EXIF rotation is applied, and of an animation or several pages the first is taken; see
    `to_rgb` for colors, `to_bands` for other channels, and `data.arrays` for .npy files. Raises
    UserError if the file cannot be decoded, or cannot have `channels`.
    """
    try:
        if _is_array(path):
            return torch.from_numpy(read_array(path, channels)).permute(2, 0, 1)
        return _decode(path, channels)
    except MemoryError:
        raise
    except Exception as error:  # corrupted bytes raise exceptions of any type in a decoder
        raise UserError(_error_message(path, error, "decoded")) from None


def checked_image(path: str, channels: int = 3) -> Tensor:
    """Decode an image as `read_image` does, after the checks of `image_size`.

    Raises UserError for a file that one of them refuses; a JPEG that is cut off is one of those.
    """
    size = image_size(path, channels)
    if isinstance(size, str):  # an error message
        raise UserError(size.removesuffix("; skipped"))
    return read_image(path, channels)


def pil_to_tensor(original: Image.Image, channels: int = 3) -> Tensor:
    """Return Pillow's image as (channels, h, w) uint8, turned as its EXIF orientation says.

    Raises ValueError as `to_bands` does.
    """
    orientation = exif_orientation(original)
    bands = to_bands(original, channels)
    if orientation > 1:
        bands = [image.transpose(TRANSPOSES[orientation]) for image in bands]
    tensors = [F.pil_to_tensor(image) for image in bands]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _decode(path: str, channels: int) -> Tensor:
    """Decode JPEGs with torchvision, which is faster, and all other formats with Pillow.

    On corrupted files of other formats torchvision's decoders can crash the process.
    """
    with Path(path).open("rb") as file:
        if channels in JPEG_READ_MODES and file.read(2) == JPEG_START:
            file.seek(0)
            with suppress(RuntimeError):  # a color space that torchvision does not support
                return _decode_jpeg(bytearray(file.read()), JPEG_READ_MODES[channels])
        file.seek(0)
        with Image.open(file, formats=FORMATS) as original:
            return pil_to_tensor(original, channels)


def _decode_jpeg(content: bytearray, mode: ImageReadMode) -> Tensor:
    """Decode a JPEG, for RGB or GRAY. Raises RuntimeError if torchvision cannot.

    Its orientation is the one that `image_size` finds: torchvision and Pillow do not read the same
    in a damaged EXIF block.
    """
    image = decode_image(torch.frombuffer(content, dtype=torch.uint8), mode)
    if b"Exif\0\0" not in content:
        return image
    with Image.open(BytesIO(content), formats=FORMATS) as header:
        orientation = exif_orientation(header)
    if orientation in SWAPPED_ORIENTATIONS:
        image = image.transpose(-1, -2)
    flips = [dim for dim, orientations in FLIPS.items() if orientation in orientations]
    return image.flip(flips) if flips else image


class ImageStore:
    """Decoded images by index in `files`, each (channels, h, w) uint8.

    `sizes` (n, 2) are their widths and heights. The first images, up to `cache_bytes` in all, stay
    in memory once they are decoded, for this process and its DataLoader workers together. With
    `on_disk`, images are also saved as `FILE.npy` next to their files (a byte for each channel of a
    pixel), valid as long as the image file's modification time does not change.
    """

    def __init__(
        self,
        files: Sequence[str],
        sizes: np.ndarray,
        cache_bytes: int = 0,
        on_disk: bool = False,
        channels: int = 3,
    ) -> None:
        self.files, self.sizes = files, SharedArray(sizes)
        self.on_disk, self.channels = on_disk, channels
        self._allocate(cache_bytes)

    def _allocate(self, cache_bytes: int) -> None:
        # Every image has a place of its own, so that workers need not agree on one.
        ends = np.cumsum(self.sizes.array.astype(np.int64).prod(1) * self.channels)
        ends = ends[ends <= cache_bytes]
        self._bounds = SharedArray(np.concatenate(([0], ends)))
        self._pixels = shared_zeros(int(self._bounds.array[-1]))
        self._is_cached = shared_zeros(len(ends))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`, not to be written to. Raises UserError if it cannot be decoded."""
        place = self._place(index)
        if place is not None and self._is_cached[index]:
            return place
        file = self.files[index]
        image = self._load_npy(file) if self.on_disk else read_image(file, self.channels)
        # The shape differs if the file is another one now than when it was scanned.
        if place is not None and place.shape == image.shape:
            # Two workers that decode the same image write the same bytes. The mark comes last.
            place.copy_(image)
            self._is_cached[index] = 1
        return image

    def _place(self, index: int) -> Tensor | None:
        """Return where image `index` is cached, None if it is not to be."""
        if index >= len(self._is_cached):
            return None
        first, last = self._bounds.array[index : index + 2]
        width, height = self.sizes.array[index]
        return self._pixels[first:last].view(height, width, self.channels).permute(2, 0, 1)

    def preload(self, num_processes: int = 1) -> None:
        """Decode every image now, into memory that DataLoader workers share.

        Raises UserError if this machine does not have the memory for `num_processes` stores, or an
        image cannot be decoded.
        """
        cache_bytes = int(self.sizes.array.astype(np.int64).prod(1).sum()) * self.channels
        required, available = cache_bytes * num_processes, available_memory()
        if required > available:
            raise UserError(
                f"--cache ram: needs {required / 1e9:.1f} GB of memory, and "
                f"{available / 1e9:.1f} GB are available (use --cache disk)"
            )
        self._allocate(cache_bytes)
        _run_in_threads(self.__getitem__, range(len(self)), cpu_count())

    def fill_disk(self, indices: Sequence[int], num_processes: int = 1) -> None:
        """Decode the images at `indices` now and save them, unless their .npy files are up to date.

        `num_processes` of this machine do this at once. Raises UserError if an image cannot be
        decoded or saved.
        """
        _run_in_threads(self._write_npy, indices, max(1, cpu_count() // num_processes))

    def _write_npy(self, index: int) -> None:
        self._load_npy(self.files[index], require_write=True)

    def _load_npy(self, file: str, require_write: bool = False) -> Tensor:
        """Return an image from its .npy file, which is written first if missing or outdated."""
        path = Path(f"{file}.npy")
        try:
            mtime = os.stat(file).st_mtime_ns  # noqa: PTH116 - faster than Path
            if path.stat().st_mtime_ns == mtime:
                image = torch.from_numpy(np.load(path, allow_pickle=False)).permute(2, 0, 1)
                if len(image) == self.channels:  # not those of another data.yaml
                    return image
        except (OSError, ValueError, EOFError, RuntimeError, TypeError):
            pass  # missing or corrupted; if the image is, too, decoding it says what is wrong
        image = read_image(file, self.channels)
        try:
            with atomic_write(path, durable=False) as output:
                np.save(output, image.permute(1, 2, 0).contiguous().numpy())
            os.utime(path, ns=(mtime, mtime))
        except OSError as error:
            if require_write and error.errno in DISK_ERRORS:
                raise UserError(
                    f"--cache disk: {path}: cannot be written: {error.strerror} (the files are "
                    "made next to the images; --cache ram makes none)"
                ) from None
        return image


def _run_in_threads(fn: Callable[[int], object], indices: Sequence[int], num_threads: int) -> None:
    """Call `fn` with each of the `indices` of images, showing the progress."""
    results = map_in_threads(fn, indices, num_threads)
    for _ in Track(results, "decoding", len(indices), "image"):
        pass
