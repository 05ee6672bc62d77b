"""Whole runs: what a run directory holds, what is learned, and how invalid input is reported."""

import re
import subprocess

import pytest
import yaml
from conftest import (
    ROOT,
    AtStage,
    assert_one_line_error,
    bitwise_equal,
    load_state,
    read_results,
    run_train,
    train_args,
    without_short_run_warnings,
    write_hyp,
    write_tiny,
)
from preloaded import run_python

from options import defaults
from utils.schedulers import AnnealingLR

RUN_FILES = {
    "args.yaml", "hyp.yaml", "results.csv", "lr.png", "results.png", "train_batch.jpg",
    "val_batch.jpg", "report.html", "weights/best.pt", "weights/last.pt",
}  # fmt: skip
COLUMNS = [
    "epoch", "train/box", "train/cls", "train/dfl", "val/box", "val/cls", "val/dfl",
    "metrics/precision", "metrics/recall", "metrics/mAP50", "metrics/mAP75", "metrics/mAP50-95",
    "lr/0", "lr/1", "lr/2", "seconds",
]  # fmt: skip


def run_command(*args: object, cwd=None) -> subprocess.CompletedProcess:
    """Run `python train.py ARGS` as a user does, in a process of its own."""
    return run_python([ROOT / "train.py", *args], cwd=cwd)


# ---------------------------------------------------------------------------- what a run does


