"""Pascal VOC as people and tools write it: what an xml says about its image need not be right."""

import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data.config import read_data_config
from data.formats import read_split
from utils.errors import UserError

BOX = (11, 21, 30, 40)  # the pixels 10..30 and 20..40
SIZE = "<size><width>100</width><height>50</height></size>"


def bndbox(*corners: object) -> str:
    keys = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    return f"<bndbox>{''.join(f'<{key}>{value}</{key}>' for key, value in keys)}</bndbox>"


def voc_object(body: str = bndbox(*BOX), name: str = "cat") -> str:
    return f"<object><name>{name}</name>{body}</object>"


def xml(filename: str = "", size: str = SIZE, objects: str = voc_object()) -> str:
    name = f"<filename>{filename}</filename>" if filename else ""
    return f"<annotation>{name}{size}{objects}</annotation>"


def write(folder: Path, files: dict[str, str | bytes | tuple[int, int]], **source: str) -> Path:
    """Write xml and other files by name, images of the given sizes, and a data.yaml."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.new("RGB", content).save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = {"annotations": "xml", "images": "images"} | source
    content = {"train": source, "val": source, "names": ["cat", "犬"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def read(folder: Path, files: dict, **source: str):
    return read_split(read_data_config(write(folder, files, **source)), "train")


def pixels(data) -> list[list[float]]:
    """Return every box in pixels of its image."""
    sizes = np.repeat(data.sizes, np.diff(data.offsets), axis=0)
    return (data.boxes * np.tile(sizes, 2)).round(3).tolist()


def names(data) -> list[str]:
    return [Path(file).name for file in data.files]


def notes(data) -> list[str]:
    return [note.partition(": ")[2] for note in data.notes]


@pytest.mark.parametrize(
    ("filename", "note"),
    [
        ("a.jpg", None),
        ("", None),
        ("a", None),
        ("a.png", None),
        ("a.ppm", None),
        ("A.JPG", "xml files whose `filename` is another image"),
        ("D:\\photos\\a.jpg", None),
        ("/home/me/a.jpg", None),
        (
            "b.jpg",
            "xml files whose `filename` is another image, taken with the image",
        ),
        ("gone.jpg", "xml files whose `filename` is another image"),
    ],
)
def test_voc_xml_belongs_to_the_image_of_its_name(filename, note, tmp_path):
    files = {"images/a.jpg": (100, 50), "images/b.jpg": (100, 50), "xml/a.xml": xml(filename)}
    data = read(tmp_path, files | {"xml/b.xml": xml()})
    assert names(data) == ["a.jpg", "b.jpg"] and not data.errors
    assert [n for n in notes(data) if note is None or n.startswith(note)] == notes(data)
    assert len(notes(data)) == (note is not None)


def test_voc_xml_files_that_name_one_image_get_their_own(tmp_path):
    files = {f"images/{i}.png": (100, 50) for i in range(3)}
    files |= {
        f"xml/{i}.xml": xml("0.png", objects=voc_object(bndbox(1 + i, 1, 50, 50))) for i in range(3)
    }
    data = read(tmp_path, files)
    assert names(data) == ["0.png", "1.png", "2.png"] and not data.errors
    assert [box[0] for box in pixels(data)] == [0, 1, 2]
    assert len(data.notes) == 1 and data.notes[0].endswith("their name: 2")


def test_voc_image_of_the_filename_is_taken_where_no_image_has_the_name(tmp_path):
    files = {"images/photo 1.jpg": (100, 50), "xml/000001.xml": xml("photo 1.jpg")}
    data = read(tmp_path, files)
    assert names(data) == ["photo 1.jpg"] and not data.errors
    assert notes(data) == [
        "xml files whose name no image has, taken with the image of their `filename`: 1"
    ]


@pytest.mark.parametrize("copy", ["0 copy", "9 copy"])  # before and behind the image's own xml
def test_voc_image_has_one_xml(copy, tmp_path):
    files = {"images/1.jpg": (100, 50), "xml/1.xml": xml("1.jpg")}
    data = read(tmp_path, files | {f"xml/{copy}.xml": xml("1.jpg")})
    (error,) = data.errors
    assert error == (
        f"{tmp_path}/xml/{copy}.xml: no image has its name, and its `filename`, '1.jpg', is the "
        f"image of {tmp_path}/xml/1.xml; image skipped"
    )
    files = {"images/1.jpg": (100, 50), "xml/a.xml": xml("1.jpg"), "xml/b.xml": xml("1.jpg")}
    (error,) = read(tmp_path / "other", files).errors
    assert "b.xml: its image " in error and "a.xml, too; image skipped" in error


def test_voc_images_and_xml_without_each_other_are_reported(tmp_path):
    files = {f"images/{name}.jpg": (100, 50) for name in "abc"}
    data = read(tmp_path, files | {"xml/a.xml": xml(), "xml/z.xml": xml("gone.jpg")})
    assert names(data) == ["a.jpg"]
    assert data.errors == (
        f"{tmp_path}/xml/z.xml: its image is not found (looked in {tmp_path}/images for 'z' with "
        "the suffix of an image, and for its `filename`, 'gone.jpg'); image skipped",
    )
    assert notes(data) == [
        f"images in {tmp_path}/images without an xml file in {tmp_path}/xml, ignored: 2"
    ]


def test_voc_two_images_of_one_name_are_told_apart_by_the_filename(tmp_path):
    images = {"images/a.jpg": (100, 50), "images/a.png": (100, 50)}
    assert names(read(tmp_path, images | {"xml/a.xml": xml("a.png")})) == ["a.png"]
    with pytest.raises(UserError, match="its image is not found"):
        read(tmp_path / "other", images | {"xml/a.xml": xml()})


def test_voc_folders_suffixes_and_hidden_files(tmp_path):
    files = {
        "images/a/1.jpg": (100, 50),
        "images/b/1.jpg": (100, 50),
        "images/2.JPG": (100, 50),
        "xml/a/1.xml": xml("1.jpg"),
        "xml/b/1.XML": xml("1.jpg"),
        "xml/2.Xml": xml("2.jpg"),
        "xml/._2.xml": b"\0\5\x16\7",
        "xml/.trash/3.xml": xml(),
    }
    data = read(tmp_path, files)
    assert [str(Path(f).relative_to(tmp_path / "images")) for f in data.files] == [
        "2.JPG",
        "a/1.jpg",
        "b/1.jpg",
    ]
    assert not data.errors and not data.notes


@pytest.mark.parametrize(
    ("size", "note"),
    [
        (SIZE, ""),
        ("<size><width> 100\n</width><height>50.0</height></size>", ""),
        ("", "xml files without an image size, taken from the image files: 1"),
        ("<size/>", "xml files without an image size, taken from the image files: 1"),
        (SIZE.replace("100", "0"), "xml files without an image size"),
        (SIZE.replace("100", ""), "xml files without an image size"),
        (SIZE.replace("100", "inf"), "xml files without an image size"),
        (SIZE.replace("100", "20"), "xml files with an image size that their boxes exceed"),
    ],
)
def test_voc_size_is_the_one_of_the_image_file_where_it_must_be(size, note, tmp_path):
    data = read(tmp_path, {"images/a.jpg": (100, 50), "xml/a.xml": xml("a.jpg", size)})
    assert pixels(data) == [[10, 20, 30, 40]] and not data.errors
    assert len(data.notes) == bool(note) and "".join(notes(data)).startswith(note)


def test_voc_size_that_may_be_right_for_another_copy_is_an_error(tmp_path):
    """The boxes lie in both, so which of the sizes they belong to cannot be known."""
    size = SIZE.replace("100", "200").replace("50", "100")
    files = {"images/a.jpg": (100, 50), "xml/a.xml": xml("a.jpg", size)}
    data = read(tmp_path, files | {"images/b.jpg": (100, 50), "xml/b.xml": xml()})
    (error,) = data.errors
    assert "found 100x50 pixels, but" in error and "expects 200x100; image skipped" in error


def test_voc_without_size_in_the_frame_that_is_stored(tmp_path):
    """An image that EXIF turns, with a box that only the stored frame holds."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 50)).save(tmp_path / "images" / "a.jpg", exif=exif)
    data = read(tmp_path, {"xml/a.xml": xml(size="", objects=voc_object(bndbox(61, 1, 100, 50)))})
    assert data.sizes.tolist() == [[50, 100]] and pixels(data) == [[0, 60, 50, 100]]


