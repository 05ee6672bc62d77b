"""What a hyp file plans is what is followed, printed and drawn; each ready hyp file trains."""

import math
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import few_shapes
from PIL import Image

import train
from utils import plan as plan_command
from utils.errors import UserError
from utils.hyp import Hyp, load_hyp
from utils.plan import build_checked_scheduler
from utils.schedulers import AnnealingLR, CosineAnnealingWarmbootingLR, build_scheduler

ROOT = Path(__file__).parents[1]
READY = sorted(path.name for path in (ROOT / "hyp").glob("*.yaml"))


def stand_in(lr=0.1):
    return SimpleNamespace(param_groups=[{"lr": lr}])


def built(block, epochs=10, batches=5, batch_size=4):
    return build_scheduler(block, stand_in(), epochs, batches, batch_size)


def test_shares_of_the_run_fit_any_length():
    for epochs, expected in ((300, [99, 198]), (100, [33, 66]), (50, [17, 33]), (10, [3, 7])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler = built({"name": "cawb", "steps": ["33%", "66%"], "warmup_epoch": 2}, epochs)
        assert scheduler.steps == [2, *expected, epochs]
    assert built({"name": "cawb", "steps": ["12.5%", 30]}, 200).steps == [0, 25, 30, 200]


@pytest.mark.parametrize(
    ("steps", "kept", "says"),
    [
        ([5, 12], [5], "12 is left out: it falls on epoch 12.*warm-up ends at 2 and the run at 10"),
        ([10, 5], [5], "10 is left out"),
        (["20%", 5], [5], "20% is left out: it falls on epoch 2"),
        ([5, "50%"], [5], "50% is left out: it falls on epoch 5, which has one already"),
    ],
)
def test_a_restart_outside_the_run_is_left_out_and_named(steps, kept, says):
    with pytest.warns(UserWarning, match=says):
        scheduler = built({"name": "cawb", "steps": steps, "warmup_epoch": 2})
    assert scheduler.steps == [2, *kept, 10]
    assert len(steps) == 2  # the list that was given is as it was


def test_each_name_builds_its_schedule():
    cawb = {
        "steps": [4],
        "step_scale": 0.5,
        "eta_min": 0.2,
        "warmup_epoch": 1,
        "epoch_scale": 3.0,
        "lf": None,
    }
    scheduler = built({"name": "cawb", **cawb})
    same = CosineAnnealingWarmbootingLR(stand_in(), epochs=10, batchs=5, **cawb)
    assert (
        isinstance(scheduler, CosineAnnealingWarmbootingLR)
        and scheduler.state_dict() == same.state_dict()
    )
    two = {"learning_rate_decay_a": 0.5, "learning_rate_decay_b": 2.0}
    for name in (
        "constant",
        "poly",
        "caffe_poly",
        "exp",
        "discexp",
        "linear",
        "manual",
        "pass_manual",
    ):
        own = (
            {}
            if name == "constant"
            else {"learning_rate_args": "10:1.0,20:0.5"}
            if "manual" in name
            else two
        )
        scheduler = built({"name": name, "warmup_epoch": 1, **own})
        same = AnnealingLR(stand_in(), name, batch_size=4, batchs=5, warmup_epoch=1, **own)
        assert isinstance(scheduler, AnnealingLR) and scheduler.state_dict() == same.state_dict()


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"name": "cosine"}, "name: found 'cosine', allowed are cawb, constant"),
        (
            {"name": "poly", "steps": [3]},
            "steps: is no argument of poly, whose are warmup_epoch, learning_rate_decay_a",
        ),
        (
            {"name": "cawb", "learning_rate_decay_a": 1.0},
            "learning_rate_decay_a: is no argument of cawb",
        ),
        ({"name": "cawb", "epochs": 3}, "epochs"),
        ({"name": "cawb", "steps": ["3"]}, "found '3'"),
        (
            {"name": "exp", "learning_rate_decay_a": 0.5, "learning_rate_decay_b": 0.0},
            "scheduler: exp",
        ),
    ],
)
def test_a_block_that_gives_no_schedule(block, says):
    with pytest.raises(ValueError, match=says):
        built(block)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (
            {"name": "exp", "learning_rate_decay_a": 1e6, "learning_rate_decay_b": 1},
            "epoch 2: exp has no value at t=53",
        ),
        (
            {"name": "linear", "learning_rate_decay_a": 0.001, "learning_rate_decay_b": -1},
            "epoch 4: the rate would be.*negative",
        ),
        ({"name": "manual", "learning_rate_args": "90:1.0,100:-0.5"}, "epoch 4: .*negative"),
        ({"lf": "lambda x, y: 0.5 - x / y", "warmup_epoch": 0}, "epoch 6: .*negative"),
        ({"lf": "lambda x, y: 1 / (x - 3) ** 2", "warmup_epoch": 3}, "epoch 6: lf"),
    ],
)
def test_a_rate_that_cannot_be_is_found_before_the_run(block, says):
    with pytest.raises(UserError, match=f"^mine.yaml: scheduler: {says}"):
        build_checked_scheduler(
            Hyp(scheduler=block), Path("mine.yaml"), stand_in(), 10, [4, 5, 4, 5, 4], 5
        )