def test_train_writes_a_run_directory(tiny, tmp_path):
    text = "lr0: 0.004\nclose_mosaic: 1\nscheduler: {warmup_epoch: 1, steps: [2], eta_min: 0.1}\n"
    args = {"hyp": write_hyp(tmp_path, text), "data": tiny, "model": "yolo-n"}
    args["project"] = tmp_path / "runs"
    done = run_command(*train_args(**args, epochs=4), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    run_dir = tmp_path / "runs" / "exp"
    files = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    assert files == RUN_FILES
    assert all((run_dir / name).stat().st_size > 0 for name in files)
    used = yaml.safe_load((run_dir / "args.yaml").read_text())
    assert (used["epochs"], used["imgsz"], used["batch_size"], used["seed"]) == (4, 64, 4, 0)
    assert yaml.safe_load((run_dir / "hyp.yaml").read_text())["scheduler"]["steps"] == [2]
    assert "class0" in done.stdout and "class1" in done.stdout  # the final table

    results = read_results(run_dir)
    assert [row["epoch"] for row in results] == ["0", "1", "2", "3"]
    assert [*results[0]] == COLUMNS
    for column in COLUMNS:
        assert all(float(row[column]) >= 0 for row in results), column
    # Rates are those of the last batch of an epoch. 12 images make 3 batches of 4: the last batch
    # of the warm-up comes after 2 of them. Then the cosine from epoch 1, of length 1 and stretched
    # by 1, and after epoch 2 a restart at 0.8 of the peak, of length 2.
    expected = [0.004 * 2 / 3, 0.004, 0.004 * 0.55, 0.004 * 0.8 * 0.55]
    assert [float(row["lr/0"]) for row in results] == pytest.approx(expected, rel=1e-12)
    assert all(row["lr/1"] == row["lr/0"] for row in results)

    assert run_train(**args, epochs=2, noplots=True, noval=True) == 0
    second = tmp_path / "runs" / "exp2"
    assert not list(second.glob("*.png")) and not list(second.glob("*.jpg"))
    results = read_results(second)
    assert [*results[0]] == COLUMNS
    for column in ("val/box", "metrics/mAP50"):
        assert [row[column] == "" for row in results] == [True, False]


def test_train_counts_the_samples_of_its_batches(tiny, tmp_path, capsys):
    """12 images in batches of 5 are 3 batches of 4.

    Before the last batch of an epoch there are its first 8 samples and 12 of each epoch before.
    """
    args = {"data": tiny, "batch_size": 5, "noval": True, "noplots": True, "project": tmp_path}
    decay = "learning_rate_decay_a: 0.1, learning_rate_decay_b: 0.5"
    hyp = write_hyp(
        tmp_path,
        f"optimizer: sgd\nlr0: 0.004\nscheduler: {{name: poly, warmup_epoch: 1, {decay}}}\n",
    )
    assert run_train(hyp=hyp, epochs=3, **args) == 0
    expected = [0.004 * 2 / 3, *(0.004 / (1 + 0.1 * t) ** 0.5 for t in (20, 32))]
    rates = [float(row["lr/0"]) for row in read_results(tmp_path / "exp")]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert load_state(tmp_path / "exp")["scheduler"]["num_samples_processed"] == 36

    capsys.readouterr()
    hyp = write_hyp(tmp_path, "scheduler: {steps: [50%, 7]}\n")
    assert run_train(hyp=hyp, epochs=1, **args) == 0
    warnings = capsys.readouterr().err
    assert warnings.count("is skipped") == 2
    assert f"{hyp}: scheduler: steps: 50% is skipped: it falls on epoch 1" in warnings


def test_train_loads_the_weights_that_fit(tiny, tmp_path, capsys):
    args = {"epochs": 1, "noplots": True}
    assert run_train(data=tiny, **args, project=tmp_path / "a") == 0
    capsys.readouterr()
    one_class = write_tiny(tmp_path / "one", classes=1)
    best = tmp_path / "a" / "exp" / "weights" / "best.pt"
    assert run_train(data=one_class, **args, project=tmp_path / "b", weights=best) == 0
    output = capsys.readouterr().out
    assert f"--weights {best}: loaded " in output
    # Another number of classes changes the last convolution, weight and bias, of 3 class branches.
    assert re.search(r" parameters \(6 of \d+ tensors do not fit\)", output)


def test_train_is_repeatable_and_depends_on_the_seed(tiny, tmp_path):
    args = {"data": tiny, "hyp": None, "epochs": 1, "noplots": True, "project": tmp_path}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run_train(**args, name=name, seed=seed) == 0
    a, b, c = (load_state(tmp_path / name)["model"] for name in "abc")
    assert bitwise_equal(a, b) and not bitwise_equal(a, c)
    assert run_train(**args, name="c", exist_ok=True) == 0
    assert bitwise_equal(load_state(tmp_path / "c")["model"], a)
    assert not (tmp_path / "c2").exists()


def test_train_learns_one_class(tmp_path):
    """Bright rectangles: 40 images, two hundred steps, from random weights."""
    data = write_tiny(tmp_path / "one", train=40, val=20, classes=1)
    args = {"hyp": None, "epochs": 20, "noplots": True, "noval": True}
    assert run_train(data=data, **args, project=tmp_path) == 0
    assert load_state(tmp_path / "exp")["progress"]["best_map"] > 0.2


def test_train_learns_one_class_on_real_images(bccd, tmp_path):
    """White blood cells only: 40 images, a hundred steps."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    labels = sorted((bccd / "labels" / "train").glob("*.txt"))
    for path in [path for path in labels if "\n1 " in "\n" + path.read_text()][:40]:
        lines = [line for line in path.read_text().splitlines() if line.startswith("1 ")]
        (tmp_path / "labels" / path.name).write_text("".join(f"0{line[1:]}\n" for line in lines))
        image = f"{path.stem}.jpg"
        (tmp_path / "images" / image).symlink_to(bccd / "images" / "train" / image)
    data = tmp_path / "data.yaml"
    data.write_text("train: images\nval: images\nnames: [WBC]\n")
    args = {"epochs": 20, "imgsz": 96, "batch_size": 8, "noplots": True, "noval": True}
    assert run_train(data=data, hyp=None, **args, project=tmp_path / "runs") == 0
    assert load_state(tmp_path / "runs" / "exp")["progress"]["best_map"] > 0.1


@pytest.mark.parametrize(
    ("text", "epochs", "has_warning"),
    [("", 1, True), ("close_mosaic: 1\n", 1, True), ("close_mosaic: 0\n", 1, False)],
)
def test_train_warns_of_a_run_without_mosaics(text, epochs, has_warning, tiny, tmp_path, capsys):
    args = {"hyp": write_hyp(tmp_path, text), "data": tiny, "noplots": True, "project": tmp_path}
    assert run_train(**args, epochs=epochs) == 0
    close_mosaic = text.partition(": ")[2].strip() or 10
    expected = f"--epochs {epochs}: no epoch has mosaics, because close_mosaic is {close_mosaic} "
    stderr = capsys.readouterr().err
    assert sum(line.startswith(expected) for line in stderr.splitlines()) == has_warning
    assert not without_short_run_warnings(stderr)


def test_train_stops_early(tiny, tmp_path, capsys):
    hyp = write_hyp(tmp_path, "optimizer: sgd\nlr0: 1e-9\nscheduler: {warmup_epoch: 0}\n")
    args = {"hyp": hyp, "data": tiny, "epochs": 20, "noplots": True, "project": tmp_path}
    assert run_train(**args, patience=2) == 0
    message = "early stopping: no better mAP50-95 for 2 epochs"
    assert message in capsys.readouterr().out
    progress = load_state(tmp_path / "exp")["progress"]
    assert len(read_results(tmp_path / "exp")) < 20
    assert progress["early_stopped"] and progress["finished"]


def test_train_warns_of_loss_weights_without_a_loss(tiny, tmp_path, capsys):
    model = "torchvision/ssdlite320_mobilenet_v3_large"
    args = {
        "hyp": write_hyp(tmp_path, "optimizer: adamw\nmosaic: 0\n"),
        "data": tiny,
        "model": model,
    }
    assert run_train(**args, epochs=1, noplots=True, project=tmp_path) == 0
    assert without_short_run_warnings(capsys.readouterr().err).splitlines() == [
        f"{model}: the loss weights box, cls, dfl have no effect; "
        "its losses are bbox_regression, classification"
    ]
    columns = read_results(tmp_path / "exp")[0].keys()
    assert {"train/bbox_regression", "train/classification"} <= columns
    assert "train/box" not in columns


def test_train_compares_the_learning_rate_with_the_plan_at_every_batch(tiny, tmp_path, monkeypatch):
    """Rates that depend on something else than the position are a bug, not a user error."""
    rates, factors = AnnealingLR._rates, [1.0]

    def rates_that_change(self, epoch, samples):
        return [lr * factors[-1] for lr in rates(self, epoch, samples)]

    monkeypatch.setattr(AnnealingLR, "_rates", rates_that_change)
    hyp = write_hyp(tmp_path, "optimizer: sgd\nscheduler: {name: constant, warmup_epoch: 1}\n")
    args = {"hyp": hyp, "data": tiny, "epochs": 3, "noplots": True, "noval": True}
    expected = r"AnnealingLR: epoch 1, batch 2: the learning rate of group 0 is .* was planned"
    with (
        AtStage("batch", lambda: factors.append(0.5), epoch=1, batch=2),
        pytest.raises(RuntimeError, match=expected),
    ):
        run_train(**args, project=tmp_path)


# ---------------------------------------------------------------------------- invalid input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hyp": "nowhere.yaml"}, "nowhere.yaml: file not found"),
        ({"data": "nowhere.yaml"}, "nowhere.yaml: file not found"),
        ({"model": "yolo-z"}, "--model yolo-z: unknown model"),
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": "many"}, "'many'"),
        ({"imgsz": 8}, "--imgsz"),
        ({"unknown": True}, "--unknown"),
        ({"device": "cuda:99"}, "--device cuda:99: not available"),
        ({"device": "toaster"}, "--device toaster: not available"),
        ({"save_every": "often"}, "'often'"),
        ({"save_every": -1}, "--save-every"),
        ({"sync_bn": True}, "--sync-bn"),
        ({"weights": "none.pt"}, "none.pt: cannot be read"),
    ],
    ids=lambda value: "-".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_train_reports_invalid_arguments_and_writes_nothing(
    options, message, tiny, tmp_path, capsys
):
    assert run_train(**{"data": tiny, "project": tmp_path / "runs"} | options) == 2
    assert_one_line_error(capsys.readouterr().err, message)
    assert not (tmp_path / "runs").exists()


def test_train_checks_the_whole_schedule_before_the_first_epoch(tiny, tmp_path, capsys):
    text = 'scheduler: {warmup_epoch: 1, lf: "lambda x, y: 0.5 - x / y"}\n'
    hyp = write_hyp(tmp_path, text)
    assert run_train(hyp=hyp, data=tiny, project=tmp_path / "runs") == 2
    message = f"{hyp}: scheduler: epoch 51: the learning rate would be"
    assert_one_line_error(capsys.readouterr().err, message, "not negative")
    assert not (tmp_path / "runs").exists()


def test_train_command_reports_an_unknown_key(tmp_path):
    hyp = write_hyp(tmp_path, "lr_0: 0.1\n")
    done = run_command("--hyp", hyp, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"train.py: {hyp}: unknown key 'lr_0' (did you mean 'lr0'?)\n"
    assert not (tmp_path / "runs").exists()


def test_train_help_names_every_argument():
    done = run_command("--help")
    assert done.returncode == 0
    for name in defaults():
        assert f"--{name.replace('_', '-')}" in done.stdout
