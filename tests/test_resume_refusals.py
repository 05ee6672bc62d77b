"""What `--resume` refuses: one sentence on stderr, and the run stays as it was."""

import shutil

import pytest
import torch
from conftest import (
    assert_one_line_error,
    load_state,
    read_results,
    resume_train,
    run_train,
    signal_at,
    write_hyp,
)

import detect
import export
import val
from models.detector import Detector
from utils.checkpoint import FORMAT


def remove(*keys: str):
    """Return a function that deletes the entry state[keys[0]][keys[1]]... of a checkpoint."""

    def edit(state: dict) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    edit.__name__ = "-".join(("remove", *keys))  # the name of the test's case
    return edit


def replace(value: object, *keys: str):
    """Return a function that sets the entry state[keys[0]][keys[1]]... of a checkpoint."""

    def edit(state: dict) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    edit.__name__ = "-".join(("replace", *keys))
    return edit


# ---------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 8}, "--batch-size 8"),
        ({"imgsz": 96}, "--imgsz 96"),
        ({"seed": 1}, "--seed 1"),
        ({"model": "yolo-s"}, "--model yolo-s"),
        ({"epochs": 2}, "--epochs 2: conflicts with"),
        ({"patience": 3}, "--patience 3"),
        ({"noval": True}, "--noval"),
        ({"deterministic": True}, "--deterministic"),
        ({"weights": "x.pt"}, "x.pt: "),
        ({"hyp": "hyp.yaml"}, "lr0 0.002 conflicts with"),
        ({"name": "other"}, "--name other"),
        ({"name": "xp"}, "--name xp"),
        ({"project": "elsewhere"}, "--project elsewhere"),
        ({"device": "toaster"}, "--device toaster: not available"),
    ],
    ids=lambda value: "-".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_resume_refuses_a_contradiction_by_name(options, message, moved_run, capsys):
    run_dir = moved_run / "runs" / "exp"
    last = run_dir / "weights" / "last.pt"
    before = last.read_bytes()
    assert resume_train(run_dir, data=moved_run / "data" / "data.yaml", **options) == 2
    assert_one_line_error(capsys.readouterr().err, message)
    assert last.read_bytes() == before


def test_resume_accepts_arguments_that_agree_with_the_run(moved_run):
    same = {"imgsz": 50, "batch_size": 4, "epochs": 3, "seed": 0, "patience": 50, "model": "yolo-n"}
    free = {"data": moved_run / "data" / "data.yaml", "workers": 1, "save_every": 0}
    location = {"name": "runs/exp", "project": moved_run, "exist_ok": True}
    assert resume_train(moved_run / "runs" / "exp", **same, **free, **location, noplots=True) == 0


def test_resume_compares_image_sizes_as_the_model_rounds_them(tiny, tmp_path, monkeypatch, capsys):
    """The same command starts and resumes a run of a model of another stride than 32."""
    monkeypatch.setattr(Detector, "stride", 96)
    args = {"data": tiny, "epochs": 1, "noplots": True, "project": tmp_path}
    with signal_at("batch", epoch=0, batch=0):
        assert run_train(**args, imgsz=64) == 143
    assert load_state(tmp_path / "exp")["args"]["imgsz"] == 96
    capsys.readouterr()
    assert run_train(**args, imgsz=128, resume="auto") == 2
    assert_one_line_error(capsys.readouterr().err, "--imgsz 128: conflicts with", "with 96")
    assert run_train(**args, imgsz=64, resume="auto") == 0


@pytest.mark.parametrize("name", ["best.pt", "epoch10.pt"])
def test_resume_auto_does_not_delete_what_is_left_of_a_run(name, tiny, tmp_path, capsys):
    """Somebody has deleted last.pt, the largest file, of a run that had finished."""
    checkpoint = tmp_path / "mine" / "weights" / name
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"a month of training")
    args = {"data": tiny, "epochs": 1, "noplots": True, "project": tmp_path, "name": "mine"}
    assert run_train(**args, resume="auto") == 2
    message = f"--resume auto: {checkpoint.parent} has {name} and no last.pt"
    assert_one_line_error(capsys.readouterr().err, message)
    assert checkpoint.read_bytes() == b"a month of training"


def test_resume_refuses_an_argument_that_the_run_was_started_before(moved_run, capsys):
    """In a fork that has added an argument to the code since then."""
    run_dir = moved_run / "runs" / "exp"
    state = load_state(run_dir)
    del state["args"]["single_cls"]
    torch.save(state, run_dir / "weights" / "last.pt")
    assert resume_train(run_dir, single_cls=True) == 2
    message = f"--single-cls: conflicts with {run_dir}, which was started without it"
    assert_one_line_error(capsys.readouterr().err, message)


def test_resume_of_a_finished_or_missing_run_says_so(tiny, tmp_path, capsys):
    project = tmp_path / "runs"
    assert run_train(data=tiny, epochs=1, noplots=True, project=project) == 0
    capsys.readouterr()
    for path, options, message in (
        (project / "exp", {}, "last.pt: this run finished after 1 epoch"),
        (project / "nothing", {}, "nothing: cannot be read: No such file"),
        (project / "exp" / "weights" / "best.pt", {}, "--resume needs a last.pt"),
        (None, {"project": tmp_path}, "last.pt: this run finished after 1 epoch"),
        (None, {"project": tmp_path / "tiny"}, "--resume: no weights/last.pt found below"),
    ):
        assert resume_train(path, **options) == 2
        assert_one_line_error(capsys.readouterr().err, message)


