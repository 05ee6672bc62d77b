"""What a resumed run does: it continues where the run stopped, and ends as the whole run would."""

import math
import os
import signal
import subprocess

import numpy as np
import PIL
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    ROOT,
    assert_same_run,
    fail_at,
    load_state,
    read_results,
    resume_train,
    run_train,
    signal_at,
    train_args,
    without_short_run_warnings,
    write_hyp,
)
from preloaded import run_python, start_python

import options
from data.dataset import ValSet
from models.yolo import YOLO, Neck
from utils.checkpoint import save_checkpoint
from utils.hyp import Hyp

PLAIN_COSINE = (
    "optimizer: sgd\nlr0: 0.01\nscheduler: {warmup_epoch: 0, eta_min: 0, epoch_scale: 0}\n"
)


def cosine(epoch: float, epochs: int) -> float:
    """Return the learning rate of `PLAIN_COSINE`."""
    return 0.005 * (1 + math.cos(math.pi * epoch / epochs))


def learning_rates(run_dir) -> list[float]:
    return [float(row["lr/0"]) for row in read_results(run_dir)]


# ---------------------------------------------------------------------------- signals


@pytest.mark.usefixtures("default_sighup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signal_saves_after_the_optimizer_step_under_way(number, tiny, tmp_path, capsys):
    hyp = write_hyp(tmp_path, "accumulate: 2\nscheduler: {warmup_epoch: 1}\n")
    args = {"hyp": hyp, "data": tiny, "epochs": 3, "noplots": True}
    if number == signal.SIGTERM:
        assert run_train(**args, project=tmp_path / "whole") == 0
    handler = signal.getsignal(number)
    with signal_at("batch", number, epoch=1, batch=0):
        assert run_train(**args, project=tmp_path) == 128 + number
    # An optimizer step takes two batches here, and is never interrupted.
    message = f"stopped by {number.name} at epoch 1, batch 2; --resume continues from there"
    assert without_short_run_warnings(capsys.readouterr().err) == f"train.py: {message}\n"
    assert signal.getsignal(number) is handler
    progress = load_state(tmp_path / "exp")["progress"]
    assert (progress["epoch"], progress["batch"], progress["finished"]) == (1, 2, False)
    assert len(progress["history"]) == 1
    if number == signal.SIGTERM:
        assert resume_train(tmp_path / "exp") == 0
        assert "last.pt: resuming at epoch 1/3, batch 2/3\n" in capsys.readouterr().out
        assert_same_run(tmp_path / "whole" / "exp", tmp_path / "exp")


def test_signal_in_validation_loses_no_training(tiny, tmp_path, capsys, monkeypatch):
    args = {"data": tiny, "epochs": 2, "noplots": True}
    assert run_train(**args, project=tmp_path / "whole") == 0
    load, loaded = ValSet.__getitem__, []

    def load_with_signal(self, index):
        loaded.append(index)
        if len(loaded) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return load(self, index)

    monkeypatch.setattr(ValSet, "__getitem__", load_with_signal)
    assert run_train(**args, project=tmp_path) == 128 + signal.SIGUSR1
    assert "at epoch 0, batch 3; --resume continues from there" in capsys.readouterr().err
    assert loaded == [0, 1, 2, 3]  # the first of two batches
    assert load_state(tmp_path / "exp")["progress"]["history"] == []
    assert resume_train(project=tmp_path) == 0
    assert_same_run(tmp_path / "whole" / "exp", tmp_path / "exp")


def test_signal_before_training_ends_the_run_at_once(tiny, tmp_path, capsys):
    with signal_at("data"):
        assert run_train(data=tiny, project=tmp_path / "runs") == 143
    assert "SIGTERM before the first batch; nothing new to save" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_signal_while_the_checkpoint_is_read_is_not_reported_as_damage(
    moved_run, capsys, monkeypatch
):
    load = torch.load

    def load_with_signal(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", load_with_signal)
    assert resume_train(moved_run / "runs" / "exp") == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_signal_in_the_evaluation_ends_the_run_after_it(tiny, tmp_path, capsys):
    with signal_at("evaluate"):
        assert run_train(data=tiny, epochs=2, noplots=True, project=tmp_path) == 143
    assert "at epoch 1, batch 0; " in capsys.readouterr().err
    assert len(read_results(tmp_path / "exp")) == 1
    # In the last epoch there is nothing left to stop.
    with signal_at("evaluate"):
        assert resume_train(project=tmp_path) == 0
    assert load_state(tmp_path / "exp")["progress"]["finished"]
    assert len(read_results(tmp_path / "exp")) == 2


def test_ctrl_c_reaches_workers_which_still_deliver_their_batches(tiny, tmp_path):
    """A terminal sends SIGINT to every process of the run."""
    args = train_args(data=tiny, epochs=500, workers=2, noplots=True, project=tmp_path)
    pipe = subprocess.PIPE
    process = start_python(
        [ROOT / "train.py", *args], stdout=pipe, stderr=pipe, start_new_session=True
    )
    assert any(line.startswith("epoch 1 ") for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith("train.py: stopped by SIGINT at ")
    assert stderr.count("\n") == 1
    assert load_state(tmp_path / "exp")["progress"]["epoch"] >= 2


# ---------------------------------------------------------------------------- the same run


@pytest.mark.parametrize(
    "changes",
    [
        {"imgsz": "64-128", "freeze": 2, "cache": "ram"},
        {"backbone": "torchvision/mobilenet_v3_small", "freeze": "backbone", "cache": "disk"},
    ],
    ids=["multi-scale", "backbone"],
)
def test_resume_is_exact_with_options_that_change_training(changes, tiny, tmp_path):
    args = {"data": tiny, "hyp": None, "epochs": 3, "noplots": True, **changes}  # Muon
    assert run_train(**args, project=tmp_path / "whole") == 0
    with signal_at("batch", epoch=1, batch=1):
        assert run_train(**args, project=tmp_path) == 143
    assert load_state(tmp_path / "exp")["progress"]["batch"] == 2
    assert resume_train(tmp_path / "exp") == 0
    assert_same_run(tmp_path / "whole" / "exp", tmp_path / "exp")


def test_resume_repeats_random_numbers_that_a_fork_draws(tiny, tmp_path, monkeypatch):
    """Dropout in the model, and NumPy's global generator, whose states are not saved."""
    forward = Neck.forward

    def forward_with_dropout(self, features):
        n8, n16, n32 = forward(self, features)
        return F.dropout(n8, 0.5) * (0.9 + 0.2 * np.random.rand()), n16, n32

    monkeypatch.setattr(Neck, "forward", forward_with_dropout)
    args = {"data": tiny, "epochs": 2, "noplots": True, "noval": True}
    assert run_train(**args, project=tmp_path / "whole") == 0
    with signal_at("batch", epoch=1, batch=0):
        assert run_train(**args, project=tmp_path) == 143
    torch.manual_seed(99)
    np.random.seed(99)
    assert resume_train(project=tmp_path) == 0
    assert_same_run(tmp_path / "whole" / "exp", tmp_path / "exp")


def test_resume_auto_starts_resumes_and_extends(tiny, tmp_path, capsys):
    args = {"data": tiny, "noplots": True, "project": tmp_path, "name": "mine", "resume": "auto"}
    (tmp_path / "mine").mkdir()  # of a run that was killed before its first checkpoint
    with signal_at("batch", epoch=0, batch=1):
        assert run_train(**args, epochs=2) == 143
    assert run_train(**args, epochs=2) == 0
    assert len(read_results(tmp_path / "mine")) == 2
    assert not (tmp_path / "mine2").exists()
    capsys.readouterr()
    assert run_train(**args, epochs=2) == 0
    assert "this run finished after 2 epochs" in capsys.readouterr().out
    assert run_train(**args, epochs=3) == 0
    assert len(read_results(tmp_path / "mine")) == 3


def test_resume_of_a_moved_run_needs_and_stores_the_new_data_path(
    moved_run, interrupted_run, tmp_path, capsys
):
    run_dir, data = moved_run / "runs" / "exp", moved_run / "data" / "data.yaml"
    away = tmp_path / "away"
    (interrupted_run / "data").rename(away)
    try:
        assert resume_train(run_dir) == 2
        assert "data.yaml: file not found" in capsys.readouterr().err
        assert resume_train(run_dir, data=data, hyp=moved_run / "h.yaml") == 0
    finally:
        away.rename(interrupted_run / "data")
    assert len(read_results(run_dir)) == 3
    assert load_state(run_dir)["args"]["data"] == str(data.resolve())


def test_resume_without_a_gpu_of_a_run_with_cuda_graphs(moved_run, capsys):
    """They change no number; only a command that asks for them where there are none is refused."""
    run_dir, data = moved_run / "runs" / "exp", moved_run / "data" / "data.yaml"
    state = load_state(run_dir)
    state["args"]["cuda_graphs"] = True
    save_checkpoint(state, run_dir / "weights" / "last.pt")
    problem = "--cuda-graphs: does not work with --device cpu (it needs a CUDA device)"
    assert resume_train(run_dir, data=data, cuda_graphs=True) == 2
    assert capsys.readouterr().err == f"train.py: {problem}\n"
    with signal_at("batch"):
        assert resume_train(run_dir, data=data) == 143
    assert f"{problem}; the run continues without\n" in capsys.readouterr().err
    assert load_state(run_dir)["args"]["cuda_graphs"]  # back on a GPU it has them again


def test_detect_anomaly_is_for_the_start_that_asks_for_it(moved_run):
    """It takes twice as long and ends a run where a step would be skipped."""
    run_dir, data = moved_run / "runs" / "exp", moved_run / "data" / "data.yaml"
    for detect_anomaly in (True, False):
        with signal_at("batch"):
            assert resume_train(run_dir, data=data, detect_anomaly=detect_anomaly) == 143
        assert load_state(run_dir)["args"]["detect_anomaly"] == detect_anomaly


def test_resume_names_the_libraries_that_have_changed(moved_run, capsys):
    """NumPy draws the random numbers; a run from before a version was saved says nothing of it."""
    run_dir = moved_run / "runs" / "exp"
    state = load_state(run_dir)
    state["environment"]["numpy"] = "1.0"
    state["environment"].pop("Pillow", None)
    save_checkpoint(state, run_dir / "weights" / "last.pt")
    with signal_at("batch"):
        assert resume_train(run_dir, data=moved_run / "data" / "data.yaml") == 143
    assert f"environment changed (numpy 1.0 -> {np.__version__}): " in capsys.readouterr().err
    assert load_state(run_dir)["environment"]["Pillow"] == PIL.__version__


def test_resume_with_weights_on_another_disk(moved_run, tmp_path):
    """A link in the run directory is not followed when that directory is looked for."""
    run_dir, disk = moved_run / "runs" / "exp", tmp_path / "disk" / "deep"
    disk.parent.mkdir()
    (run_dir / "weights").rename(disk)
    (run_dir / "weights").symlink_to(disk)
    assert resume_train(run_dir, data=moved_run / "data" / "data.yaml") == 0
    assert len(read_results(run_dir)) == 3
    assert {path.name for path in disk.parent.iterdir()} == {"deep"}


def test_resume_draws_plots_that_were_not_reached(tiny, tmp_path):
    args = {"data": tiny, "epochs": 2, "project": tmp_path}
    with fail_at("report"), pytest.raises(ZeroDivisionError):
        run_train(**args)
    run_dir = tmp_path / "exp"
    (run_dir / "val_batch.jpg").unlink()
    assert not (run_dir / "report.html").exists()
    assert resume_train(project=tmp_path) == 0
    assert (run_dir / "val_batch.jpg").exists() and (run_dir / "report.html").exists()
    assert len(read_results(run_dir)) == 2
    assert load_state(run_dir)["progress"]["finished"]


def test_full_disk_is_reported_and_the_last_checkpoint_stays(moved_run, tmp_path):
    """No file may grow beyond 20 MB: best.pt fits, last.pt does not."""
    run_dir, data = moved_run / "runs" / "exp", moved_run / "data" / "data.yaml"
    last = run_dir / "weights" / "last.pt"
    before = last.read_bytes()
    assert len(before) > 20e6
    args = ["--resume", str(run_dir), "--data", str(data), "--save-every", "0.0001"]
    program = (
        "import resource, sys; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000)); "
        "import train; sys.exit(train.main())"
    )
    limited = run_python(["-c", program, *args], cwd=ROOT)
    assert limited.returncode == 2, limited.stderr
    *warnings, error = without_short_run_warnings(limited.stderr).splitlines()
    problem = "cannot be written: File too large; the last checkpoint stays as it is"
    assert len(warnings) >= 3 and {*warnings} == {f"train.py: {last}: {problem}"}
    assert error.startswith("train.py: ") and "--resume" in error
    assert limited.stdout.count("\nepoch ") == 2
    assert last.read_bytes() == before and not list((moved_run / "runs").rglob("*.tmp"))
    # With space again, it ends as it would have.
    assert resume_train(run_dir, data=data) == 0
    args = {"hyp": moved_run / "h.yaml", "data": data, "epochs": 3, "noplots": True}
    assert run_train(**args, project=tmp_path / "whole") == 0
    assert_same_run(tmp_path / "whole" / "exp", run_dir)


def test_reused_run_dir_is_not_mistaken_for_the_old_run(tiny, tmp_path):
    args = {"data": tiny, "noplots": True, "noval": True, "project": tmp_path}
    run_dir = tmp_path / "exp"
    assert run_train(**args, epochs=2) == 0
    with fail_at("batch"), pytest.raises(ZeroDivisionError):
        run_train(**args, epochs=1, seed=7, exist_ok=True)
    assert not (run_dir / "results.csv").exists()
    assert not (run_dir / "weights" / "best.pt").exists()
    assert resume_train(project=tmp_path) == 0
    assert len(read_results(run_dir)) == 1
    assert load_state(run_dir)["args"]["seed"] == 7


# ---------------------------------------------------------------------------- more epochs


def test_more_epochs_follow_the_longer_schedule(tiny, tmp_path, capsys):
    """The rates of epochs 2 and 3 are those of a run of 4 epochs, and a warning says so."""
    hyp = write_hyp(tmp_path, PLAIN_COSINE)
    assert run_train(hyp=hyp, data=tiny, epochs=2, project=tmp_path) == 0
    run_dir = tmp_path / "exp"
    lr_plot = (run_dir / "lr.png").read_bytes()
    assert resume_train(project=tmp_path, epochs=4) == 0
    warning = "--epochs 4: the schedule from here on is that of 4 epochs, not 2\n"
    assert warning in capsys.readouterr().err
    expected = [cosine(0, 2), cosine(1, 2), cosine(2, 4), cosine(3, 4)]
    assert learning_rates(run_dir) == pytest.approx(expected, rel=1e-12)
    assert (run_dir / "lr.png").read_bytes() != lr_plot
    assert "epochs: 4" in (run_dir / "args.yaml").read_text()
    assert resume_train(run_dir, epochs=3) == 2
    assert "--epochs 3: " in capsys.readouterr().err


def test_more_epochs_after_a_stop_within_an_epoch(tiny, tmp_path):
    args = {"hyp": write_hyp(tmp_path, PLAIN_COSINE), "data": tiny, "noplots": True}
    with signal_at("batch", epoch=1, batch=0):
        assert run_train(**args, epochs=2, project=tmp_path) == 143
    assert resume_train(project=tmp_path, epochs=4) == 0
    expected = [0.01, *(cosine(epoch, 4) for epoch in (1, 2, 3))]
    assert learning_rates(tmp_path / "exp") == pytest.approx(expected, rel=1e-12)


def test_more_epochs_have_the_rates_of_a_run_that_was_longer_from_the_start(tiny, tmp_path):
    """From the epoch it is extended in, within a warm-up, with restarts at fractions of the run."""
    hyp = write_hyp(
        tmp_path, "optimizer: sgd\nscheduler: {warmup_epoch: 3, steps: [50%], epoch_scale: 1}\n"
    )
    args = {"hyp": hyp, "data": tiny, "noplots": True, "noval": True}
    assert run_train(**args, epochs=8, project=tmp_path / "long") == 0
    with signal_at("batch", epoch=1, batch=1):
        assert run_train(**args, epochs=4, project=tmp_path) == 143
    assert resume_train(project=tmp_path, epochs=8) == 0
    rates = learning_rates(tmp_path / "exp")
    assert rates == learning_rates(tmp_path / "long" / "exp") and len(rates) == 8


def test_more_epochs_are_saved_before_the_first_batch(tiny, tmp_path):
    """A run that is extended and killed before anything else is saved reaches its new length."""
    args = {"data": tiny, "noplots": True, "noval": True, "project": tmp_path}
    assert run_train(**args, epochs=1) == 0
    with fail_at("batch"), pytest.raises(ZeroDivisionError):
        resume_train(project=tmp_path, epochs=3)
    assert resume_train(project=tmp_path) == 0
    assert len(read_results(tmp_path / "exp")) == 3


def test_more_epochs_after_full_length_are_not_early_stopped(tiny, tmp_path):
    hyp = write_hyp(tmp_path, "optimizer: sgd\nlr0: 1e-9\nscheduler: {warmup_epoch: 0}\n")
    args = {"hyp": hyp, "data": tiny, "noplots": True, "noval": True, "patience": 1}
    assert run_train(**args, epochs=1, project=tmp_path) == 0
    for epochs in (3, 4):
        assert resume_train(project=tmp_path, epochs=epochs) == 0
        assert len(read_results(tmp_path / "exp")) == epochs


def test_resume_with_per_batch_schedule_is_exact_and_can_be_extended(tiny, tmp_path):
    text = "lr0: 0.01\nscheduler: {per_batch: true, warmup_epoch: 1, eta_min: 0, epoch_scale: 0}\n"
    args = {"hyp": write_hyp(tmp_path, text), "data": tiny, "noplots": True, "noval": True}
    assert run_train(**args, epochs=3, project=tmp_path, name="whole") == 0
    for name in ("resumed", "extended"):
        with signal_at("batch", epoch=1, batch=1):
            assert run_train(**args, epochs=3, project=tmp_path, name=name) == 143
        assert load_state(tmp_path / name)["progress"]["batch"] == 2
    assert resume_train(tmp_path / "resumed") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
    assert resume_train(tmp_path / "extended", epochs=5) == 0
    # The rate of an epoch is that of the last of its 3 batches; the cosine begins at epoch 1.
    for name, epochs in (("whole", 3), ("extended", 5)):
        decay = [cosine(epoch - 1 + 2 / 3, epochs - 1) for epoch in range(1, epochs)]
        expected = [0.01 * 2 / 3, *decay]
        assert learning_rates(tmp_path / name) == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------------------- forks


def test_resume_in_a_fork_with_a_new_loss_adds_a_column(tiny, tmp_path, monkeypatch):
    with fail_at("batch", epoch=1, batch=0), pytest.raises(ZeroDivisionError):
        run_train(data=tiny, epochs=2, project=tmp_path)
    losses = YOLO.losses

    def losses_with_obj(self, images, targets):
        terms = losses(self, images, targets)
        return terms | {"obj": terms["cls"].square()}

    monkeypatch.setattr(YOLO, "losses", losses_with_obj)
    assert resume_train(project=tmp_path) == 0
    run_dir = tmp_path / "exp"
    first, second = read_results(run_dir)
    assert first.keys() == second.keys() >= {"train/box", "train/cls", "train/dfl", "train/obj"}
    assert first["train/obj"] == "" and float(second["train/obj"]) > 0
    assert load_state(run_dir)["progress"]["finished"]
    assert "mAP50-95" in (run_dir / "report.html").read_text()
    assert (run_dir / "results.png").stat().st_size > 0


def test_resume_in_a_fork_gives_new_arguments_and_hyperparameters_their_defaults(
    moved_run, monkeypatch
):
    run_dir, build_parser = moved_run / "runs" / "exp", options.build_parser

    def build_parser_with_mixup():
        parser = build_parser()
        parser.add_argument("--mixup", default=0.5, type=float)
        return parser

    monkeypatch.setattr(options, "build_parser", build_parser_with_mixup)
    state = load_state(run_dir)
    del state["hyp"]["flipud"]
    save_checkpoint(state, run_dir / "weights" / "last.pt")
    assert resume_train(run_dir, data=moved_run / "data" / "data.yaml") == 0
    after = load_state(run_dir)
    assert after["args"]["mixup"] == 0.5 and after["hyp"]["flipud"] == Hyp().flipud