@pytest.mark.parametrize(
    ("body", "expected", "note"),
    [
        (bndbox("11.0", " 21\n", "30", "40"), (10, 20, 30, 40), ""),
        (bndbox(1, 1, 100, 50), (0, 0, 100, 50), ""),
        (bndbox(0, 0, 100, 50), (0, 0, 100, 50), "boxes that begin at pixel 0, which VOC calls 1"),
        (bndbox(51, 1, 140, 60), (50, 0, 100, 50), "boxes that reach beyond their image, cut at"),
        (bndbox(-9, 1, 20, 20), (0, 0, 20, 20), "boxes that reach beyond their image, cut at"),
        (
            f"<part><name>head</name>{bndbox(1, 1, 5, 5)}</part>{bndbox(*BOX)}",
            (10, 20, 30, 40),
            "",
        ),
        (
            "<polygon><pt><x>30</x><y>20</y></pt><pt><x>10</x><y>25</y></pt><pt><x>12</x>"
            "<y>\n40\n</y></pt></polygon>",
            (10, 20, 30, 40),
            "objects with a polygon instead of a bndbox, whose box is taken: 1",
        ),
        (
            "<polygon><x1>30</x1><y1>20</y1><x2>10</x2><y2>40</y2></polygon>",
            (10, 20, 30, 40),
            "objects with a polygon",
        ),
        (
            "<polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>4</y2></polygon>" + bndbox(*BOX),
            (10, 20, 30, 40),
            "",
        ),
        (  # 20 x 10 pixels, turned by a right angle
            "<robndbox><cx>20</cx><cy>30</cy><w>20</w><h>10</h><angle>1.5707963268</angle>"
            "</robndbox>",
            (15, 20, 25, 40),
            "objects with a robndbox",
        ),
        (  # a square on its corner
            "<robndbox><cx>20</cx><cy>20</cy><w>10</w><h>10</h><angle>0.7853981634</angle>"
            "</robndbox>",
            (20 - 50**0.5, 20 - 50**0.5, 20 + 50**0.5, 20 + 50**0.5),
            "objects with a robndbox",
        ),
        (
            "<segm><box><xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>40</ymax></box>"
            "<mask>a.png</mask></segm>",
            (10, 20, 30, 40),
            "objects with a segm",
        ),
    ],
)
def test_voc_boxes(body, expected, note, tmp_path):
    data = read(
        tmp_path, {"images/a.jpg": (100, 50), "xml/a.xml": xml("a.jpg", SIZE, voc_object(body))}
    )
    np.testing.assert_allclose(pixels(data), [expected], atol=2e-3)
    assert not data.errors and "".join(notes(data)).startswith(note)
    assert len(data.notes) == bool(note)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (f"<object>{bndbox(*BOX)}</object>", "object 1: has no name; box skipped"),
        (voc_object(name=" "), "object 1: has no name"),
        (voc_object(""), "object 1: has no bndbox"),
        (voc_object("<polygon/>"), "found the polygon '' (need numbers)"),
        (voc_object(bndbox(1, 2, 3, "x")), "found the bndbox '1 2 3 x' (need four numbers)"),
        (voc_object(bndbox(1, 2, "1,5", 9)), "found the bndbox '1 2 1,5 9' (need four numbers)"),
        (
            voc_object(bndbox(30, 2, 10, 9)),
            "'30 2 10 9', which covers nothing of the 100x50",
        ),
        (
            voc_object(bndbox(200, 2, 300, 9)),
            "'200 2 300 9', which covers nothing of the 100",
        ),
        (voc_object(bndbox(*BOX) * 2), "found 2 elements bndbox (need one)"),
        (voc_object(name="Cat"), "found the class 'Cat' (known: ['cat', '犬']; use `remap`"),
    ],
)
def test_voc_object_that_is_invalid_is_an_error(objects, message, tmp_path):
    content = xml("a.jpg", SIZE, voc_object() + objects)
    data = read(tmp_path, {"images/a.jpg": (100, 50), "xml/a.xml": content})
    (error,) = data.errors
    assert error.startswith(f"{tmp_path}/xml/a.xml: object 1: ") and message in error
    assert error.endswith("; box skipped") and "\n" not in error
    assert pixels(data) == [[10, 20, 30, 40]]


