"""What a source lists: folders as people have them, globs, and lists in every encoding."""

import codecs
import os
from pathlib import Path

import pytest
from PIL import Image

from data.listing import list_images


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(path, "PNG")


def names_of(path: Path, **options) -> list[str]:
    """The images that `path` lists, relative to its folder; no error is allowed."""
    listing = list_images(path, **options)
    assert not listing.errors
    return [os.path.relpath(file, path.parent) for file in listing.files]


def test_hidden_and_system_folders_are_left_out_and_counted(tmp_path):
    kept = ["images/a.png", "images/sub.d/b [1].PNG", "images/sub.d/é ü.png"]
    hidden = [
        *("images/.ipynb_checkpoints/a-checkpoint.png", "images/.Trash-1000/files/c.png"),
        *("images/@eaDir/a.png/SYNOPHOTO.png", "images/__MACOSX/d.png", "images/._a.png"),
        "images/$RECYCLE.BIN/e.png",
    ]
    write_images(tmp_path, *kept, *hidden)
    (tmp_path / "images" / "Thumbs.db").write_text("no image")
    assert names_of(tmp_path / "images") == kept
    (note,) = list_images(tmp_path / "images").notes.items()
    assert "hidden" in note[0] and note[1] == 6
    write_images(tmp_path / ".hidden", "x.png")  # a source may be named so
    assert len(list_images(tmp_path / ".hidden").files) == 1


def test_links_to_folders_are_followed_once(tmp_path):
    write_images(tmp_path, "far/a.png", "images/own/b.png")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "images" / "again").symlink_to(tmp_path / "images" / "own")
    (tmp_path / "images" / "own" / "loop").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "self").symlink_to(tmp_path / "images" / "self")
    (tmp_path / "images" / "gone").symlink_to(tmp_path / "nowhere")
    listing = list_images(tmp_path / "images")
    found = [os.path.relpath(file, tmp_path) for file in listing.files]
    assert found == ["images/linked/a.png", "images/own/b.png"]
    assert [error.split(": ")[0][-4:] for error in listing.errors] == ["gone", "self"]


def test_formats_that_are_not_read_are_named(tmp_path):
    write_images(tmp_path, "a.png")
    (tmp_path / "scan.PSD").write_text("an image of another program")
    (error,) = list_images(tmp_path).errors
    assert error == f"{tmp_path / 'scan.PSD'}: .psd is not a supported image format; skipped"


def test_brackets_of_what_exists_are_no_pattern(tmp_path):
    root = tmp_path / "data [v2]"
    write_images(root, "train[1]/a.png", "train[1]/b.png", "train1/c.png", "train2/d.jpg")
    assert names_of(root / "train[1]") == ["train[1]/a.png", "train[1]/b.png"]
    assert len(list_images(root / "train[1]" / "*.png").files) == 2
    assert len(list_images(root / "train[12]" / "*").files) == 2  # of train1 and train2
    assert len(list_images(root / "train?").files) == 2  # folders that match
    assert len(list_images(root / "**" / "*.png").files) == 3
    assert list_images(root / "none*").files == []


def test_name_that_is_not_utf8_is_listed_and_read(tmp_path):
    from data.images import image_size, read_image

    write_images(tmp_path, "images/a.png")
    name = b"\xb1\xea.jpg"  # GBK
    path = os.fsencode(tmp_path / "images") + b"/" + name
    try:
        Image.new("RGB", (8, 6)).save(os.fsdecode(path))
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    (tmp_path / "list.txt").write_bytes(b"images/" + name + b"\n")
    for source in ("images", "list.txt"):
        file = list_images(tmp_path / source).files[-1]
        assert os.fsencode(file) == path
        assert image_size(file)[:2] == (8, 6) and read_image(file).shape == (3, 6, 8)


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("utf-16-le"),
        lambda text: f"\n  \n{text}\n\n".encode(),
        lambda text: f"# all\n{text}".encode(),
        lambda text: "".join(f'"{line}" \n' for line in text.splitlines()).encode(),
        lambda text: text.replace("/", "\\").encode(),
        lambda text: text.replace("images", "./images").encode(),
        lambda text: text.replace("images", "data/images").encode(),  # CVAT
    ],
)
def test_list_is_read_however_it_was_written(encode, tmp_path):
    files = ["images/a.png", "images/ü b.png", "images/#c.png"]
    write_images(tmp_path, *files)
    (tmp_path / "list.txt").write_bytes(encode("\n".join(files)))
    assert names_of(tmp_path / "list.txt") == files


def test_list_is_relative_to_itself_the_root_or_its_parent(tmp_path):
    write_images(tmp_path, "set/images/a.png", "set/lists/a.png")
    (tmp_path / "set/lists/list.TXT").write_text("images/a.png\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/list.txt").write_text("images/a.png\n")
    assert list_images(tmp_path / "set/lists/list.TXT").files == [f"{tmp_path}/set/images/a.png"]
    listing = list_images(tmp_path / "other/list.txt", tmp_path / "set")
    assert listing.files == [f"{tmp_path}/set/images/a.png"]
    (tmp_path / "other/list.txt").write_text(f"{tmp_path}/set/lists/a.png\n")
    assert list_images(tmp_path / "other/list.txt").files == [f"{tmp_path}/set/lists/a.png"]


def test_every_line_that_names_no_image_is_reported(tmp_path):
    write_images(tmp_path, "a.png", "sub/b.png")
    path = tmp_path / "list.txt"
    path.write_text("a.png\nnone.png\nsub\nC:\\me\\x.jpg\na.png\n")
    listing = list_images(path)
    assert listing.files == [f"{tmp_path}/a.png"] * 2  # oversampled
    missing, directory, windows = listing.errors
    assert missing.startswith(f"{path}: line 2: 'none.png' not found (looked in {tmp_path}, ")
    assert directory == f"{path}: line 3: 'sub' is a directory, need an image; skipped"
    assert windows.startswith(f"{path}: line 4: 'C:\\\\me\\\\x.jpg' not found")
    path.write_bytes(b"\xff\xfe\x00")
    assert list_images(path).files == [] and "cannot be read" in list_images(path).errors[0]


def test_list_images_of_something_else_is_none(tmp_path):
    write_images(tmp_path, "0.png")
    assert list_images(tmp_path / "0.png").files == [f"{tmp_path}/0.png"]
    (tmp_path / "notes.md").write_text("text")
    for name in ("notes.md", "none", "a\0b", "a\0*"):
        assert list_images(tmp_path / name) is None
