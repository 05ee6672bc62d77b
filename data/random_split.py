"""`val: 20%` in a data.yaml: which of the images of `train` are drawn for validation."""

import hashlib
import os
from collections.abc import Iterable

import numpy as np


def draw_images(files: Iterable[str], root: str, fraction: float, seed: int) -> np.ndarray:
    """Return which of the images (n,) bool are in the random `fraction` of them.

    An image's number is the hash of `seed` and its path below `root`, and the lowest are drawn: the
    same on every machine and in every process, and an image that is added later moves few of the
    others. An image that is named twice counts once.
    """
    prefix = os.path.join(root, "")  # noqa: PTH118 - with a slash at its end
    paths = (os.path.normpath(file).removeprefix(prefix) for file in files)
    keys = [path.replace(os.sep, "/") for path in paths]  # on Windows, too
    numbers = {key: _number(key, seed) for key in keys}
    ranked = sorted(numbers, key=numbers.__getitem__)
    val_keys = {*ranked[: round(fraction * len(ranked))]}
    return np.array([key in val_keys for key in keys], dtype=bool)


def _number(key: str, seed: int) -> bytes:
    text = f"{seed}\n{key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()