@pytest.mark.parametrize(
    ("value", "is_crowd"),
    [
        ("1", True),
        (" 1\n", True),
        ("true", True),
        ("0", False),
        ("Unspecified", False),
        ("", False),
    ],
)
def test_voc_difficult_is_a_crowd(value, is_crowd, tmp_path):
    tags = f"<truncated>1</truncated><difficult>{value}</difficult>"
    objects = voc_object() + voc_object(tags + bndbox(1, 1, 9, 9))
    data = read(tmp_path, {"images/a.jpg": (100, 50), "xml/a.xml": xml("a.jpg", SIZE, objects)})
    assert data.crowd.tolist() == [False, is_crowd] and not data.errors
    assert (
        notes(data)
        == ["objects with `difficult`, taken as crowds: not trained on, no error in evaluation: 1"]
        * is_crowd
    )


def test_voc_deleted_object_of_labelme_is_left_out(tmp_path):
    objects = voc_object() + voc_object("<deleted>1</deleted>" + bndbox(1, 1, 9, 9))
    data = read(tmp_path, {"images/a.jpg": (100, 50), "xml/a.xml": xml("a.jpg", SIZE, objects)})
    assert len(data.boxes) == 1 and notes(data) == ["objects with `deleted`, ignored: 1"]


def declared(encoding: str) -> str:
    return f'<?xml version="1.0" encoding="{encoding}"?>\n' + xml(
        "a.jpg", SIZE, voc_object(name="犬")
    )


