"""Random hyp files, data.yaml files, labels in every format and `lf`s raise UserError only.

The tests without an assertion require that no other exception is raised.
"""

import json
import os
import runpy
import shutil
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.config import DataConfig, read_data_config
from data.formats import read_split
from utils.errors import UserError
from utils.hyp import Hyp, load_hyp
from utils.lf import parse_lf

KEYS = st.sampled_from(
    [
        *Hyp.model_fields,
        "steps",
        "name",
        "lf",
        "train",
        "val",
        "names",
        "path",
        "remap",
        "annotations",
        "images",
    ]
)
NUMBERS = st.integers() | st.floats() | st.booleans() | st.none()
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["33%", "cawb", "poly", "images", "a.json", "*.jpg", "lambda x, y: x", "1:2,3:4", "é", "../.."]
)
VALUES = st.recursive(
    NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | TEXTS, inner, max_size=4),
    max_leaves=8,
)
BLOCKS = st.dictionaries(KEYS | TEXTS, VALUES, max_size=5)
FRAGMENTS = st.lists(st.sampled_from([*"0123456789.-+e \t\n,:[]{}&*!|>'\"#%x"]), max_size=60).map(
    "".join
)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
fuzz_settings = settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    Image.new("RGB", (16, 12)).save(folder / "images" / "a.png")
    return folder


@cache
def yolo(folder: Path) -> DataConfig:
    (folder / "yolo.yaml").write_text("train: images\nval: images\nnames: [a, b]\n")
    return read_data_config(folder / "yolo.yaml")


def only_user_errors(function, *arguments) -> None:
    try:
        function(*arguments)
    except UserError as error:
        assert str(error) and "\n" not in str(error)


@fuzz_settings
@given(st.one_of(BLOCKS.map(json.dumps), FRAGMENTS, st.text(max_size=60), st.binary(max_size=60)))
def test_load_hyp_raises_only_user_errors(folder, content):
    (folder / "h.yaml").write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    )
    only_user_errors(load_hyp, folder / "h.yaml")


@fuzz_settings
@given(st.one_of(BLOCKS.map(json.dumps), FRAGMENTS))
def test_read_data_config_raises_only_user_errors(folder, content):
    (folder / "d.yaml").write_text(content, encoding="utf-8", errors="replace")

    def read() -> None:
        config = read_data_config(folder / "d.yaml")
        # A test must not search directories elsewhere.
        if Path(config.path).is_relative_to(folder):
            read_split(config, "train")

    only_user_errors(read)


@fuzz_settings
@given(st.one_of(FRAGMENTS, st.text(max_size=60), st.binary(max_size=60)))
def test_read_split_yolo_raises_only_user_errors(folder, content):
    (folder / "labels" / "a.txt").write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    )
    only_user_errors(read_split, yolo(folder), "train")


def objects(*keys: str) -> st.SearchStrategy:
    """Return a strategy for lists of objects with some of the keys, or anything else."""
    return VALUES | st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(keys, VALUES)), max_size=3
    )


