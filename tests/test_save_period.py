"""`--save-period N` keeps the checkpoint of every Nth epoch, and a run resumes from each."""

import shutil
import signal

from conftest import assert_same_run, load_state, resume_train, run_train, signal_at

from utils.run_dir import RunDir, new_run_dir


def test_save_period_keeps_checkpoints_to_resume_from(tiny, tmp_path):
    options = {"data": tiny, "epochs": 3, "noplots": True, "batch_size": 6}
    assert run_train(**options, project=tmp_path, name="plain") == 0
    with signal_at("validate", epoch=1):
        status = run_train(**options, save_period=2, project=tmp_path, name="kept")
    assert status == 128 + signal.SIGTERM
    weights = tmp_path / "kept" / "weights"
    assert not [*weights.glob("epoch*.pt")]
    assert resume_train(tmp_path / "kept") == 0
    assert_same_run(tmp_path / "plain", tmp_path / "kept")
    names = {path.name for path in weights.iterdir()}
    assert names == {"best.pt", "last.pt", "epoch2.pt"}
    assert load_state(tmp_path / "kept", "epoch2.pt")["progress"]["epoch"] == 2

    # From the second epoch on again, in a copy, with another period.
    shutil.copytree(tmp_path / "kept", tmp_path / "again")
    shutil.copy(weights / "epoch2.pt", tmp_path / "again" / "weights" / "last.pt")
    assert resume_train(tmp_path / "again" / "weights" / "epoch2.pt", save_period=3) == 0
    assert_same_run(tmp_path / "plain", tmp_path / "again")
    assert (tmp_path / "again" / "weights" / "epoch3.pt").exists()


def test_reused_run_directory_has_no_old_numbered_checkpoints(tmp_path):
    weights = new_run_dir(tmp_path, "exp", False) / "weights"
    for name in ("epoch2.pt", "epochs.pt", "mine.pt"):
        (weights / name).touch()
    new_run_dir(tmp_path, "exp", True)
    assert {path.name for path in weights.iterdir()} == {"epochs.pt", "mine.pt"}


def test_numbered_checkpoint_that_cannot_be_written_is_reported(tmp_path):
    run_dir = RunDir(new_run_dir(tmp_path, "exp", False))
    state = {"progress": {"history": []}}
    assert run_dir.save(state) is None
    (run_dir.path / "weights" / "epoch2.pt").mkdir()
    assert "epoch2.pt: cannot be written" in run_dir.save(state, number=2)
