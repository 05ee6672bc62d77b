"""The data.yaml as tools and people write it: names, paths, links, folders, encodings."""

import codecs
import os
from pathlib import Path

import pytest
from PIL import Image

from data.config import read_data_config
from data.formats import read_split
from data.locate import find_data_yaml
from utils.errors import UserError

YAML = "train: images/train\nval: images/val\nnames: [a, b]\n"


def write_set(root: Path, *images: str) -> Path:
    """Write images, each with a label file, and return the path of the data.yaml, not written."""
    for name in images or ("images/train/a.png", "images/val/b.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 64)).save(path)
        label = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.25 0.25\n")
    return root / "data.yaml"


def files_of(path: Path, split: str = "train") -> list[str]:
    """The images of a split, relative to the folder of the data.yaml."""
    data = read_split(read_data_config(path), split)
    return [os.path.relpath(file, path.parent.resolve()) for file in data.files]


def names_of(folder: Path, text: str) -> list[str]:
    path = folder / "data.yaml"
    path.write_text(f"train: images\nval: images\n{text}\n")
    return read_data_config(path).names


def test_roboflow_export_as_it_is(tmp_path):
    path = write_set(tmp_path / "set", "train/images/a.png", "valid/images/b.png")
    path.write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
        "names: ['cat', 'dog']\n\nroboflow:\n  workspace: w\n  version: 1\n"
    )
    assert files_of(path) == ["train/images/a.png"]
    assert files_of(path, "val") == ["valid/images/b.png"]
    notes = read_data_config(path).notes
    assert notes[0] == "../train/images does not exist; using train/images beside the data.yaml"
    assert len(notes) == 2
    # Where both exist, the path as written counts, with a note.
    write_set(tmp_path, "train/images/other.png")
    assert files_of(path) == ["../train/images/other.png"]
    assert "as it stands, although train/images is beside" in read_data_config(path).notes[0]


