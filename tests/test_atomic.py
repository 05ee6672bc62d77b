"""A file is replaced whole or not at all."""

import pytest

from utils.atomic import atomic_write


def test_what_is_written_takes_the_place_of_the_file(tmp_path):
    for content in (b"first", b"second, and longer"):
        with atomic_write(tmp_path / "file") as file:
            file.write(content)
            assert not (tmp_path / "file").exists() or (tmp_path / "file").read_bytes() == b"first"
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError()]
)
def test_what_fails_leaves_the_file_as_it_was(error, tmp_path):
    (tmp_path / "file").write_bytes(b"good")
    with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "file") as file:
        file.write(b"half")
        raise error
    assert (tmp_path / "file").read_bytes() == b"good"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    if isinstance(error, OSError):
        assert raised.value.filename == str(tmp_path / "file")
