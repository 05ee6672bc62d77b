"""Pictures out of their files, and their sizes out of the headers; decoded ones are kept in memory, or as arrays beside them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401 - two register formats
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from utils.atomic import atomic_write
from utils.errors import DISK_ERRORS, UserError
from utils.memory import available_memory

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # of all that Pillow knows: it would have PostScript interpreted
ENDS = {
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",
    "PNG": b"IEND",
}  # what stands at the end of a whole file
ORIENTATION, QUARTER_TURNS = (
    0x0112,
    (5, 6, 7, 8),
)  # EXIF: the tag, and its values that swap width and height


def image_size(file: str) -> tuple[int, int] | str:
    """Width and height as shown, read from the header, or a sentence about what is wrong with the file.

    A small file whose picture no memory holds is told by its header, without decoding it. Whether a JPEG or PNG is whole
    is told by the mark at its end; one without, to which a phone may have added a film, and other formats are decoded.
    """
    try:
        with Path(file).open("rb") as raw, Image.open(raw, formats=FORMATS) as image:
            width, height = image.size
            # Not by getexif: a PNG's EXIF may lie behind its pixels, which that would decode.
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            turned = exif.get(ORIENTATION) in QUARTER_TURNS
            raw.seek(max(0, os.fstat(raw.fileno()).st_size - 4096))
            if image.format not in ENDS or ENDS[image.format] not in raw.read():
                image.load()
    except UnidentifiedImageError:
        return f"{file}: is no picture that can be read; left out"
    except Image.DecompressionBombError:
        return f"{file}: is too large to decode; left out"
    except Exception as error:  # damaged bytes make a decoder fail in whatever way they happen to
        what = (
            getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        )
        return f"{file}: cannot be read: {what}; left out"
    return (height, width) if turned else (width, height)


def read_image(path: str) -> Tensor:
    """The picture as shown: (3, h, w) uint8 RGB, EXIF rotation applied, alpha dropped, the first frame of several.

    Raises UserError when it cannot be decoded.
    """
    try:
        return _decoded(path)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make a decoder fail in whatever way they happen to
        raise UserError(
            f"{path}: cannot be decoded: {str(error) or type(error).__name__}"
        ) from None


def _decoded(path: str) -> Tensor:
    """torchvision is quick at JPEGs. Of the other formats, which Pillow decodes, damaged bytes can end its process."""
    with Path(path).open("rb") as file:
        if file.read(2) == b"\xff\xd8":
            with suppress(RuntimeError):  # a colour space that torchvision does not decode
                return decode_image(path, ImageReadMode.RGB, apply_exif_orientation=True)
        file.seek(0)
        with Image.open(file, formats=FORMATS) as picture:
            image = ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return F.pil_to_tensor(image.convert("RGB"))


class ImageStore:
    """The decoded pictures `files`, each (3, h, w) uint8, by their place in it.

    The first to be asked for stay in memory, up to `memory` bytes in all loaders together. With `beside` each is also kept as
    `NAME.npy` beside its file, which is taken as long as the picture has the time it had, and costs the disk h * w * 3 bytes.
    """

    def __init__(self, files: Sequence[str], memory: int = 0, beside: bool = False) -> None:
        self.files, self.memory, self.beside = files, memory, beside
        self._kept: dict[int, Tensor] = {}
        self._held = 0  # bytes of them

    def __getitem__(self, index: int) -> Tensor:
        """Picture `index`. Raises UserError when it cannot be decoded."""
        if index in self._kept:
            return self._kept[index]
        file = str(self.files[index])
        image = self._from_beside(file) if self.beside else read_image(file)
        worker = (
            get_worker_info()
        )  # asked each time: a loader begins with what its trainer had kept
        if self._held + image.nbytes <= self.memory // (worker.num_workers if worker else 1):
            self._held += image.nbytes
            self._kept[index] = image
        return image

    def preload(self, sizes: np.ndarray, processes: int = 1) -> None:
        """Decode every picture now, so that loaders, which begin later, share them; `sizes` (n, 2) holds their width and height.

        With `beside` they go to the disk only. Raises UserError when this machine has no room for what each of its `processes`
        keeps, when one cannot be written, or cannot be decoded.
        """
        if not self.beside:
            self.memory = int(sizes.astype(np.int64).prod(1).sum()) * 3
            free = available_memory()
            if self.memory * processes > free:
                needed = f"takes {self.memory * processes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
                raise UserError(f"--cache ram: {needed}; --cache disk needs no memory")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            work = pool.map(
                self._to_beside if self.beside else self._to_memory, range(len(self.files))
            )
            for _ in tqdm(
                work, "decoding", len(self.files), unit="picture", leave=False, disable=None
            ):
                pass

    def _to_memory(self, index: int) -> None:
        self[index]

    def _to_beside(self, index: int) -> None:
        self._from_beside(str(self.files[index]), must_be_kept=True)

    def _from_beside(self, file: str, must_be_kept: bool = False) -> Tensor:
        path = Path(f"{file}.npy")
        try:
            time = os.stat(file).st_mtime_ns  # noqa: PTH116 - as quick as it gets
            if path.stat().st_mtime_ns == time:
                return torch.from_numpy(np.load(path, allow_pickle=False)).permute(2, 0, 1)
        except (OSError, ValueError, EOFError, RuntimeError, TypeError):
            pass  # it is not there, or is no array: the picture itself says what is wrong, if something is
        image = read_image(file)
        try:
            with atomic_write(path) as output:
                np.save(output, image.permute(1, 2, 0).contiguous().numpy())
            os.utime(path, ns=(time, time))
        except OSError as error:
            if must_be_kept and error.errno in DISK_ERRORS:
                raise UserError(
                    f"--cache disk: {path}: cannot be written: {error.strerror}"
                ) from None
        return image
