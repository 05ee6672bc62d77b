"""`--resume`: what a run goes on with, what may be changed, and what is refused."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import rows, same, weights, write_tiny

import train
from utils.checkpoint import FORMAT, save_checkpoint
from utils.hyp import Hyp

ROOT = Path(__file__).parents[1]
QUICK = ["--imgsz", 64, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--noplots"]


def run(*arguments: object) -> int:
    return train.main([*map(str, arguments)])


def stopping(monkeypatch, epoch: int, batch: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal when it comes to batch `batch` of `epoch`, once."""
    seed, sent = train.seed_everything, []

    def seeded(*place):
        seed(*place)
        if place[1:3] == (epoch, batch) and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(train, "seed_everything", seeded)


def assert_same_end(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    for key in a.keys() - {"args", "rows"}:
        assert same(a[key], b[key]), key
    assert [row | {"seconds": ""} for row in rows(one)] == [
        row | {"seconds": ""} for row in rows(other)
    ]


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_after_the_batch_under_way(number, tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "h.yaml").write_text("accumulate: 2\nscheduler: {warmup_epoch: 1}\n")
    arguments = ["--hyp", tmp_path / "h.yaml", "--data", tiny, "--epochs", 3, *QUICK]
    if number == signal.SIGTERM:
        assert run(*arguments, "--project", tmp_path / "whole") == 0
    before = signal.getsignal(number)
    stopping(monkeypatch, 1, 0, number)
    assert run(*arguments, "--project", tmp_path) == 128 + number
    said = capsys.readouterr().err
    # an optimizer step takes two batches here, and is never cut
    assert (
        said
        == f"train.py: stopped by {number.name} after 2 of the 3 batches of epoch 1; --resume goes on there\n"
    )
    assert signal.getsignal(number) is before
    state = weights(tmp_path / "exp")
    assert (state["epoch"], state["batch"], state["finished"]) == (1, 2, False) and len(
        state["rows"]
    ) == 1
    if number == signal.SIGTERM:
        assert run("--resume", tmp_path / "exp") == 0
        assert "epoch 1 of 3, after 2 of its 3 batches" in capsys.readouterr().out
        assert_same_end(tmp_path / "whole" / "exp", tmp_path / "exp")


def test_a_signal_in_validation_loses_no_training(tiny, tmp_path, capsys, monkeypatch):
    arguments = ["--data", tiny, "--epochs", 2, *QUICK]
    assert run(*arguments, "--project", tmp_path / "whole") == 0
    detect, seen = train.run_inference, []

    def signalled(model, batches, *others):
        def until_the_second():
            for batch in batches:
                seen.append(True)
                if len(seen) == 1:
                    os.kill(os.getpid(), signal.SIGUSR1)
                yield batch

        return detect(model, until_the_second(), *others)

    monkeypatch.setattr(train, "run_inference", signalled)
    assert run(*arguments, "--project", tmp_path) == 128 + signal.SIGUSR1
    assert "after 3 of the 3 batches of epoch 0" in capsys.readouterr().err
    assert len(seen) == 1 and weights(tmp_path / "exp")["rows"] == []
    assert run("--resume", "--project", tmp_path) == 0
    assert_same_end(tmp_path / "whole" / "exp", tmp_path / "exp")


def test_a_signal_before_training_ends_the_run_at_once(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "read_data_config", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert run("--data", tiny, "--project", tmp_path / "runs", *QUICK) == 143
    assert "SIGTERM before training" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_signal_while_the_checkpoint_is_read_is_no_damage(mine, capsys, monkeypatch):
    load = torch.load

    def signalled(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", signalled)
    assert run("--resume", mine / "runs" / "exp") == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_a_signal_in_the_evaluation_ends_the_run_after_it(tiny, tmp_path, capsys, monkeypatch):
    evaluate = train.evaluate

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(train, "evaluate", signalled)
    arguments = ["--data", tiny, "--epochs", 2, *QUICK, "--project", tmp_path]
    assert run(*arguments) == 143
    assert (
        "after 0 of the 3 batches of epoch 1;" in capsys.readouterr().err
        and len(rows(tmp_path / "exp")) == 1
    )
    assert (
        run("--resume", "--project", tmp_path) == 0
    )  # in the last epoch there is nothing more to stop
    assert weights(tmp_path / "exp")["finished"] and len(rows(tmp_path / "exp")) == 2


def test_ctrl_c_reaches_the_loaders_too(tiny, tmp_path):
    """A terminal sends it to every process of the run; the loaders still bring the batches under way."""
    command = [
        sys.executable,
        ROOT / "train.py",
        "--data",
        tiny,
        "--epochs",
        500,
        *QUICK[:5],
        2,
        *QUICK[6:],
    ]
    process = subprocess.Popen(
        [*map(str, command), "--project", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert any(line.startswith("epoch 1 ") for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (
        process.returncode == 130
        and said.startswith("train.py: stopped by SIGINT after ")
        and said.count("\n") == 1
    )
    assert weights(tmp_path / "exp")["epoch"] >= 2


@pytest.mark.parametrize(
    "options",
    [
        ["--imgsz", "64-128", "--freeze", "2", "--cache", "ram"],
        ["--backbone", "torchvision/mobilenet_v3_small", "--freeze", "backbone", "--cache", "disk"],
    ],
)
def test_options_that_change_what_is_trained(options, tiny, tmp_path, monkeypatch):
    arguments = ["--data", tiny, "--epochs", 3, *QUICK, *options]
    assert run(*arguments, "--project", tmp_path / "whole") == 0
    stopping(monkeypatch, 1, 1)
    assert run(*arguments, "--project", tmp_path) == 143
    assert weights(tmp_path / "exp")["batch"] == 2
    assert run("--resume", tmp_path / "exp") == 0
    assert_same_end(tmp_path / "whole" / "exp", tmp_path / "exp")


def test_random_numbers_that_a_fork_draws_come_again(tiny, tmp_path, monkeypatch):
    """Dropout in the model, and numpy in the loop, as a fork may have them; no state of theirs is saved."""
    build = train.build_model

    def with_dropout(*arguments, **options):
        model = build(*arguments, **options)
        model.neck.up8.register_forward_hook(
            lambda _, __, out: F.dropout(out, 0.5) * (0.9 + 0.2 * np.random.rand())
        )
        return model

    monkeypatch.setattr(train, "build_model", with_dropout)
    arguments = ["--data", tiny, "--epochs", 2, *QUICK, "--noval"]
    assert run(*arguments, "--project", tmp_path / "whole") == 0
    stopping(monkeypatch, 1, 0)
    assert run(*arguments, "--project", tmp_path) == 143
    torch.manual_seed(99)
    np.random.seed(99)
    assert run("--resume", "--project", tmp_path) == 0
    assert_same_end(tmp_path / "whole" / "exp", tmp_path / "exp")


def test_auto_serves_first_start_and_restart(tiny, tmp_path, capsys, monkeypatch):
    arguments = [
        "--data",
        tiny,
        "--epochs",
        2,
        *QUICK,
        "--project",
        tmp_path,
        "--name",
        "mine",
        "--resume",
        "auto",
    ]
    (tmp_path / "mine").mkdir()  # of a start that was killed before its first checkpoint
    stopping(monkeypatch, 0, 1)
    assert run(*arguments) == 143
    assert run(*arguments) == 0
    assert len(rows(tmp_path / "mine")) == 2 and not (tmp_path / "mine2").exists()
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "finished, after 2 epochs" in capsys.readouterr().out
    assert run(*arguments, "--epochs", 3) == 0
    assert len(rows(tmp_path / "mine")) == 3


def test_more_epochs_follow_their_own_schedule(tiny, tmp_path, capsys):
    """The rates of epochs 2 and 3 are those of a run of 4 epochs, by the cosine written out here; the run says so."""
    (tmp_path / "h.yaml").write_text(
        "lr0: 0.01\nscheduler: {warmup_epoch: 0, eta_min: 0, epoch_scale: 0}\n"
    )
    assert (
        run(
            "--hyp",
            tmp_path / "h.yaml",
            "--data",
            tiny,
            "--epochs",
            2,
            *QUICK[:-1],
            "--project",
            tmp_path,
        )
        == 0
    )
    picture = (tmp_path / "exp" / "lr.png").read_bytes()
    assert run("--resume", "--project", tmp_path, "--epochs", 4) == 0
    assert (
        "--epochs 4: from here on the schedule is that of 4 epochs in place of 2"
        in capsys.readouterr().out
    )
    cosine = [
        0.005 * (1 + np.cos(np.pi * epoch / length))
        for epoch, length in ((0, 2), (1, 2), (2, 4), (3, 4))
    ]
    assert [float(row["lr/0"]) for row in rows(tmp_path / "exp")] == pytest.approx(
        cosine, rel=1e-12
    )
    assert (tmp_path / "exp" / "lr.png").read_bytes() != picture
    assert "epochs: 4" in (tmp_path / "exp" / "args.yaml").read_text()
    assert run("--resume", tmp_path / "exp", "--epochs", 3) == 2
    assert "--epochs 3" in capsys.readouterr().err


def test_more_epochs_for_a_run_that_was_cut_within_one(tiny, tmp_path, monkeypatch):
    (tmp_path / "h.yaml").write_text(
        "lr0: 0.01\nscheduler: {warmup_epoch: 0, eta_min: 0, epoch_scale: 0}\n"
    )
    stopping(monkeypatch, 1, 0)
    assert (
        run(
            "--hyp",
            tmp_path / "h.yaml",
            "--data",
            tiny,
            "--epochs",
            2,
            *QUICK,
            "--project",
            tmp_path,
        )
        == 143
    )
    assert run("--resume", "--project", tmp_path, "--epochs", 4) == 0
    cosine = [0.01, *(0.005 * (1 + np.cos(np.pi * epoch / 4)) for epoch in (1, 2, 3))]
    assert [float(row["lr/0"]) for row in rows(tmp_path / "exp")] == pytest.approx(
        cosine, rel=1e-12
    )


def test_a_longer_run_has_the_rates_of_one_that_was_longer_from_the_start(
    tiny, tmp_path, monkeypatch
):
    """From the epoch it is lengthened in, with a warm-up under way and restarts at shares of the length."""
    (tmp_path / "h.yaml").write_text("scheduler: {warmup_epoch: 3, steps: [50%], epoch_scale: 1}\n")
    arguments = ["--hyp", tmp_path / "h.yaml", "--data", tiny, *QUICK, "--noval"]
    assert run(*arguments, "--epochs", 8, "--project", tmp_path / "long") == 0
    stopping(monkeypatch, 1, 1)
    assert run(*arguments, "--epochs", 4, "--project", tmp_path) == 143
    assert run("--resume", "--project", tmp_path, "--epochs", 8) == 0
    table, long = (rows(folder / "exp") for folder in (tmp_path, tmp_path / "long"))
    assert [row["lr/0"] for row in table] == [row["lr/0"] for row in long] and len(table) == 8


def test_more_epochs_are_kept_from_the_first_moment(tiny, tmp_path, monkeypatch):
    """A run that is lengthened and killed before it has saved anything else goes on to the new length."""
    assert run("--data", tiny, "--epochs", 1, *QUICK, "--noval", "--project", tmp_path) == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "seed_everything", lambda *_: 1 / 0)
        run("--resume", "--project", tmp_path, "--epochs", 3)
    assert run("--resume", "--project", tmp_path) == 0
    assert len(rows(tmp_path / "exp")) == 3


def test_a_run_in_a_used_folder_is_not_taken_for_the_old_one(tiny, tmp_path, capsys, monkeypatch):
    arguments = ["--data", tiny, *QUICK, "--noval", "--project", tmp_path]
    assert run(*arguments, "--epochs", 2) == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "seed_everything", lambda *_: 1 / 0)
        run(*arguments, "--epochs", 1, "--seed", 7, "--exist-ok")
    assert (
        not (tmp_path / "exp" / "results.csv").exists()
        and not (tmp_path / "exp" / "weights" / "best.pt").exists()
    )
    assert run("--resume", "--project", tmp_path) == 0
    assert len(rows(tmp_path / "exp")) == 1 and weights(tmp_path / "exp")["args"]["seed"] == 7


def test_patience_has_not_ended_a_run_of_full_length(tiny, tmp_path):
    (tmp_path / "h.yaml").write_text("lr0: 1e-9\nscheduler: {warmup_epoch: 0}\n")
    arguments = [
        "--hyp",
        tmp_path / "h.yaml",
        "--data",
        tiny,
        *QUICK,
        "--noval",
        "--patience",
        1,
        "--project",
        tmp_path,
    ]
    assert run(*arguments, "--epochs", 1) == 0
    for epochs in (3, 4):
        assert run("--resume", "--project", tmp_path, "--epochs", epochs) == 0
        assert len(rows(tmp_path / "exp")) == epochs


def test_weights_may_lie_on_another_disk(mine, tmp_path):
    """A link in the run folder is not followed when the folder is looked for."""
    folder, disk = mine / "runs" / "exp", tmp_path / "disk" / "deep"
    disk.parent.mkdir()
    (folder / "weights").rename(disk)
    (folder / "weights").symlink_to(disk)
    assert run("--resume", folder, "--data", mine / "data" / "data.yaml") == 0
    assert len(rows(folder)) == 3 and {path.name for path in disk.parent.iterdir()} == {"deep"}


def test_a_checkpoint_outside_a_run_folder_is_refused(mine, tmp_path, capsys):
    (tmp_path / "downloads").mkdir()
    copy = shutil.copy(mine / "runs" / "exp" / "weights" / "last.pt", tmp_path / "downloads")
    assert run("--resume", copy, "--data", mine / "data" / "data.yaml") == 2
    error = capsys.readouterr().err
    assert "run folder" in error and error.count("\n") == 1
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["last.pt"]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory) -> Path:
    """A folder with a data set in `data`, and in `runs/exp` the run that a signal ended in epoch 1; not to be changed."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        stopping(patch, 1, 1)
        data = write_tiny(folder / "data")
        (folder / "h.yaml").write_text("lr0: 0.004\n")
        assert (
            run(
                "--hyp",
                folder / "h.yaml",
                "--data",
                data,
                "--epochs",
                3,
                *QUICK,
                "--project",
                folder / "runs",
            )
            == 143
        )
    return folder


@pytest.fixture
def mine(unfinished, tmp_path) -> Path:
    """A copy of `unfinished`, moved elsewhere as to another machine: the data are not where the run had them."""
    shutil.copytree(unfinished, tmp_path / "moved")
    return tmp_path / "moved"


def test_a_run_moves_to_another_machine(mine, unfinished, tmp_path, capsys):
    away = tmp_path / "away"
    (unfinished / "data").rename(away)
    try:
        assert run("--resume", mine / "runs" / "exp") == 2
        assert "data.yaml" in capsys.readouterr().err
        assert (
            run(
                "--resume",
                mine / "runs" / "exp",
                "--data",
                mine / "data" / "data.yaml",
                "--hyp",
                mine / "h.yaml",
            )
            == 0
        )
    finally:
        away.rename(unfinished / "data")
    assert len(rows(mine / "runs" / "exp")) == 3
    assert weights(mine / "runs" / "exp")["args"]["data"] == str(
        (mine / "data" / "data.yaml").resolve()
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch-size", 8], "--batch-size 8"),
        (["--imgsz", 96], "--imgsz 96"),
        (["--seed", 1], "--seed 1"),
        (["--model", "yolo-s"], "--model yolo-s"),
        (["--epochs", 2], "--epochs 2"),
        (["--patience", 3], "--patience 3"),
        (["--noval"], "--noval"),
        (["--deterministic"], "--deterministic"),
        (["--weights", "x.pt"], "x.pt: "),
        (["--hyp", "hyp.yaml"], "lr0 is 0.002"),
        (["--name", "other"], "--name other"),
        (["--name", "xp"], "--name xp"),
        (["--project", "elsewhere"], "--project elsewhere"),
        (["--device", "toaster"], "toaster"),
    ],
)
def test_a_contradiction_is_refused_by_name(arguments, says, mine, capsys):
    last = mine / "runs" / "exp" / "weights" / "last.pt"
    before = last.read_bytes()
    assert (
        run("--resume", mine / "runs" / "exp", "--data", mine / "data" / "data.yaml", *arguments)
        == 2
    )
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1, error
    assert last.read_bytes() == before


def test_what_is_as_it_was_is_no_contradiction(mine):
    same_again = [
        "--imgsz",
        50,
        "--batch-size",
        4,
        "--epochs",
        3,
        "--seed",
        0,
        "--patience",
        50,
        "--model",
        "yolo-n",
    ]
    free = ["--data", mine / "data" / "data.yaml", "--workers", 1, "--save-every", 0, "--noplots"]
    place = ["--name", "runs/exp", "--project", mine]
    assert run("--resume", mine / "runs" / "exp", *same_again, *free, *place) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda data: (data / "labels" / "train" / "3.txt").write_text("0 0.5 0.5 0.2 0.2\n"),
            "train has 12 images",
        ),
        (lambda data: (data / "images" / "val" / "4.png").unlink(), "val has 4 images"),
        (
            lambda data: (data / "images" / "train" / "3.png").rename(
                data / "images" / "train" / "30.png"
            ),
            "train has 12",
        ),
    ],
)
def test_other_data_are_refused(change, says, mine, capsys):
    change(mine / "data")
    assert run("--resume", mine / "runs" / "exp", "--data", mine / "data" / "data.yaml") == 2
    error = capsys.readouterr().err
    assert says in error and "was started with" in error


def test_a_checkpoint_that_cannot_be_read_is_one_sentence_and_stays(mine, capsys):
    last = mine / "runs" / "exp" / "weights" / "last.pt"
    good = last.read_bytes()
    other = mine / "other.pt"
    torch.save({"format": FORMAT + 1}, other)
    for content, says in (
        (good[: len(good) // 2], "damaged"),
        (other.read_bytes(), f"format {FORMAT + 1}"),
        (b"", "damaged"),
    ):
        last.write_bytes(content)
        for how in (
            [mine / "runs" / "exp"],
            [last],
            ["auto", "--project", mine / "runs"],
            ["", "--project", mine / "runs"],
        ):
            assert run("--resume", *how) == 2
            error = capsys.readouterr().err
            assert says in error and "last.pt" in error and error.count("\n") == 1, error
        assert last.read_bytes() == content


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("args", {"model": "yolo-s"}, "size mismatch"), ("hyp", {"lr0": "fast"}, "lr0"), ("optimizer", {"state": 3}, "last.pt: "),
        ("scheduler", {"name": 3}, "last.pt: "), ("epoch", None, "last.pt: "), ("seconds", None, "last.pt: "),
    ],
)  # fmt: skip
def test_a_whole_checkpoint_with_a_wrong_state_is_one_sentence(key, value, says, mine, capsys):
    last = mine / "runs" / "exp" / "weights" / "last.pt"
    state = weights(mine / "runs" / "exp")
    state[key] = state[key] | value if value else None
    torch.save(state, last)
    content = last.read_bytes()
    assert run("--resume", mine / "runs" / "exp", "--data", mine / "data" / "data.yaml") == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and error.startswith("train.py: "), error
    assert last.read_bytes() == content


def test_a_full_disk_is_reported_and_the_last_checkpoint_stays(mine, tmp_path):
    """No file may grow beyond 20 MB: best.pt fits, last.pt does not."""
    last = mine / "runs" / "exp" / "weights" / "last.pt"
    before, data = last.read_bytes(), mine / "data" / "data.yaml"
    assert len(before) > 20e6
    command = [
        sys.executable,
        ROOT / "train.py",
        "--resume",
        mine / "runs" / "exp",
        "--data",
        data,
        "--save-every",
        0.0001,
    ]
    limited = subprocess.run(
        [*map(str, command)], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000)),
    )  # fmt: skip
    assert limited.returncode == 2, limited.stderr
    sentences = limited.stderr.splitlines()
    reported = (
        f"train.py: {last}: cannot be written: File too large; the last checkpoint stays as it is"
    )
    assert len(sentences) > 3 and set(sentences[:-1]) == {reported} and "--resume" in sentences[-1]
    assert "Traceback" not in limited.stderr and limited.stdout.count("\nepoch ") == 2
    assert last.read_bytes() == before and not list((mine / "runs").rglob("*.tmp"))
    # with room again, it ends as it would have
    assert run("--resume", mine / "runs" / "exp", "--data", data) == 0
    assert (
        run(
            "--hyp",
            mine / "h.yaml",
            "--data",
            data,
            "--epochs",
            3,
            *QUICK,
            "--project",
            tmp_path / "whole",
        )
        == 0
    )
    assert_same_end(tmp_path / "whole" / "exp", mine / "runs" / "exp")


def test_a_run_that_patience_ended_is_finished(tiny, tmp_path, capsys):
    (tmp_path / "h.yaml").write_text("lr0: 1e-9\nscheduler: {warmup_epoch: 0}\n")
    assert (
        run(
            "--hyp",
            tmp_path / "h.yaml",
            "--data",
            tiny,
            "--epochs",
            9,
            *QUICK,
            "--project",
            tmp_path,
            "--patience",
            1,
        )
        == 0
    )
    for arguments, says in (([], "finished"), (["--epochs", 20], "--patience")):
        assert run("--resume", "--project", tmp_path, *arguments) == 2
        assert says in capsys.readouterr().err


def test_a_run_without_its_last_pictures_gets_them(tiny, tmp_path, monkeypatch):
    """Killed between the last epoch and the pictures; here by a fault in drawing them."""
    monkeypatch.setattr(train, "draw_predictions", lambda *_: 1 / 0)
    arguments = ["--data", tiny, "--epochs", 2, *QUICK[:-1], "--project", tmp_path]
    with pytest.raises(ZeroDivisionError):
        run(*arguments)
    monkeypatch.undo()
    assert run("--resume", "--project", tmp_path) == 0
    assert (tmp_path / "exp" / "val_batch.jpg").exists() and len(rows(tmp_path / "exp")) == 2
    assert weights(tmp_path / "exp")["finished"]


def test_resume_says_what_it_cannot_find(tiny, tmp_path, capsys):
    project = tmp_path / "runs"
    assert run("--data", tiny, "--epochs", 1, *QUICK, "--project", project) == 0
    capsys.readouterr()
    for arguments, says in (
        (["--resume", project / "exp"], "finished"),
        (["--resume", project / "nothing"], "nothing"),
        (["--resume", project / "exp" / "weights" / "best.pt"], "last.pt"),
        (["--resume", "--project", tmp_path], "finished"),
        (["--resume", "--project", tmp_path / "tiny"], "no weights/last.pt"),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error


def test_a_fork_may_add_an_argument_or_a_hyperparameter(mine, monkeypatch):
    """A run that was started before they were there gets their defaults."""
    monkeypatch.setitem(train.DEFAULTS, "mixup", 0.5)
    state = weights(mine / "runs" / "exp")
    del state["format"], state["hyp"]["flipud"]
    save_checkpoint(state, mine / "runs" / "exp" / "weights" / "last.pt")
    assert run("--resume", mine / "runs" / "exp", "--data", mine / "data" / "data.yaml") == 0
    after = weights(mine / "runs" / "exp")
    assert after["args"]["mixup"] == 0.5 and after["hyp"]["flipud"] == Hyp().flipud