@pytest.mark.parametrize(
    "content",
    [
        declared("utf-8").encode(),
        b"\xef\xbb\xbf" + declared("utf-8").encode(),
        declared("utf-8").replace("\n", "\r\n").encode(),
        declared("utf-16").encode("utf-16"),
        declared("gbk").encode("gbk"),
        declared("GB2312").encode("gb18030"),
        declared("big5").encode("big5"),
        declared("shift_jis").encode("shift_jis"),
        b"\n  " + declared("utf-8").encode(),
        # A path in another encoding than the rest.
        declared("utf-8").encode().replace(b"<size>", b"<path>D:\\\xcd\xbc\xc6\xac</path><size>"),
        declared("utf-8").replace("<annotation>", '<annotation xmlns="http://x.org/voc">').encode(),
    ],
)
def test_voc_encodings(content, tmp_path):
    data = read(tmp_path, {"images/a.jpg": (100, 50), "xml/a.xml": content})
    assert pixels(data) == [[10, 20, 30, 40]] and data.labels.tolist() == [1]
    assert not data.errors and not data.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a VOC xml: no element found"),
        ("<annotation><size>", "not a VOC xml: no element found"),
        ("no xml", "not a VOC xml: syntax error"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding 'klingon'"),
        ("<annotations><image/></annotations>", "CVAT's own format (export it as Pascal VOC, COCO"),
        ("<note/>", "not a VOC xml: found the root <note> (need <annotation>)"),
    ],
)
def test_voc_file_that_is_no_voc_is_an_error(content, message, tmp_path):
    files = {"images/a.jpg": (100, 50), "xml/a.xml": xml(), "xml/b.xml": content}
    (error,) = read(tmp_path, files | {"images/b.jpg": (100, 50)}).errors
    assert error.startswith(f"{tmp_path}/xml/b.xml: ") and message in error
    assert error.endswith("; image skipped")


