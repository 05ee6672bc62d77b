"""utils/log.py: what is printed, wherever it goes."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, write_tiny

from utils import log


def describe(data, **options):
    command = [sys.executable, "-m", "data.describe", data]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_output_that_lacks_characters_has_their_numbers(encoding, tmp_path):
    data = write_tiny(tmp_path, train=2, val=1)
    data.write_text("train: images/train\nval: images/val\nnames: [猫, b]\n", encoding="utf-8")
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = describe(data, env=env, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u732b" in done.stdout


def test_closed_pipe_does_not_end_a_command(tmp_path):
    data = write_tiny(tmp_path, train=2, val=1)
    reader, writer = os.pipe()
    os.close(reader)
    done = describe(data, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_full_disk_under_stdout_is_said_once(monkeypatch, capsys):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        log.info("one", "two")
        log.info("three")
    expected = "stdout: cannot be written: No space left on device (this does not end the run)\n"
    assert capsys.readouterr().err == expected


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_end_a_command(closed, tmp_path):
    data = write_tiny(tmp_path, train=2, val=1)
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "data.describe"]
    for file, status in ((data, 0), ("no.yaml", 2)):
        done = subprocess.run([*command, file], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status and "Traceback" not in done.stderr
        assert "no.yaml" not in done.stdout  # a message for stderr
