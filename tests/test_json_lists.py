"""data/formats/json_lists.py: the same entries as the json module, in little memory."""

import json

import pytest
from conftest import TracedMemory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.formats import json_lists
from data.formats.json_lists import read_json_lists

KEYS = ["images", "annotations"]
NUMBERS = st.integers(-(10**20), 10**20) | st.floats()
TEXT = st.text() | st.sampled_from(['"segmentation": [[1, 2]]', '\\"segmentation": [1], "', "\\\\"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
POLYGONS = st.lists(st.lists(st.floats(-9, 999), max_size=9), max_size=3)
ENTRY = st.dictionaries(st.sampled_from(["id", "bbox", "x"]) | TEXT, VALUES, max_size=3)
SEGMENTS = st.fixed_dictionaries({"segmentation": POLYGONS | VALUES})
ENTRIES = st.builds(lambda a, b, c: {**a, **b, **c}, ENTRY, SEGMENTS | st.just({}), ENTRY)
DOCUMENT = st.builds(
    lambda before, lists, after: before | lists | after,
    st.dictionaries(TEXT, VALUES, max_size=2),
    st.fixed_dictionaries({key: st.lists(ENTRIES, max_size=4) for key in KEYS}),
    st.dictionaries(TEXT, VALUES, max_size=2),
)
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)


def without_polygons(entry: dict) -> str:
    """An entry as text (nan is not equal to itself), without the value that may be replaced."""
    return json.dumps(entry | {"segmentation": None})


@relaxed
@given(DOCUMENT, st.sampled_from([None, 2]), st.sampled_from([1, 7, 1000]))
def test_read_json_lists_gives_what_json_gives(tmp_path, monkeypatch, document, indent, chunk):
    monkeypatch.setattr(json_lists, "CHUNK", chunk)
    text = json.dumps(document, indent=indent)
    (tmp_path / "a.json").write_text(text)
    entries = [*read_json_lists(tmp_path / "a.json", KEYS)]
    for key in KEYS:
        found = [without_polygons(entry) for k, entry in entries if k == key]
        assert found == [without_polygons(entry) for entry in json.loads(text)[key]]


@relaxed
@given(DOCUMENT, st.floats(0, 1), st.sampled_from(["", ",", "]", "}", '"', "x", "\\"]))
def test_read_json_lists_refuses_what_json_refuses(tmp_path, monkeypatch, document, where, insert):
    """A document that is cut, or into which a character is inserted outside of a polygon."""
    monkeypatch.setattr(json_lists, "CHUNK", 7)
    text = json.dumps(document)
    cut = int(where * len(text))
    text = text[:cut] + (insert + text[cut:] if insert else "")
    (tmp_path / "a.json").write_text(text)
    try:
        content = json.loads(text)
        valid = all(isinstance(e, dict) for key in KEYS for e in content[key])
        json.loads(text, object_pairs_hook=lambda pairs: len({*dict(pairs)}) == len(pairs) or 1 / 0)
    except ZeroDivisionError:
        return  # a key that is there twice
    except (ValueError, KeyError, TypeError):
        valid = False
    if valid:
        assert len([*read_json_lists(tmp_path / "a.json", KEYS)]) == sum(
            len(content[k]) for k in KEYS
        )
    elif '"segmentation"' not in text:
        with pytest.raises((ValueError, KeyError)):
            list(read_json_lists(tmp_path / "a.json", KEYS))


def test_read_json_lists_names_the_position_of_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lists, "CHUNK", 7)
    text = '{"images": [],\n "annotations": [{"segmentation": [[1, 2, 3, 4]], "id": 1}\n {}]}'
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(json.JSONDecodeError) as raised:
        list(read_json_lists(tmp_path / "a.json", KEYS))
    assert (raised.value.lineno, raised.value.colno) == (3, 2)


def test_read_json_lists_needs_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lists, "CHUNK", 1 << 16)
    annotation = {"segmentation": [[i + 0.25 for i in range(300)]], "bbox": [1, 2, 3, 4]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [], "annotations": [annotation] * 2000}))
    with TracedMemory() as memory:
        count = sum(1 for _ in read_json_lists(path, KEYS))
    assert count == 2000 and path.stat().st_size > 4_000_000 and memory.peak < 1_000_000