def test_resume_refuses_to_extend_an_early_stopped_run(tiny, tmp_path, capsys):
    hyp = write_hyp(tmp_path, "optimizer: sgd\nlr0: 1e-9\nscheduler: {warmup_epoch: 0}\n")
    args = {"hyp": hyp, "data": tiny, "epochs": 9, "noplots": True, "project": tmp_path}
    assert run_train(**args, patience=1) == 0
    count = len(read_results(tmp_path / "exp"))
    assert count < 9
    capsys.readouterr()
    for options, message in (
        ({}, f"this run finished after {count} epochs"),
        ({"epochs": 20}, f"--epochs 20: {tmp_path / 'exp'} was early-stopped after {count} epochs"),
    ):
        assert resume_train(project=tmp_path, **options) == 2
        assert_one_line_error(capsys.readouterr().err, message)


# ---------------------------------------------------------------------------- data


def change_label(data) -> None:
    (data / "labels" / "train" / "3.txt").write_text("0 0.5 0.5 0.2 0.2\n")


def remove_image(data) -> None:
    (data / "images" / "val" / "4.png").unlink()


def rename_image(data) -> None:
    (data / "images" / "train" / "3.png").rename(data / "images" / "train" / "30.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_label, "train has 12 images"),
        (remove_image, "val has 4 images"),
        (rename_image, "train has 12 images"),
    ],
)
def test_resume_refuses_other_data(change, message, moved_run, capsys):
    change(moved_run / "data")
    data = moved_run / "data" / "data.yaml"
    assert resume_train(moved_run / "runs" / "exp", data=data) == 2
    assert_one_line_error(capsys.readouterr().err, f"{data}: {message}", "was started with")


# ---------------------------------------------------------------------------- checkpoints


def test_resume_refuses_a_checkpoint_outside_a_run_directory(moved_run, tmp_path, capsys):
    (tmp_path / "downloads").mkdir()
    last = moved_run / "runs" / "exp" / "weights" / "last.pt"
    copy = shutil.copy(last, tmp_path / "downloads")
    assert resume_train(copy, data=moved_run / "data" / "data.yaml") == 2
    assert_one_line_error(capsys.readouterr().err, f"{copy}: not inside a run directory")
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["last.pt"]


def test_resume_refuses_an_unreadable_checkpoint_and_leaves_it(moved_run, capsys):
    run_dir = moved_run / "runs" / "exp"
    last = run_dir / "weights" / "last.pt"
    good = last.read_bytes()
    newer = moved_run / "newer.pt"
    torch.save({"format": FORMAT + 1}, newer)
    project = {"project": moved_run / "runs"}
    for content, message in (
        (good[: len(good) // 2], "corrupted"),
        (newer.read_bytes(), f"checkpoint format {FORMAT + 1}"),
        (b"", "corrupted"),
    ):
        last.write_bytes(content)
        for path, options in ((run_dir, {}), (last, {}), ("auto", project), (None, project)):
            assert resume_train(path, **options) == 2
            assert_one_line_error(capsys.readouterr().err, "last.pt: ", message)
        assert last.read_bytes() == content


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (remove("ema"), ["no state for ema (--resume needs a last.pt)"]),
        (remove("scheduler"), ["no state for scheduler"]),
        (remove("optimizer"), ["has no training state (--resume needs a last.pt)"]),
        (remove("progress"), ["progress"]),
        (replace({"n": 1}, "swa"), ["state of swa, which this version does not have"]),
        (remove("progress", "best_map"), ["missing or unknown best_map"]),
        (replace(1, "progress", "curriculum"), ["missing or unknown curriculum"]),
        (remove("scheduler", "num_samples_processed"), ["scheduler: ", "num_samples_processed"]),
        (remove("environment"), ["has no environment (--resume needs a last.pt)"]),
        (remove("data_fingerprint"), ["has no data_fingerprint (--resume"]),
        (replace("yolo-s", "args", "model"), ["model: ", "size mismatch"]),
        (replace("fast", "hyp", "lr0"), ["lr0"]),
        (replace(3, "hyp", "mixup"), ["mixup"]),
        (replace(3, "optimizer", "state"), ["optimizer: "]),
        (replace(3, "scheduler", "name"), ["scheduler: "]),
        (replace(None, "progress", "epoch"), ["progress: ", "epoch"]),
        (replace(None, "progress", "elapsed"), ["progress: ", "elapsed"]),
        (replace(None, "progress"), ["last.pt: "]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_resume_names_what_is_wrong_in_a_checkpoint(edit, parts, moved_run, capsys):
    run_dir = moved_run / "runs" / "exp"
    last = run_dir / "weights" / "last.pt"
    state = load_state(run_dir)
    edit(state)
    torch.save(state, last)
    content = last.read_bytes()
    assert resume_train(run_dir, data=moved_run / "data" / "data.yaml") == 2
    assert_one_line_error(capsys.readouterr().err, f"{last}: ", *parts)
    assert last.read_bytes() == content


@pytest.mark.parametrize("command", ["train", "val", "detect", "export"])
def test_checkpoint_of_format_3_is_refused_by(command, moved_run, capsys):
    run_dir = moved_run / "runs" / "exp"
    last = run_dir / "weights" / "last.pt"
    state = load_state(run_dir) | {"format": 3}
    torch.save(state, last)
    weights = ["--weights", str(last)]
    project = ["--project", str(moved_run / "output")]
    images = str(moved_run / "data" / "images" / "val")
    run = {
        "train": lambda: resume_train(run_dir),
        "val": lambda: val.main([*weights, *project]),
        "detect": lambda: detect.main([*weights, *project, "--source", images]),
        "export": lambda: export.main([*weights, "--format", "torchscript"]),
    }
    assert run[command]() == 2
    assert_one_line_error(
        capsys.readouterr().err,
        f"{last}: checkpoint format 3, but this version reads format {FORMAT}",
        command=f"{command}.py",
    )
    assert not (moved_run / "output").exists()
