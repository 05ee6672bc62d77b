"""Checkpoints: plain data, whole or not at all, restored by part; nothing in them runs."""

import io
import os
import pickle
import resource
import zipfile

import pytest
import torch

from utils import checkpoint
from utils.checkpoint import load_checkpoint, part_states, restore, save_checkpoint
from utils.errors import UserError


def test_save_and_load_give_the_same_data(tmp_path):
    state = {
        "model": {"w": torch.arange(3.0)},
        "epoch": 3,
        "rows": [{"lr": 0.1, "mAP": None}],
        "name": "x",
        "finished": False,
    }
    save_checkpoint(state, tmp_path / "last.pt")
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded["model"].pop("w"), state["model"].pop("w"))
    assert {k: v for k, v in loaded.items() if k != "format"} == state
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_save_failure_keeps_the_last_file(tmp_path):
    save_checkpoint({"epoch": 1}, tmp_path / "last.pt")
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        save_checkpoint({"epoch": 2, "what": lambda: None}, tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_save_raises_what_interrupts_it(tmp_path, monkeypatch):
    """As torch's signal handler does, in any line, when a DataLoader worker was killed."""

    class InterruptedFile(io.BytesIO):
        def write(self, data: bytes) -> int:
            if self.tell() > 1000:
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
            return super().write(data)

    monkeypatch.setattr(checkpoint, "atomic_write", lambda _: InterruptedFile())
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        save_checkpoint({"w": torch.zeros(1000)}, tmp_path / "last.pt")


def test_save_on_a_full_disk_raises_oserror(tmp_path):
    """The system's own words, whatever torch's writer makes of it, and the last good file."""
    save_checkpoint({"epoch": 1}, tmp_path / "last.pt")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100_000, 3_999_000):  # within the tensor; when the rest of the buffer is written
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                save_checkpoint({"epoch": 2, "w": torch.zeros(1_000_000)}, tmp_path / "last.pt")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
        assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_load_runs_no_payload(tmp_path):
    torch.save({"format": 1, "model": Payload(tmp_path / "ran")}, tmp_path / "zip.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    for name in ("zip.pt", "raw.pt"):
        with pytest.raises(UserError, match=name):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_load_names_corrupted_and_foreign_files(tmp_path):
    save_checkpoint({"epoch": 1, "w": torch.zeros(10000)}, tmp_path / "last.pt")
    whole = (tmp_path / "last.pt").read_bytes()
    one_bit = bytearray(whole)
    one_bit[len(whole) // 2] ^= 1  # within the tensor
    for i, content in enumerate(
        [b"", b"text", whole[:1000], whole[:-100], whole[: len(whole) // 2], bytes(one_bit)]
    ):
        (tmp_path / f"{i}.pt").write_bytes(content)
        with pytest.raises(UserError, match=f"{i}.pt"):
            load_checkpoint(tmp_path / f"{i}.pt")
    torch.save({"epoch": 1}, tmp_path / "foreign.pt")
    torch.save({"format": 999}, tmp_path / "newer.pt")
    for name, says in (("foreign.pt", "foreign.pt"), ("newer.pt", "999"), ("none.pt", "none.pt")):
        with pytest.raises(UserError, match=says):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")],
)
def test_load_without_enough_memory_does_not_call_the_file_corrupted(error, tmp_path, monkeypatch):
    save_checkpoint({"x": 1}, tmp_path / "last.pt")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        load_checkpoint(tmp_path / "last.pt")


def test_load_refuses_a_compressed_file(tmp_path):
    """A thousandth of the bytes it would take in memory."""
    save_checkpoint({"epoch": 1, "w": torch.zeros(10_000_000)}, tmp_path / "last.pt")
    with (
        zipfile.ZipFile(tmp_path / "last.pt") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    assert (
        torch.load(tmp_path / "bomb.pt", weights_only=True)["w"].numel() == 10_000_000
    )  # torch itself would unpack it
    with pytest.raises(UserError, match=r"bomb\.pt"):
        load_checkpoint(tmp_path / "bomb.pt")


class Counter:
    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]


HEADER = {"format": 4, "args": {}, "hyp": {}}


def test_restore_walks_the_parts(tmp_path):
    parts = {"model": Counter(3), "swa": Counter(5)}
    checkpoint = HEADER | part_states(parts)
    restored = {"model": Counter(), "swa": Counter()}
    restore(restored, checkpoint, tmp_path / "last.pt")
    assert {name: part.count for name, part in restored.items()} == {"model": 3, "swa": 5}


@pytest.mark.parametrize(
    ("saved", "parts", "message"),
    [
        (["model"], ["model", "swa"], "no state for swa"),
        (["model", "swa"], ["model"], "state of swa, which this version does not have"),
    ],
)
def test_restore_names_missing_and_unknown_parts(saved, parts, message, tmp_path):
    checkpoint = HEADER | part_states({name: Counter(1) for name in saved})
    with pytest.raises(UserError, match=rf"last\.pt: {message}"):
        restore({name: Counter() for name in parts}, checkpoint, tmp_path / "last.pt")


def test_restore_names_the_part_whose_state_does_not_fit(tmp_path):
    checkpoint = HEADER | {"model": {"count": 1}, "swa": {"number": 1}}
    with pytest.raises(UserError, match=r"last\.pt: swa: .*count"):
        restore({"model": Counter(), "swa": Counter()}, checkpoint, tmp_path / "last.pt")


def test_load_refuses_an_older_format_in_one_sentence(tmp_path):
    torch.save({"format": 3, "model": {}}, tmp_path / "old.pt")
    with pytest.raises(UserError, match=r"old\.pt: checkpoint format 3, .* reads format 4"):
        load_checkpoint(tmp_path / "old.pt")