COCO = {
    "images": objects("id", "file_name", "width", "height", "coco_url"),
    "categories": objects("id", "name", "supercategory"),
    "annotations": objects("image_id", "category_id", "bbox", "iscrowd", "ignore", "segmentation"),
}
# Entries that are nearly valid.
IDS = st.sampled_from([1, 2, "1", 1.0, True, None])
BOXES = st.lists(st.sampled_from([0, 1, 5.5, "3", -2, None, 1e400]), max_size=8)
MASKS = st.fixed_dictionaries(
    {"size": BOXES, "counts": st.text("0123ol\\~", max_size=6) | st.lists(st.integers(-1, 192))}
)
ALMOST_COCO = st.fixed_dictionaries(
    {
        "images": st.lists(
            st.fixed_dictionaries(
                {"id": IDS, "file_name": st.sampled_from(["images/a.png", "x\\A.jpg", "", "b", 3])},
                optional={"width": st.sampled_from([16, 0, "16"]), "height": st.just(12)},
            ),
            min_size=1,
            max_size=3,
        ),
        "categories": st.lists(
            st.fixed_dictionaries({"id": IDS, "name": st.sampled_from(["a", "A", " a", 7])}),
            max_size=3,
        ),
        "annotations": st.lists(
            st.fixed_dictionaries(
                {"image_id": IDS, "category_id": IDS},
                optional={
                    "bbox": BOXES,
                    "segmentation": BOXES | st.lists(BOXES, max_size=2) | MASKS | VALUES,
                    "iscrowd": IDS,
                    "ignore": IDS,
                },
            ),
            max_size=4,
        ),
    }
)
LABELME = st.fixed_dictionaries(
    {
        "imagePath": st.sampled_from(["a.png", "..\\images\\a.png", "", 3]),
        "shapes": st.lists(
            st.fixed_dictionaries(
                {"label": st.sampled_from(["a", "c", None]), "points": st.lists(BOXES) | VALUES},
                optional={
                    "shape_type": st.sampled_from(["rectangle", "circle", "mask", "point", None]),
                    "group_id": VALUES,
                    "difficult": VALUES,
                },
            )
            | VALUES,
            max_size=3,
        ),
    },
    optional={"imageWidth": NUMBERS, "imageHeight": st.just(12)},
)
XML = [
    "<annotation>",
    "</annotation>",
    "<size>",
    "</size>",
    "<width>16</width>",
    "<height>12</height>",
    "<object>",
    "</object>",
    "<name>a</name>",
    "<bndbox>",
    "</bndbox>",
    "<xmin>1</xmin>",
    "<ymin>nan</ymin>",
    "<xmax>9</xmax>",
    "<ymax>9</ymax>",
    "<filename>a.png</filename>",
    "<filename>../a</filename>",
    "&x;",
    "x",
]
LF = [
    "lambda x, y: ",
    " if ",
    " else ",
    *[
        "x",
        "y",
        "1",
        "0",
        "1e9",
        "+",
        "-",
        "*",
        "/",
        "**",
        "(",
        ")",
        "cos",
        "sqrt",
        "pi",
        "<",
        "[",
        ".",
        "import",
        "__class__",
    ],
]


@fuzz_settings
@given(st.fixed_dictionaries({}, optional=COCO) | ALMOST_COCO)
def test_read_split_coco_raises_only_user_errors(folder, content):
    (folder / "a.json").write_text(json.dumps(content))
    (folder / "coco.yaml").write_text("train: a.json\nval: a.json\n")
    only_user_errors(read_split, read_data_config(folder / "coco.yaml"), "train")


@fuzz_settings
@given(LABELME | VALUES)
def test_read_split_labelme_raises_only_user_errors(folder, content):
    (folder / "json").mkdir(exist_ok=True)
    (folder / "json" / "a.json").write_text(json.dumps(content))
    (folder / "labelme.yaml").write_text(
        "train: {annotations: json, images: images}\nval: images\nnames: [a, b]\n"
    )
    only_user_errors(read_split, read_data_config(folder / "labelme.yaml"), "train")


@fuzz_settings
@given(st.lists(st.sampled_from(XML), max_size=25))
def test_read_split_voc_raises_only_user_errors(folder, parts):
    (folder / "xml").mkdir(exist_ok=True)
    (folder / "xml" / "a.xml").write_text("".join(parts))
    (folder / "voc.yaml").write_text(
        "train: {annotations: xml, images: images}\nval: images\nnames: [a, b]\n"
    )
    only_user_errors(read_split, read_data_config(folder / "voc.yaml"), "train")


@fuzz_settings
@given(
    st.lists(st.sampled_from(LF), max_size=12).map("".join), st.floats(-10, 10), st.floats(0.1, 10)
)
def test_parse_lf_raises_only_value_and_arithmetic_errors(text, x, y):
    try:
        value = parse_lf(text)(x, y)
    except (ValueError, ArithmeticError) as error:  # those that hyp and the lr plan catch
        assert str(error)
    else:
        assert isinstance(value, int | float)


@pytest.mark.parametrize("reader", ["labels", "yaml", "images", "pixels"])
def test_the_targets_of_fuzz_readers_take_their_seeds(reader, monkeypatch):
    """As atheris calls them, which takes longer to import than all of them to run."""
    fake = SimpleNamespace(instrument_imports=lambda include: nullcontext())
    monkeypatch.setitem(sys.modules, "atheris", fake)
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = runpy.run_path(str(Path(__file__).with_name("fuzz_readers.py")))
    try:
        Image.new("RGB", (9, 7)).save(module["IMAGE"])
        for seed in module["seeds"](reader):
            module[reader](seed)
    finally:
        shutil.rmtree(module["FOLDER"])