def test_a_rate_that_stays_at_zero_is_said():
    block = {"name": "caffe_poly", "learning_rate_decay_a": 120, "learning_rate_decay_b": 1}
    _, _, notes = build_checked_scheduler(
        Hyp(scheduler=block), Path("mine.yaml"), stand_in(), 10, [20] * 2, 20
    )
    assert notes == ["mine.yaml: scheduler: the rate is 0 from epoch 3 to the end"]
    _, _, notes = build_checked_scheduler(
        Hyp(scheduler=block), Path("mine.yaml"), stand_in(), 4, [15] * 2, 15
    )
    assert notes == []


def command(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "utils.schedulers", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_the_command_prints_the_turning_points_and_draws(tmp_path):
    (tmp_path / "short.yaml").write_text(
        "lr0: 0.01\nscheduler: {warmup_epoch: 0, steps: [400], eta_min: 0}\n"
    )
    arguments = [
        "--hyp",
        "cawb.yaml",
        "--epochs",
        300,
        "--batches",
        100,
        "--compare",
        tmp_path / "short.yaml",
        "exp.yaml",
    ]
    done = command(*arguments, "--plot", tmp_path / "lr.png")
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("\n") == 1
        and "short.yaml: scheduler: steps: 400 is left out" in done.stderr
    )
    first, second, third = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)[1:]
    assert first.startswith("cawb.yaml: cawb, 300 epochs of 100 batches") and third.startswith(
        "exp.yaml: exp"
    )
    points = [line.split() for line in first.splitlines()[2:]]

    # Restarts after a third (99) and two thirds (198) of the run; segments 4 longer than they are, floor 0.35, warm-up 3.
    def cosine(x, y):
        return 0.35 + 0.65 * (1 + math.cos(math.pi * x / y)) / 2

    expected = [
        ("start", 0, 0, 0.0, None),
        ("peak", 3, 0, 1.0, 299 / 300),
        ("restart", 100, 0, 0.7 * cosine(1, 103), cosine(96, 100)),
        ("restart", 199, 0, 0.49 * cosine(1, 102), 0.7 * cosine(99, 103)),
        ("last", 299, 99, 0.49 * cosine(101, 102), 0.49 * cosine(101, 102)),
    ]
    assert len(points) == len(expected)
    for (what, epoch, batch, rate, *before), (name, at, inside, share, share_before) in zip(
        points, expected, strict=True
    ):
        assert (what, int(epoch), int(batch)) == (name, at, inside)
        assert float(rate) == pytest.approx(0.002 * share, rel=1e-5)
        assert [float(b) for b in before] == (
            [] if share_before is None else [pytest.approx(0.002 * share_before, rel=1e-5)]
        )
    assert [line.split()[0] for line in second.splitlines()[2:]] == ["start", "peak", "last"]
    picture = Image.open(tmp_path / "lr.png").convert("RGB")
    blue, orange, green = ((31, 119, 180), (255, 127, 14), (44, 160, 44))
    colours = {colour for _, colour in picture.getcolors(picture.width * picture.height)}
    assert picture.width > 800 and {blue, orange, green} <= colours


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hyp", "nowhere.yaml"], "nowhere.yaml"), (["--epochs", "0"], "--epochs"), (["--batches", "x"], "--batches"),
        (["--colour", "red"], "--colour"), (["--plot", "no/such/folder/lr.png"], "--plot"), (["--plot", "lr.doc"], "--plot"),
        (["--compare", "nowhere.yaml"], "nowhere.yaml"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan_command.main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "Traceback" not in error


def test_the_file_alone_is_enough_in_another_repository(tmp_path):
    """schedulers.py is copied, and imports nothing but torch and the standard library."""
    shutil.copy(ROOT / "utils" / "schedulers.py", tmp_path / "lr.py")
    (tmp_path / "own.py").write_text(
        "import sys\n"
        "allowed = {'torch', 'lr', *sys.stdlib_module_names}\n"
        "import torch\n"
        "with_torch = set(sys.modules)\n"
        "import lr\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - with_torch}\n"
        "assert new <= allowed, new - allowed\n"
        "optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)\n"
        "scheduler = lr.build_scheduler({'name': 'cawb', 'steps': ['50%']}, optimizer, 10, 5, 4)\n"
        "print(scheduler.step(0), len(lr.plan(scheduler, 10, [4] * 5)[0]))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import own"],
                          capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0.1", "50"]


def test_a_schedule_of_ones_own_as_the_readme_has_it(tmp_path):
    """One function and one line, taken from the README's own text; then a hyp file names it."""
    readme = (ROOT / "README.md").read_text()
    function = re.search(r"^ {6}(def wave.*?\n)\n", readme, re.MULTILINE | re.DOTALL)
    line = re.search(r"^ {6}( +\"wave\": wave,)$", readme, re.MULTILINE)
    block = re.search(r"^ {6}(scheduler: \{name: wave.*)$", readme, re.MULTILINE)
    assert function and line and block
    for name in ("utils", "hyp"):
        shutil.copytree(ROOT / name, tmp_path / name)
    path = tmp_path / "utils" / "schedulers.py"
    text = path.read_text()
    start = "SCHEDULES: dict[str, Callable[..., float]] = {\n"
    assert text.count(start) == 1
    body = re.sub(r"^ {6}", "", function[1], flags=re.MULTILINE)
    path.write_text(text.replace(start, f"{body}\n\n{start}{line[1]}\n"))
    (tmp_path / "wave.yaml").write_text(f"lr0: 0.1\n{block[1]}\n")
    done = command(
        "--hyp", "wave.yaml", "--epochs", 10, "--batches", 100, "--batch-size", 100, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wave.yaml: wave, 10 epochs")
    refused = command("--hyp", "wave.yaml", "--epochs", 10)
    assert refused.returncode == 2


@pytest.mark.parametrize("name", READY)
def test_each_ready_hyp_file_trains_an_epoch(name, tmp_path):
    """Of some of the built-in data, small: the rates are those of the plan for the pictures that there are."""
    data = few_shapes(tmp_path, train=80, val=8)
    size = ["--data", data, "--epochs", "1", "--imgsz", "64", "--batch-size", "16"]
    arguments = ["--hyp", name, *size, "--noplots", "--project", tmp_path]
    assert train.main([*map(str, arguments), "--device", "cpu", "--patience", "0"]) == 0
    assert (tmp_path / "exp" / "weights" / "last.pt").exists()
    hyp = load_hyp(ROOT / "hyp" / name)
    # 80 pictures by 16 are 5 batches, all of them inside the warm-up.
    assert hyp.scheduler.warmup_epoch >= 1
    row = (tmp_path / "exp" / "results.csv").read_text().splitlines()
    rate = dict(zip(row[0].split(","), row[1].split(","), strict=True))["lr/0"]
    assert float(rate) == pytest.approx(hyp.lr0 * 4 / 5 / hyp.scheduler.warmup_epoch, rel=1e-12)


@pytest.mark.parametrize("name", READY)
def test_each_ready_hyp_file_ends_low_on_the_built_in_data(name):
    """What the comments promise: made for 400 pictures and 16 epochs, all but `constant` end well below their peak, above 0."""
    hyp = load_hyp(ROOT / "hyp" / name)
    _, [curve], _ = build_checked_scheduler(hyp, Path(name), stand_in(hyp.lr0), 16, [4] * 100, 4)
    assert max(curve) == pytest.approx(hyp.lr0, rel=0.011)
    assert curve[-1] > 0 and (
        curve[-1] == hyp.lr0 if name == "constant.yaml" else curve[-1] < 0.25 * hyp.lr0
    )
