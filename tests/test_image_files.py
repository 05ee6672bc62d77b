"""Image files as people have them: any color mode, damaged EXIF, damage inside, wrong suffixes."""

import importlib.util
import struct
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_tiny
from PIL import Image
from preloaded import run_python
from torchvision.io import ImageReadMode, decode_image

from data.config import read_data_config
from data.file_kinds import kind_of
from data.formats import read_split
from data.images import IMAGE_SUFFIXES, ImageSize, ImageStore, image_size, read_image
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
UNIT = RNG.random((20, 30)).astype(np.float32)


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> str:
    """Save with Pillow, color images of 16 bits and NumPy's other types with OpenCV."""
    if isinstance(pixels, Image.Image):
        pixels.save(path, **options)
    elif pixels.dtype != np.uint8 and pixels.ndim == 3:
        assert cv2.imwrite(str(path), pixels[..., ::-1])
    else:
        Image.fromarray(pixels).save(path, **options)
    return str(path)


def outcome(path: str) -> str | np.ndarray:
    """Return the pixels (h, w, 3), or the error if both the scan and the decoder give one."""
    size = image_size(path)
    try:
        image = read_image(path)
    except UserError as error:
        assert isinstance(size, str), f"not found at the start: {error}"
        assert size.startswith(f"{path}: ") and size.endswith("; skipped") and "\n" not in size
        return str(error)
    assert not isinstance(size, str), size
    assert image.shape == (3, size.height, size.width) and image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, 2)


