"""Whole runs as a user starts them: what a run folder holds, what is learned, and what a mistake gets."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import rows, same, weights, write_tiny

import train

ROOT = Path(__file__).parents[1]
QUICK = ["--imgsz", "64", "--batch-size", "4", "--workers", "0", "--device", "cpu"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]


def run(*arguments: object) -> None:
    """A run in this process, which must succeed."""
    assert train.main([*map(str, arguments)]) == 0


def test_a_run_and_its_folder(tiny, tmp_path):
    hyp = tmp_path / "mine.yaml"
    hyp.write_text(
        "lr0: 0.004\nclose_mosaic: 1\nscheduler: {warmup_epoch: 1, steps: [2], eta_min: 0.1}\n"
    )
    arguments = [
        "--hyp",
        hyp,
        "--data",
        tiny,
        "--model",
        "yolo-n",
        "--epochs",
        4,
        *QUICK,
        "--project",
        tmp_path / "runs",
    ]
    done = subprocess.run(command(*arguments), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "exp"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "args.yaml", "hyp.yaml", "results.csv", "lr.png", "results.png", "train_batch.jpg", "val_batch.jpg",
        "report.html", "weights/best.pt", "weights/last.pt",
    }  # fmt: skip
    assert all((folder / name).stat().st_size > 0 for name in files)
    used = yaml.safe_load((folder / "args.yaml").read_text())
    assert (used["epochs"], used["imgsz"], used["batch_size"], used["seed"]) == (4, 64, 4, 0)
    assert yaml.safe_load((folder / "hyp.yaml").read_text())["scheduler"]["steps"] == [2]
    assert "class0" in done.stdout and "class1" in done.stdout  # the final table

    table = rows(folder)
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3"]
    for key in ("train/box", "train/cls", "train/dfl", "metrics/precision", "metrics/recall", "metrics/mAP50", "metrics/mAP75",
                "metrics/mAP50-95", "seconds"):  # fmt: skip
        assert all(float(row[key]) >= 0 for row in table), key
    # The rates are those of each epoch's last batch: 12 pictures by 4 are 3 batches, the last of the warm-up's has 2 behind it;
    # then the cosine from epoch 1, 1 epoch long and stretched by 1, and after epoch 2 booted again at 0.8 of the peak, 2 long.
    expected = [0.004 * 2 / 3, 0.004, 0.004 * 0.55, 0.004 * 0.8 * 0.55]
    assert [float(row["lr/0"]) for row in table] == pytest.approx(expected, rel=1e-12)
    assert all(row["lr/1"] == row["lr/0"] for row in table)

    again = train.main(
        [
            *map(str, arguments[:-4]),
            "--noplots",
            "--noval",
            "--project",
            str(tmp_path / "runs"),
            "--epochs",
            "2",
        ]
    )
    assert again == 0
    second = tmp_path / "runs" / "exp2"
    assert not list(second.glob("*.png")) and not list(second.glob("*.jpg"))
    assert [row["metrics/mAP50"] == "" for row in rows(second)] == [True, False]


def test_samples_are_counted_as_they_are(tiny, tmp_path, capsys):
    """12 pictures by 5 are 3 batches of 4: before an epoch's last batch there are its first 8 and 12 of each epoch before."""
    (tmp_path / "h.yaml").write_text(
        "lr0: 0.004\nscheduler: {name: poly, warmup_epoch: 1, learning_rate_decay_a: 0.1, learning_rate_decay_b: 0.5}\n"
    )
    size = ["--imgsz", 64, "--batch-size", 5, "--device", "cpu", "--noval", "--noplots"]
    run(
        "--hyp",
        tmp_path / "h.yaml",
        "--data",
        tiny,
        "--epochs",
        3,
        *size,
        "--project",
        tmp_path / "runs",
    )
    expected = [0.004 * 2 / 3, *(0.004 / (1 + 0.1 * t) ** 0.5 for t in (20, 32))]
    assert [float(row["lr/0"]) for row in rows(tmp_path / "runs" / "exp")] == pytest.approx(
        expected, rel=1e-12
    )
    assert weights(tmp_path / "runs" / "exp")["scheduler"]["num_samples_processed"] == 36

    (tmp_path / "h.yaml").write_text("scheduler: {steps: [50%, 7]}\n")
    run(
        "--hyp",
        tmp_path / "h.yaml",
        "--data",
        tiny,
        "--epochs",
        1,
        *size,
        "--project",
        tmp_path / "runs",
    )
    error = capsys.readouterr().err
    assert (
        error.count("is left out") == 2
        and "h.yaml: scheduler: steps: 50% is left out: it falls on epoch 1" in error
    )