def test_voc_entities_that_would_fill_the_memory_are_an_error_at_once(tmp_path):
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(30))
    long = f'<!ENTITY a "{"a" * 100_000}">'
    bombs = {
        "laughs": f"<!DOCTYPE x [{laughs}]><annotation>&l29;</annotation>",
        "long": f"<!DOCTYPE x [{long}]><annotation>{'&a;' * 100_000}</annotation>",
        "file": '<!DOCTYPE x [<!ENTITY a SYSTEM "/etc/passwd">]><annotation>&a;</annotation>',
        "deep": "<annotation>" + "<a>" * 200_000,
    }
    files = {f"xml/{name}.xml": bomb for name, bomb in bombs.items()}
    start = time.monotonic()
    data = read(tmp_path, files | {"images/a.jpg": (100, 50), "xml/a.xml": xml()})
    assert time.monotonic() - start < 5
    assert len(data.errors) == len(bombs) and len(data) == 1


@pytest.mark.parametrize(
    "content",
    [
        "b\na\n",
        "\ufeffb\r\na\r\n\r\n",
        "b.jpg\na.xml",
        "./b\nJPEGImages\\a.jpg",
        "/home/me/b.png\n  a  \n",
        "b  1\na 0\n",
    ],
)
def test_voc_image_set_spellings(content, tmp_path):
    files = {f"images/{name}.jpg": (100, 50) for name in ("a", "b", "c")}
    files |= {f"xml/{name}.xml": xml() for name in ("a", "b", "c")}
    data = read(tmp_path, files | {"set.txt": content}, image_set="set.txt")
    assert names(data) == ["b.jpg", "a.jpg"] and not data.errors and not data.notes
    content = content.lstrip("\ufeff").encode("utf-16")
    data = read(tmp_path, files | {"set.txt": content}, image_set="set.txt")
    assert names(data) == ["b.jpg", "a.jpg"] and not data.errors


def test_voc_image_set_with_spaces_a_class_column_and_missing_xml(tmp_path):
    files = {"images/a 1.jpg": (100, 50), "xml/a 1.xml": xml(), "images/b.jpg": (100, 50)}
    files |= {"xml/b.xml": xml(), "images/d.jpg": (100, 50)}
    files["set.txt"] = 'a 1\na 1 1\nb -1\nd\n"a 1"  1\nz\n'
    data = read(tmp_path, files, image_set="set.txt")
    assert names(data) == ["a 1.jpg", "a 1.jpg", "b.jpg", "d.jpg", "a 1.jpg"]
    assert data.errors == (
        f"{tmp_path}/set.txt: line 6: neither an xml file nor an image for 'z'; image skipped",
    )
    assert np.diff(data.offsets).tolist() == [1, 1, 1, 0, 1]
    note = "listed images without an xml file, taken as images without objects: 1"
    assert note in notes(data)
    note = "lines with -1, a class that is not in the image, which is used all the same: 1"
    assert note in notes(data)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"annotations": "nowhere"}, "nowhere: not found (need a directory of VOC xml files, or"),
        ({"annotations": "xml/a.xml"}, "xml/a.xml: a file (need a directory of VOC xml files"),
        ({"annotations": "images"}, "images: no .xml file in this directory"),
        ({"image_set": "nowhere.txt"}, "nowhere.txt: cannot be read: No such file or directory"),
        ({"image_set": "empty.txt"}, "empty.txt: an empty list (need an image name per line)"),
        ({"image_set": "binary.txt"}, "binary.txt: line 1: not valid UTF-8 (save it as UTF-8)"),
        ({"images": "nowhere"}, "its image is not found (looked in "),
    ],
)
def test_voc_source_that_yields_nothing_is_one_sentence(source, message, tmp_path):
    files = {"images/a.jpg": (100, 50), "xml/a.xml": xml()}
    files |= {"empty.txt": "\n", "binary.txt": b"\xff"}
    with pytest.raises(UserError) as error:
        read(tmp_path, files, **source)
    assert message in str(error.value) and "\n" not in str(error.value)
