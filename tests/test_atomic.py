"""utils/atomic.py: a file is replaced completely or not at all."""

import errno
import os
import stat

import pytest

from utils.atomic import atomic_write


def test_atomic_write_replaces_the_file(tmp_path):
    for content in (b"first", b"second, and longer"):
        with atomic_write(tmp_path / "file") as file:
            file.write(content)
            assert not (tmp_path / "file").exists() or (tmp_path / "file").read_bytes() == b"first"
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError()]
)
def test_atomic_write_leaves_the_file_unchanged_on_an_error(error, tmp_path):
    (tmp_path / "file").write_bytes(b"good")
    with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "file") as file:
        file.write(b"incomplete")
        raise error
    assert (tmp_path / "file").read_bytes() == b"good"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    if isinstance(error, OSError):
        assert raised.value.filename == str(tmp_path / "file")


def test_atomic_write_of_a_cache_by_two_processes_at_once(tmp_path, monkeypatch):
    """Each has a temporary file of its own, and neither waits for the disk."""
    monkeypatch.setattr(os, "fsync", None)
    with atomic_write(tmp_path / "file", durable=False) as first:
        first.write(b"complete")
        with atomic_write(tmp_path / "file", durable=False) as second:
            second.write(b"comp")
            first.flush()
        assert (tmp_path / "file").read_bytes() == b"comp"
    assert (tmp_path / "file").read_bytes() == b"complete"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def fail_to_sync_directories(monkeypatch, number: int) -> None:
    fsync = os.fsync

    def fsync_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_files_only)


def test_atomic_write_where_a_directory_cannot_be_synced(tmp_path, monkeypatch):
    """As on some network file systems: the file is in its place all the same."""
    fail_to_sync_directories(monkeypatch, errno.EINVAL)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"complete")
    assert (tmp_path / "file").read_bytes() == b"complete"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_atomic_write_reports_a_disk_that_fails_to_sync_the_directory(tmp_path, monkeypatch):
    fail_to_sync_directories(monkeypatch, errno.EIO)
    failure = pytest.raises(OSError, match="Input/output error")
    with failure as raised, atomic_write(tmp_path / "file") as file:
        file.write(b"complete")
    assert raised.value.filename == str(tmp_path)
