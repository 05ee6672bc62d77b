"""The images and videos of a `--source`, one after the other."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from data.images import checked_image, image_suffixes
from data.listing import Listing, has_suffix, list_images
from data.threads import map_ahead
from data.urls import fetch_image, is_url, without_password
from data.video import VIDEO_SUFFIXES, is_camera, read_video
from utils.cpus import cpu_count
from utils.errors import UserError
from utils.log import info, plural

READERS = 4  # threads that decode, at most; each has one image more than the program needs now


class Frame(NamedTuple):
    """An image, or a frame of a video."""

    source: str  # the image or video file, the URL without a password, or the camera index
    index: int | None  # in a video, from 0; None for an image
    image: Tensor | None  # (channels, h, w) uint8; None if it cannot be decoded
    fps: float = 0.0  # of a video
    error: str = ""  # why `image` is None


def iter_images(source: str, channels: int = 3) -> Iterator[Frame]:
    """Yield every image of a `--source`, and every frame of its videos, with `channels`.

    Threads decode the next image files meanwhile. What cannot be read is a frame with an error.
    Raises UserError if the source is not found, contains no images and videos, or is a single video
    that cannot be read.
    """
    if is_camera(source):
        yield from _iter_video(source, channels, is_only=True)
        return
    if is_url(source):
        yield from _iter_url(source, channels, is_only=True)
        return
    listing = _list_source(source, channels)
    for error in listing.errors:
        yield Frame(source, None, None, error=error)
    for sentence, count in listing.notes.items():
        info(f"{sentence}: {count}")
    files, num_threads = listing.files, min(READERS, cpu_count())
    images = map_ahead(lambda file: _read_image_file(file, channels), files, num_threads)
    with contextlib.closing(images):
        for file, image in zip(files, images, strict=True):
            if image is not None:
                yield image
            elif is_url(file):
                yield from _iter_url(file, channels, is_only=False)
            else:
                yield from _iter_video(file, channels, is_only=file == str(Path(source)))


def _read_image_file(file: str, channels: int) -> Frame | None:
    """Return the image in a file, None for a video or a URL, which are read when it is their turn.

    A camera or a stream has nothing yet that could be read ahead.
    """
    if is_url(file) or has_suffix(file, VIDEO_SUFFIXES):
        return None
    return _read_frame(file, channels)


def _list_source(source: str, channels: int) -> Listing:
    """Return the images and videos of `source`. Raises UserError if there are none."""
    image_types = image_suffixes(channels)
    suffixes = image_types | VIDEO_SUFFIXES
    listing = list_images(Path(source), suffixes=suffixes, is_url=is_url)
    if listing is None and Path(source).is_file():
        images, videos = (" ".join(sorted(s)) for s in (image_types, VIDEO_SUFFIXES))
        raise UserError(
            f"--source {source}: not a format that is read (images: {images}; videos: {videos}; "
            "lists: .txt)"
        )
    if listing is None:
        raise UserError(
            f"--source {source}: not found (need an image, directory, glob, .txt list, video file, "
            "camera index, or a URL that begins with http, https, rtsp or rtmp)"
        )
    if not listing.files:
        errors = listing.errors
        first = f" (first of {plural(len(errors), 'error')}: {errors[0]})" if errors else ""
        raise UserError(f"--source {source}: contains no images and no videos{first}")
    return listing


def _iter_video(file: str, channels: int, is_only: bool) -> Iterator[Frame]:
    """Yield the frames of a video, and an error if it stops before its end.

    Raises UserError if it `is_only` and none of its frames can be read.
    """
    index, name = None, without_password(file)
    try:
        if channels not in (1, 3):
            raise UserError(f"{name}: a video has 3 channels, the model needs {channels}")
        for index, (image, fps) in enumerate(read_video(file)):
            yield Frame(name, index, image if channels == 3 else rgb_to_grayscale(image), fps)
    except UserError as error:
        if is_only and index is None:
            raise UserError(f"--source {error}") from None
        yield Frame(name, None, None, error=str(error))


def _iter_url(url: str, channels: int, is_only: bool) -> Iterator[Frame]:
    """Yield the image or the frames at a URL, and an error for what cannot be read.

    Raises UserError if it `is_only` and nothing of it can be read.
    """
    name = without_password(url)
    try:
        content = fetch_image(url)
    except UserError as error:
        if is_only:
            raise UserError(f"--source {error}") from None
        yield Frame(name, None, None, error=str(error))
        return
    if content is None:
        yield from _iter_video(url, channels, is_only)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        frame = _read_frame(file.name, channels)
    yield frame._replace(source=name, error=frame.error.replace(file.name, name))


def _read_frame(file: str, channels: int) -> Frame:
    try:
        return Frame(file, None, checked_image(file, channels))
    except UserError as error:
        return Frame(file, None, None, error=f"{error}; skipped")
