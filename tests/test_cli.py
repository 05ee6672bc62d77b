"""utils/cli.py and utils/errors.py: argument types, one-line errors and exit statuses."""

import argparse
import errno
import signal

import pytest

from utils import cli
from utils.errors import OtherProcessFailed, UserError, environment_error


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (cli.int_range(0), "0", 0),
        (cli.int_range(-5, 5), "-5", -5),
        (cli.unit_interval, "0.25", 0.25),
        (cli.non_negative_float, "0", 0.0),
        (cli.batch_size, "auto", "auto"),
        (cli.batch_size, "16", 16),
        (cli.imgsz_range, "640", 640),
        (cli.imgsz_range, "320-640", "320-640"),
        (cli.freeze_spec, "backbone", "backbone"),
        (cli.freeze_spec, "3", "3"),
        (cli.dir_name, "a/b.c", "a/b.c"),
        (cli.weights_path, "DEFAULT", "DEFAULT"),
        (cli.weights_path, "", None),
        (cli.weights_path, "/a/../best.pt", "/best.pt"),
    ],
)
def test_argument_types_convert(convert, text, value):
    assert convert(text) == value and type(convert(text)) is type(value)


@pytest.mark.parametrize(
    ("convert", "text", "message"),
    [
        (cli.int_range(1), "0", "found '0', need an integer from 1 to 1000000000"),
        (cli.int_range(0), "1_0", "found '1_0', need an integer from 0"),
        (cli.int_range(0), "9" * 5000, f"found '{'9' * 40}', need an integer"),
        (cli.unit_interval, "nan", "found 'nan', need a number from 0 to 1"),
        (cli.unit_interval, "1.5", "found '1.5', need a number from 0 to 1"),
        (cli.non_negative_float, "inf", "found 'inf', need a finite number from 0"),
        (cli.non_negative_float, "often", "found 'often', need a finite number from 0"),
        (cli.batch_size, "0", "found '0', need an integer from 1"),
        (cli.imgsz_range, "16", "found '16', need an integer from 32 to 16384"),
        (cli.imgsz_range, "96-64", "found '96-64', need MIN-MAX"),
        (cli.imgsz_range, "33-64", "found '33-64', need MIN-MAX"),  # both are 64
        (cli.freeze_spec, "head", "found 'head', need an integer from 1"),
        (cli.dir_name, "../runs", "found '../runs', need a directory name"),
        (cli.dir_name, "/runs", "found '/runs', need a directory name"),
    ],
)
def test_argument_types_refuse(convert, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        convert(text)
    assert str(raised.value).startswith(message)


def test_parser_raises_user_error():
    parser = cli.Parser()
    parser.add_argument("--conf", type=cli.unit_interval)
    with pytest.raises(UserError, match=r"argument --conf: found '2', need a number from 0 to 1"):
        parser.parse_args(["--conf", "2"])


def raise_error(error):
    raise error


@pytest.mark.parametrize(
    ("error", "status", "stderr"),
    [
        (UserError("x.yaml: empty"), 2, "val.py: x.yaml: empty\n"),
        (
            UserError("Traceback ...\nutils.errors.UserError: x.jpg: cannot be read\n"),
            2,
            "val.py: x.jpg: cannot be read\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "last.pt"),
            2,
            "val.py: last.pt: No space left on device\n",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate"),
            2,
            "val.py: out of memory (reduce --batch-size or --imgsz)\n",
        ),
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed"),
            2,
            "val.py: lost the connection to another process of the run (its own message says "
            "why)\n",
        ),
        (OtherProcessFailed(), 2, ""),
        (MemoryError(), 2, "val.py: out of memory (reduce --batch-size or --imgsz)\n"),
        (KeyboardInterrupt(), 128 + signal.SIGINT, ""),
    ],
)
def test_run_cli_exit_status_and_message(error, status, stderr, capsys):
    assert cli.run_cli("val.py", lambda: raise_error(error)) == status
    assert capsys.readouterr().err == stderr


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file"), RuntimeError("a bug")])
def test_run_cli_lets_other_errors_through(error):
    assert environment_error(error) == ""
    with pytest.raises(type(error)):
        cli.run_cli("val.py", lambda: raise_error(error))


def test_run_cli_success():
    assert cli.run_cli("val.py", lambda: None) == 0