RGB16 = np.stack([GRAY16, GRAY16[::-1], GRAY16[:, ::-1]], 2)
RGBA = np.dstack([RGB, GRAY16 % 256]).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("8.png", RGB, RGB),
        ("16.png", GRAY16, gray(GRAY16 // 256)),
        ("16.tif", GRAY16, gray(GRAY16 // 256)),
        ("16 big-endian.tif", GRAY16.astype(">u2"), gray(GRAY16 // 256)),
        ("color of 16.png", RGB16, RGB16 // 256),
        ("color of 16.tif", RGB16, RGB16 // 256),
        ("32.tif", GRAY16.astype(np.int32), gray(GRAY16 // 256)),
        ("float.tif", UNIT, gray(np.rint(UNIT * 255))),
        ("alpha.png", RGBA, RGB),
        ("alpha.tif", RGBA, RGB),
        ("gray and alpha.png", Image.fromarray(RGBA[..., 2:], "LA"), gray(RGBA[..., 2])),
        ("1 bit.png", Image.fromarray(UNIT > 0.5), gray((UNIT > 0.5) * 255)),
        ("1 bit.tif", Image.fromarray(UNIT > 0.5), gray((UNIT > 0.5) * 255)),
        ("CMYK.tif", Image.fromarray(RGB).convert("CMYK"), RGB),
    ],
)
def test_read_image_takes_8_bits_by_a_rule(name, pixels, expected, tmp_path):
    np.testing.assert_array_equal(outcome(save(tmp_path / name, pixels)), expected)


def test_read_image_takes_the_color_stored_for_a_transparent_pixel(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    path = save(tmp_path / "palette.png", palette, transparency=bytes(range(0, 256, 16)))
    np.testing.assert_array_equal(outcome(path), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("255.tif", UNIT * 255, "found floating-point pixels from 0."),
        ("height.tif", UNIT - 2, "found floating-point pixels from -"),
        ("nan.tif", UNIT * np.nan, "found floating-point pixels from nan to nan (allowed: 0 to 1)"),
        ("32.tif", GRAY16.astype(np.int32) - 70000, "found 32-bit pixels from -"),
        ("color of float.tif", np.dstack([UNIT] * 3), "found a TIFF with bands or values that"),
        ("lab.tif", Image.new("LAB", (9, 9)), "found the color mode LAB (need grayscale, RGB,"),
    ],
)
def test_values_without_a_rule_are_an_error_at_the_start(name, pixels, message, tmp_path):
    assert message in outcome(save(tmp_path / name, pixels))


def test_image_that_is_nearly_black_in_8_bits_is_noted(tmp_path):
    """12 bits of a microscope or a thermal camera in 16."""
    data = write_tiny(tmp_path / "tiny")
    folder = data.parent / "images" / "train"
    save(folder / "dark.png", GRAY16 // 16)
    save(folder / "dark.tif", (GRAY16 // 16).astype(np.int32))
    save(folder / "bright.png", GRAY16)
    result = read_split(read_data_config(data), "train")
    (note,) = (note for note in result.notes if "nearly black" in note)
    assert note.endswith(": 2") and not result.errors


def test_cmyk_jpeg_is_decoded_as_pillow_does(tmp_path):
    """Adobe's are stored inverted; its marker says whether they are YCCK."""
    image = Image.fromarray(np.kron(RGB[:4, :4], np.ones((16, 16, 1), np.uint8)))
    content = Path(save(tmp_path / "CMYK.jpg", image.convert("CMYK"), quality=95)).read_bytes()
    adobe = content.index(b"Adobe") - 4
    (length,) = struct.unpack(">H", content[adobe + 2 : adobe + 4])
    (tmp_path / "plain.jpg").write_bytes(content[:adobe] + content[adobe + 2 + length :])
    ycck = bytearray(content)
    ycck[adobe + 15] = 2
    (tmp_path / "YCCK.jpg").write_bytes(ycck)
    for path in tmp_path.iterdir():
        with Image.open(path) as opened:
            expected = np.asarray(opened.convert("RGB")).astype(int)
        assert abs(outcome(str(path)) - expected).max() <= 3, path
    assert abs(outcome(str(tmp_path / "CMYK.jpg")) - np.asarray(image).astype(int)).mean() < 3


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO", "AVIF"])
def test_first_of_several_images_is_taken(kind, tmp_path):
    first, second = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (30, 20), "blue")
    first.save(tmp_path / "a", kind, save_all=True, append_images=[second])
    assert (abs(outcome(str(tmp_path / "a")) - np.array([255, 0, 0])) <= 3).all()


def exif(orientation: object = 6, text: str = "a text") -> bytes:
    block = Image.Exif()
    block[0x0112], block[0x010E] = orientation, text
    return block.tobytes()


DAMAGED_EXIF = {
    "cut off": exif()[:20],
    "cut off in its header": exif()[:13],
    "text": b"Exif\0\0hello",
    "noise": b"Exif\0\0" + bytes(RNG.integers(0, 256, 200, dtype=np.uint8)),
    "orientation 0": exif(0),
    "orientation 9": exif(9),
    "orientation of two numbers": exif().replace(
        struct.pack(">HHI", 0x0112, 3, 1), struct.pack(">HHI", 0x0112, 3, 2)
    ),
    "orientation as text": exif().replace(
        struct.pack(">HHI", 0x0112, 3, 1), struct.pack(">HHI", 0x0112, 2, 1)
    ),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", DAMAGED_EXIF)
def test_damaged_exif_costs_no_image(name, kind, tmp_path):
    image = Image.new("RGB", (30, 20), "red")
    image.save(tmp_path / "a", kind, exif=DAMAGED_EXIF[name])
    assert sorted(outcome(str(tmp_path / "a")).shape) == [3, 20, 30]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_turned_as_torchvision_turns_it(orientation, tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB), exif=exif(orientation))
    expected = decode_image(path, ImageReadMode.RGB, apply_exif_orientation=True)
    result = read_image(path)
    assert torch.equal(result, expected) and result.stride() == expected.stride()


def test_random_exif_gives_the_same_size_to_the_scan_and_the_decoder(tmp_path):
    path, rng = tmp_path / "a.jpg", np.random.default_rng(1)
    content = Path(save(path, RGB, exif=exif())).read_bytes()
    start = content.index(b"Exif\0\0") + 6
    for _ in range(200):
        damaged = bytearray(content)
        for position in rng.integers(start, start + len(exif()) - 6, rng.integers(1, 5)):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        assert isinstance(outcome(str(path)), np.ndarray)


def test_orientation_in_xmp_alone_turns_nothing(tmp_path):
    """Browsers ignore it, and so must the scan and the decoder alike."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for kind in ("JPEG", "PNG", "WEBP"):
        block = Image.Exif()
        block[0x010E] = "no orientation"
        Image.fromarray(RGB).save(tmp_path / "a", kind, exif=block.tobytes(), xmp=xmp)
        assert outcome(str(tmp_path / "a")).shape == (20, 30, 3)


def test_damaged_pixels_of_a_png_are_found_at_the_start(tmp_path):
    path = tmp_path / "a.png"
    content = bytearray(Path(save(path, RGB)).read_bytes())
    content[len(content) // 2] ^= 1  # one bit, which the decoder does not always see
    path.write_bytes(content)
    assert "PNG pixels are damaged or cut off (wrong checksum); skipped" in image_size(str(path))


@pytest.mark.parametrize(
    "kind", ["JPEG", "progressive", "thumbnail", "PNG", "WEBP", "TIFF", "AVIF"]
)
def test_image_that_is_cut_off_is_found_at_the_start(kind, tmp_path):
    """Also a JPEG in whose header there is a whole smaller one, with an end marker."""
    output, options = BytesIO(), {}
    if kind == "progressive":
        options["progressive"] = True
    if kind == "thumbnail":
        Image.new("RGB", (16, 16)).save(output, "JPEG")
        options["exif"] = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + output.getvalue()
        output = BytesIO()
    Image.fromarray(RGB).save(
        output, "JPEG" if kind in ("progressive", "thumbnail") else kind, **options
    )
    content = output.getvalue()
    for length in range(0, len(content) - 16, len(content) // 25):
        (tmp_path / "a").write_bytes(content[:length])
        assert isinstance(outcome(str(tmp_path / "a")), str), f"{length} of {len(content)} bytes"


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".png", ".webp", ".avif", ".mpo"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_suffix_need_not_be_the_one_of_the_format(kind, suffix, tmp_path):
    Image.fromarray(RGB).save(tmp_path / f"a{suffix}", kind)
    assert suffix.lower() in IMAGE_SUFFIXES
    assert outcome(str(tmp_path / f"a{suffix}")).shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded: found an empty file"),
        (bytes(9000), "found a file of zeros (its content is lost)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer (run `git lfs"),
        (b"<!DOCTYPE html><html></html>", "found an HTML page"),
        (b"\0\0\0\x18ftypmp42" + bytes(50), "found a video"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "found a JPEG 2000 image"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "found a JPEG whose header is damaged or not supported"),
        (b"text", "not an image in a supported format"),
    ],
)
def test_file_that_is_no_image_is_named(content, message, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    assert message in outcome(str(tmp_path / "a.jpg"))


HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None


def test_heic_names_the_package_that_reads_it(tmp_path):
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50)
    assert kind_of(head) == "a HEIC image, which pillow-heif reads (pip install pillow-heif)"
    if not HAS_HEIF:
        (tmp_path / "a.jpg").write_bytes(head)
        assert "(pip install pillow-heif)" in outcome(str(tmp_path / "a.jpg"))


@pytest.mark.skipif(not HAS_HEIF, reason="needs pillow-heif")
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_heic_is_read(orientation, tmp_path):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48] = 255
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.heic", quality=95, exif=exif(orientation))
    image.save(tmp_path / "a.png", exif=exif(orientation))
    result, expected = (outcome(str(tmp_path / name)).astype(int) for name in ("a.heic", "a.png"))
    assert result.shape == expected.shape and abs(result - expected).mean() < 3


def test_scan_of_odd_images_writes_nothing_to_stderr(tmp_path):
    """Neither Pillow's warnings nor its log."""
    palette = Image.fromarray(RGB).quantize(16)
    save(tmp_path / "a.png", palette, transparency=bytes(range(0, 256, 16)))
    save(tmp_path / "b.jpg", RGB, exif=DAMAGED_EXIF["cut off"])
    save(tmp_path / "c.webp", RGB, exif=DAMAGED_EXIF["noise"])
    (tmp_path / "d.tif").write_bytes(
        b"II*\0\x08\0\0\0\x01\0\x15\x01\x03\0\x01\0\0\0\x0d\0\0\0\0\0\0\0"
    )
    code = (
        "import sys; from data.images import image_size, read_image\n"
        "for file in sys.argv[1:]: isinstance(image_size(file), str) or read_image(file)"
    )
    files = map(str, sorted(tmp_path.iterdir()))
    done = run_python(["-c", code, *files], cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_stores_of_images_give_the_same_pixels(tmp_path):
    """In memory, on disk and neither, for images of every kind."""
    files = [
        save(tmp_path / "a.png", GRAY16),
        save(tmp_path / "b.tif", UNIT),
        save(tmp_path / "c.jpg", RGB, exif=exif(6)),
        save(tmp_path / "d.avif", RGB),
        save(tmp_path / "e.jpg", Image.fromarray(RGB).convert("CMYK")),
    ]
    sizes = np.array([size[:2] for size in map(image_size, files)])
    expected = [read_image(file) for file in files]
    stores = [ImageStore(files, sizes) for _ in range(3)]
    stores[1].preload()
    stores[2] = ImageStore(files, sizes, on_disk=True)
    stores[2].fill_disk(range(len(files)))
    for store in stores:
        assert all(torch.equal(store[i], image) for i, image in enumerate(expected))


def test_image_size_is_the_one_shown(tmp_path):
    path = save(tmp_path / "a.jpg", RGB, exif=exif(6))
    assert image_size(path) == ImageSize(20, 30, 6)