@pytest.mark.parametrize(
    "where",
    [
        r"images\train",
        "'images/train '",
        "./images/train/",
        "images/train/*.png",
        "'images/*'",
        "[images/train]",
        "ABSOLUTE",
        "HOME",
    ],
)
def test_paths_are_read_as_people_write_them(where, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_set(tmp_path / "set", "images/train/a.png")
    where = where.replace("ABSOLUTE", str(tmp_path / "set/images/train"))
    where = where.replace("HOME", "~/set/images/train")
    path.write_text(f"train: {where}\nval: {where}\nnames: [a]\n")
    assert files_of(path) == ["images/train/a.png"] and read_data_config(path).notes == []


@pytest.mark.parametrize("where", ["../datasets/set", "/content/datasets/set", "set", r"D:\set"])
def test_path_of_another_place_falls_back_to_the_folder_of_the_file(where, tmp_path):
    path = write_set(tmp_path / "datasets" / "set")
    path.write_text(f"path: {where}\n{YAML}")
    assert files_of(path) == ["images/train/a.png"]
    (note,) = read_data_config(path).notes
    assert note == f"path: {where} does not exist; using {tmp_path / 'datasets' / 'set'}"
    assert read_split(read_data_config(path), "val").notes == (note,)


def test_path_that_exists_is_taken_without_a_word(tmp_path):
    write_set(tmp_path / "datasets" / "set")
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "data.yaml"
    path.write_text(f"path: ../datasets/set\n{YAML}")
    assert files_of(path) == ["../datasets/set/images/train/a.png"]
    assert read_data_config(path).notes == []


def test_link_counts_where_it_is_or_else_where_it_leads(tmp_path):
    write_set(tmp_path / "set")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/data.yaml").write_text(YAML)
    (tmp_path / "set/data.yaml").symlink_to(tmp_path / "shared/data.yaml")
    assert files_of(tmp_path / "set/data.yaml") == ["images/train/a.png"]
    (tmp_path / "set/data.yaml").rename(tmp_path / "link.yaml")
    (tmp_path / "shared/data.yaml").rename(tmp_path / "set/data.yaml")
    (tmp_path / "link.yaml").unlink()
    (tmp_path / "link.yaml").symlink_to(tmp_path / "set/data.yaml")
    assert files_of(tmp_path / "link.yaml") == ["set/images/train/a.png"]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.replace("\n", "\r\n").encode(),
    ],
)
def test_data_yaml_is_read_in_every_encoding(encode, tmp_path):
    path = write_set(tmp_path)
    path.write_bytes(encode(YAML.replace("[a, b]", "[größe, 猫]")))
    assert files_of(path) == ["images/train/a.png"]
    assert read_data_config(path).names == ["größe", "猫"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [cat, dog]", ["cat", "dog"]),
        ("names: {0: cat, 1: dog}", ["cat", "dog"]),
        ("names: {'1': dog, '0': cat}", ["cat", "dog"]),
        ("names: [0, 1, 12]", ["0", "1", "12"]),  # digits
        ("nc: 2\nnames: ['yes', 'no']", ["yes", "no"]),
        ("names: classes.txt", ["größe", "hot dog"]),
    ],
)
def test_names_are_read(text, names, tmp_path):
    (tmp_path / "classes.txt").write_bytes(codecs.BOM_UTF8 + "größe\r\nhot dog \r\n\r\n".encode())
    assert names_of(tmp_path, text) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [yes, no, 1]", "names: found True, which is not a string (YAML reads yes, no, on"),
        ("names: [cat, 1.10]", "names: found 1.1, which is not a string"),
        ("names: [cat, ]\nnc: 2", "nc: found 2, but names has 1"),
        ("names: [cat, null]", "names: found None"),
        ("names: [cat, '']", "names: found '' (a class needs a name)"),
        ("names: {0: cat, '0': dog}", "names: found the id 0 twice"),
        ("names: {cat: 0}", "names: found the id 'cat' (need numbers from 0)"),
        ("names: {1: cat, 2: dog}", "names: found the ids [1, 2] (need 0 to 1 without a gap)"),
        ("names: none.txt", "names: found 'none.txt', and "),
        ("names: 3", "names: found 3 (need a list of names"),
        ("nc: two\nnames: [cat]", "nc: found 'two'"),
    ],
)
def test_names_that_are_none_are_one_sentence(text, message, tmp_path):
    with pytest.raises(UserError) as error:
        names_of(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/data.yaml: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nnames: [a]\n", "key 'val' is missing"),
        (
            "train: images/train\nvalid: images/val\nnames: [a]\n",
            "'val' is missing (found 'valid')",
        ),
        ("train: images/train\nval:\nnames: [a]\n", "val: found nothing (need a directory"),
        ("train: ''\nval: images/val\nnames: [a]\n", "train: found nothing"),
        ("train: []\nval: images/val\nnames: [a]\n", "train: found nothing"),
        (
            "train: ['']\nval: images/val\nnames: [a]\n",
            "train: found '' (need a directory",
        ),
        ("train: images/train\n\tval: x\n", "line 2, column 1: "),
        (b"train: x\nnames: [gr\xf6\xdfe]\n", "line 2: not valid UTF-8"),
        ("train: 3\nval: x\nnames: [a]\n", "train: found 3 (need a path, or a block"),
        ("train: [x, null]\nval: x\nnames: [a]\n", "train: found None (need a path"),
        ("train: {image: x}\nval: x\nnames: [a]\n", "unknown key 'train: image' (did you mean"),
        ("train: [{image: x}]\nval: x\nnames: [a]\n", "unknown key 'train: 0: image' ("),
        ('path: "a\\0b"\n' + YAML, "path: found"),
    ],
)
def test_data_yaml_error_says_what_is_wrong(text, message, tmp_path):
    path = write_set(tmp_path)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_data_config(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


@pytest.mark.parametrize("test", ["test:", "test: ''", "test: []", "test: null"])
def test_empty_test_split_is_none(test, tmp_path):
    path = write_set(tmp_path)
    path.write_text(f"{YAML}{test}\n")
    assert read_data_config(path).test is None


def test_source_that_is_no_list_of_images_is_one_sentence(tmp_path):
    path = write_set(tmp_path)
    (tmp_path / "train.csv").write_text("a.png\n")
    path.write_text(YAML.replace("images/train", "train.csv"))
    with pytest.raises(UserError, match=r"train\.csv: not a list of images \(need a directory"):
        read_split(read_data_config(path), "train")


def test_paths_of_annotations_are_those_that_exist(tmp_path):
    path = write_set(tmp_path, "train/images/a.png")
    (tmp_path / "train" / "a.json").write_text("{}")
    source = r"{annotations: ../train/a.json, images: train\images}"
    path.write_text(f"train: {source}\nval: {{annotations: train/a.json}}\nnames: [a]\n")
    config = read_data_config(path)
    assert (config.train[0].annotations, config.train[0].images) == ("train/a.json", "train/images")
    assert config.val[0].model_fields_set == {"annotations"}  # what is not given stays so


def test_path_of_another_machine_is_hinted_at(tmp_path):
    path = write_set(tmp_path)
    path.write_text(YAML.replace("images/train", "/content/set/images/train"))
    with pytest.raises(UserError) as error:
        read_split(read_data_config(path), "train")
    assert str(error.value).startswith("train: /content/set/images/train: not found (need a ")
    assert str(error.value).endswith(f"; images/train is in {tmp_path})")


def test_folder_stands_for_the_data_yaml_in_it(tmp_path):
    path = write_set(tmp_path / "set")
    with pytest.raises(UserError, match=r"set: a directory \(need its data.yaml; it has none\)"):
        find_data_yaml(str(tmp_path / "set"), tmp_path)
    (tmp_path / "set" / "one.yml").write_text(YAML)
    assert find_data_yaml(str(tmp_path / "set"), tmp_path) == tmp_path / "set" / "one.yml"
    (tmp_path / "set" / "two.yaml").write_text(YAML)
    with pytest.raises(UserError, match=r"found one\.yml, two\.yaml"):
        find_data_yaml(str(tmp_path / "set"), tmp_path)
    path.write_text(YAML)
    assert find_data_yaml(str(tmp_path / "set"), tmp_path) == path
    with pytest.raises(UserError, match="found ''"):
        find_data_yaml("", tmp_path)


@pytest.mark.parametrize("name", ["a.json", "obj.data", "train.txt"])
def test_other_file_than_a_data_yaml_is_one_sentence(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"not a data\.yaml"):
        read_data_config(tmp_path / name)