def test_weights_of_an_earlier_run_are_taken_where_they_fit(tiny, tmp_path, capsys):
    run("--data", tiny, "--epochs", 1, *QUICK, "--noplots", "--project", tmp_path / "a")
    capsys.readouterr()
    one = write_tiny(tmp_path / "one", classes=1)
    best = tmp_path / "a" / "exp" / "weights" / "best.pt"
    run(
        "--data",
        one,
        "--epochs",
        1,
        *QUICK,
        "--noplots",
        "--project",
        tmp_path / "b",
        "--weights",
        best,
    )
    tensors = len(weights(tmp_path / "a" / "exp")["average"])
    # a class less changes the last convolution of three class branches: weight and bias each
    assert f"{tensors - 6} of the model's {tensors} tensors" in capsys.readouterr().out


def test_seeds_and_repetition(tiny, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(
            "--data",
            tiny,
            "--epochs",
            1,
            *QUICK,
            "--noplots",
            "--project",
            tmp_path,
            "--name",
            name,
            "--seed",
            seed,
        )
    a, b, c = (weights(tmp_path / name)["model"] for name in "abc")
    assert same(a, b) and not same(a, c)
    run(
        "--data",
        tiny,
        "--epochs",
        1,
        *QUICK,
        "--noplots",
        "--project",
        tmp_path,
        "--name",
        "c",
        "--exist-ok",
    )
    assert same(weights(tmp_path / "c")["model"], a) and not (tmp_path / "c2").exists()


def test_it_learns_one_class_on_real_images(bccd, tmp_path):
    """White blood cells alone: 40 of the real pictures, a hundred steps."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    labels = sorted((bccd / "labels" / "train").glob("*.txt"))
    for path in [path for path in labels if "\n1 " in "\n" + path.read_text()][:40]:
        lines = [
            f"0{line[1:]}\n" for line in path.read_text().splitlines() if line.startswith("1 ")
        ]
        (tmp_path / "labels" / path.name).write_text("".join(lines))
        (tmp_path / "images" / f"{path.stem}.jpg").symlink_to(
            bccd / "images" / "train" / f"{path.stem}.jpg"
        )
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [WBC]\n")
    size = ["--epochs", 20, "--imgsz", 96, "--batch-size", 8, "--device", "cpu"]
    run(
        "--data",
        tmp_path / "data.yaml",
        *size,
        "--noplots",
        "--noval",
        "--project",
        tmp_path / "runs",
    )
    assert weights(tmp_path / "runs" / "exp")["best"] > 0.1


def test_patience_stops_a_run(tiny, tmp_path, capsys):
    (tmp_path / "h.yaml").write_text("lr0: 1e-9\nscheduler: {warmup_epoch: 0}\n")
    run(
        "--hyp",
        tmp_path / "h.yaml",
        "--data",
        tiny,
        "--epochs",
        20,
        *QUICK,
        "--noplots",
        "--project",
        tmp_path,
        "--patience",
        2,
    )
    assert "stopped" in capsys.readouterr().out
    assert len(rows(tmp_path / "exp")) < 20 and weights(tmp_path / "exp")["finished"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hyp", "nowhere.yaml"], "nowhere.yaml"),
        (["--data", "nowhere.yaml"], "nowhere.yaml"),
        (["--model", "yolo-z"], "yolo-z"),
        (["--epochs", "0"], "--epochs"),
        (["--batch-size", "many"], "many"),
        (["--imgsz", "8"], "--imgsz"),
        (["--unknown"], "--unknown"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "toaster"], "toaster"),
        (["--save-every", "often"], "often"),
        (["--save-every", "-1"], "--save-every"),
        (["--sync-bn"], "--sync-bn"),
        (["--weights", "none.pt"], "none.pt"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(arguments, says, tiny, tmp_path, capsys):
    project = tmp_path / "runs"
    assert (
        train.main(["--data", str(tiny), "--project", str(project), *QUICK[:-2], *arguments]) == 2
    )
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and error.startswith("train.py: ")
    assert not project.exists()


def test_a_rate_that_cannot_be_is_found_before_the_first_epoch(tiny, tmp_path, capsys):
    (tmp_path / "h.yaml").write_text(
        'scheduler: {warmup_epoch: 1, lf: "lambda x, y: 0.5 - x / y"}\n'
    )
    assert (
        train.main(
            [
                "--hyp",
                str(tmp_path / "h.yaml"),
                "--data",
                str(tiny),
                "--project",
                str(tmp_path / "runs"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "h.yaml: scheduler: epoch 51" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_mistake_from_the_command_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("lr_0: 0.1\n")
    done = subprocess.run(
        command("--hyp", tmp_path / "bad.yaml"), capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr
        == f"train.py: {tmp_path / 'bad.yaml'}: unknown key 'lr_0'; did you mean 'lr0'?\n"
    )


def test_help_names_every_argument():
    done = subprocess.run(command("--help"), capture_output=True, text=True)
    assert done.returncode == 0
    for name in train.DEFAULTS:
        assert f"--{name.replace('_', '-')}" in done.stdout
