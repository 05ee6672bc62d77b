"""--compile: the network and the loss compile whole, and nothing of the state changes."""

from conftest import assert_same_run, run_train


def test_compiled_run_is_the_same(tiny, tmp_path, capsys):
    """With the backend `eager`, which needs no compiler and runs the same operators.

    A part that does not compile as one graph is an error.
    """
    args = {"data": tiny, "epochs": 2, "noplots": True, "amp": "off"}
    assert run_train(**args, project=tmp_path / "eager") == 0
    assert run_train(**args, compile="eager", project=tmp_path / "compiled") == 0
    assert_same_run(tmp_path / "eager" / "exp", tmp_path / "compiled" / "exp", ignore=("args",))
