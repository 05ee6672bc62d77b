"""What a hyp file plans is what is followed, printed and drawn; each hyp file here trains."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import few_shapes
from PIL import Image
from preloaded import run_python

import train
from utils import plan as plan_command
from utils.errors import UserError
from utils.hyp import Hyp, load_hyp
from utils.plan import build_checked_scheduler, build_scheduler, check_lr, plan, turning_points
from utils.schedulers import (
    SCHEDULES,
    AnnealingLR,
    BatchWarmup,
    CosineAnnealingWarmbootingLR,
)

ROOT = Path(__file__).parents[1]
HYP_FILES = sorted(path.name for path in (ROOT / "hyp").glob("*.yaml"))


def fake_optimizer(lr=0.1):
    return SimpleNamespace(param_groups=[{"lr": lr}])


def build(block, epochs=10):
    """The scheduler of a hyp file's block and its messages, for epochs of 5 batches of 4."""
    return build_scheduler(Hyp(scheduler=block).scheduler, fake_optimizer(), epochs, 5, 4)


def build_checked(block, epochs, batch_sizes):
    hyp, size = Hyp(scheduler=block), max(batch_sizes)
    return build_checked_scheduler(
        hyp, Path("mine.yaml"), fake_optimizer(), epochs, batch_sizes, size
    )


def test_fractions_of_the_run_fit_any_length():
    for epochs, expected in ((300, [99, 198]), (100, [33, 66]), (50, [17, 33]), (10, [3, 7])):
        scheduler, messages = build({"steps": ["33%", "66%"]}, epochs)
        assert scheduler.steps == [2, *expected, epochs] and messages == []
    assert build({"steps": ["12.5%", 30], "warmup_epoch": 0}, 200)[0].steps == [0, 25, 30, 200]


@pytest.mark.parametrize(
    ("steps", "restarts", "message"),
    [
        (
            [5, 12],
            [5],
            "12 is skipped: it falls on epoch 12, but the warm-up ends at 2 and the run at 10",
        ),
        ([10, 5], [5], "10 is skipped: it falls on epoch 10, but the warm-up ends"),
        (["20%", 5], [5], "20% is skipped: it falls on epoch 2, but"),
        ([5, "50%"], [5], "50% is skipped: it falls on epoch 5, which has one already"),
        (["50%", 5], [5], "5 is skipped: it falls on epoch 5, which has one already"),
        ([5, 7, 5], [5, 7], "5 is skipped: it falls on epoch 5, which has one already"),
    ],
)
def test_a_skipped_restart_is_named(steps, restarts, message):
    block = {"steps": steps}
    scheduler, messages = build(block)
    assert scheduler.steps == [2, *restarts, 10]
    assert len(messages) == 1 and messages[0].startswith(f"scheduler: steps: {message}")
    assert block == {"steps": steps}
    _, _, messages = build_checked(block, 10, [4] * 5)
    assert len(messages) == 1 and messages[0].startswith(f"mine.yaml: scheduler: steps: {message}")


def test_a_run_that_ends_in_its_warm_up_is_reported():
    def messages(warmup, epochs):
        return build_checked({"warmup_epoch": warmup}, epochs, [4] * 5)[2]

    for warmup, epochs in ((10, 3), (3, 3)):
        assert messages(warmup, epochs) == [
            f"mine.yaml: scheduler: warmup_epoch {warmup}: the run has only 3 epochs, so the "
            "learning rate never gets to its peak"
        ]
    assert messages(2, 3) == []


def test_a_skipped_restart_returns_when_the_run_is_extended():
    scheduler, _ = build({"steps": [12, "50%", 5]}, 10)
    assert scheduler.steps == [2, 5, 10]
    scheduler.extend(20)
    assert scheduler.steps == [2, 5, 10, 12, 20]
    assert scheduler.steps == build({"steps": [12, "50%", 5]}, 20)[0].steps


def test_each_name_builds_its_schedule():
    arguments = {
        "steps": [4],
        "step_scale": 0.5,
        "eta_min": 0.3,
        "warmup_epoch": 1,
        "epoch_scale": 3.0,
        "lf": "lambda x, y: 1 - x / y",
        "per_batch": True,
    }
    scheduler, _ = build({"name": "cawb", **arguments})
    same = CosineAnnealingWarmbootingLR(fake_optimizer(), epochs=10, batchs=5, **arguments)
    assert isinstance(scheduler, CosineAnnealingWarmbootingLR)
    assert scheduler.state_dict() == same.state_dict()
    for name, formula in SCHEDULES.items():
        values = {
            "learning_rate_decay_a": 0.5,
            "learning_rate_decay_b": 2.0,
            "learning_rate_args": "10:1.0,20:0.5",
        }
        arguments = {key: values[key] for key in formula.arguments}
        scheduler, messages = build({"name": name, "warmup_epoch": 1, **arguments})
        same = AnnealingLR(
            fake_optimizer(), name, batch_size=4, batchs=5, warmup_epoch=1, **arguments
        )
        assert isinstance(scheduler, AnnealingLR) and messages == []
        assert scheduler.state_dict() == same.state_dict()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "exp", "learning_rate_decay_a": 0.5, "learning_rate_decay_b": 0.0}, "exp has no"),
        (
            {"name": "exp", "learning_rate_decay_a": 1e6, "learning_rate_decay_b": 1},
            "epoch 2: exp has no value at t=53",
        ),
        (
            {"name": "linear", "learning_rate_decay_a": 0.001, "learning_rate_decay_b": -1},
            "epoch 4: the learning rate would be.*negative",
        ),
        ({"name": "manual", "learning_rate_args": "90:1.0,100:-0.5"}, "epoch 4: .*negative"),
        ({"lf": "lambda x, y: 0.5 - x / y", "warmup_epoch": 0}, "epoch 6: .*negative"),
        ({"lf": "lambda x, y: 1 / (x - 3) ** 2", "warmup_epoch": 3}, "epoch 6: lf"),
    ],
)
def test_a_rate_without_a_value_is_found_before_the_run(block, message):
    with pytest.raises(UserError, match=f"^mine.yaml: scheduler: {message}"):
        build_checked(block, 10, [4, 5, 4, 5, 4])


def test_plan_names_the_epoch_of_a_rate_that_is_not_allowed():
    def planned(lf):
        scheduler = CosineAnnealingWarmbootingLR(fake_optimizer(1.0), epochs=6, batchs=2, lf=lf)
        return plan(scheduler, 6, [1, 1])

    with pytest.raises(ValueError, match="epoch 4"):
        planned("lambda x, y: 0.5 - x / y")
    with pytest.raises(ValueError, match="epoch 0"):
        planned("lambda x, y: 1 / (x - 3)")
    for bad in (math.inf, math.nan, -1e-9):
        with pytest.raises(ValueError, match="epoch 2: the learning rate would be"):
            planned(lambda x, y, bad=bad: bad if x == 2 else 1.0)


def test_a_rate_that_stays_at_zero_is_reported():
    block = {"name": "caffe_poly", "learning_rate_decay_a": 120, "learning_rate_decay_b": 1}
    _, _, messages = build_checked(block, 10, [20] * 2)
    assert messages == ["mine.yaml: scheduler: the learning rate is 0 from epoch 3 to the end"]
    _, _, messages = build_checked(block, 4, [15] * 2)
    assert messages == []


# ------------------------------------------------------------------ the followed rate


def follow(scheduler, curves, epochs, batches):
    for epoch in range(epochs):
        scheduler.step(epoch)
        for batch in range(batches):
            scheduler.step_batch()
            check_lr(scheduler, curves, epoch, batch)


@pytest.mark.parametrize(
    "block",
    [
        {"steps": [4, "60%"]},
        {"steps": [4], "per_batch": True},
        {"name": "pass_manual", "learning_rate_args": "1:1.0,4:0.5", "warmup_epoch": 1},
    ],
)
def test_check_lr_accepts_a_schedule_that_follows_its_plan(block):
    scheduler, curves, _ = build_checked(block, 6, [1] * 5)
    follow(scheduler, curves, 6, 5)


@pytest.mark.parametrize("warmup_epoch", [0, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_sample_count_schedule_is_planned_as_it_is_drawn_step_by_step(name, warmup_epoch):
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}, {"lr": 0.03}, {"lr": 0.1}])
    arguments = {"learning_rate_decay_a": 0.999, "learning_rate_decay_b": 0.7}
    if name in ("caffe_poly", "linear"):
        arguments["learning_rate_decay_a"] = {"caffe_poly": 60, "linear": 1e-4}[name]
        arguments["learning_rate_decay_b"] = {"caffe_poly": 0.7, "linear": 0.02}[name]
    milestones = "3:1.0,5:0.3" if name == "pass_manual" else "20:1.0,40:0.3"
    sizes, epochs = [4, 5, 4], 6
    scheduler = AnnealingLR(
        optimizer,
        name,
        **arguments,
        learning_rate_args=milestones,
        batchs=len(sizes),
        warmup_epoch=warmup_epoch,
    )
    expected, samples = [], 0
    for epoch in range(epochs):
        for batch, size in enumerate(sizes):
            expected.append(scheduler.lr_at(epoch, batch, samples))
            samples += size
    curves = plan(scheduler, epochs, sizes)
    assert [list(curve) for curve in curves] == [list(lrs) for lrs in zip(*expected, strict=True)]
    assert (len(set(curves[0])) > 1) == (name != "constant" or warmup_epoch > 0)


def test_the_plan_of_a_subclass_uses_its_own_formula():
    class Halved(AnnealingLR):
        def _rates(self, epoch, samples):
            return [lr / 2 for lr in super()._rates(epoch, samples)]

    arguments = {"learning_rate_decay_a": 0.1, "learning_rate_decay_b": 0.5, "batchs": 3}
    whole = AnnealingLR(fake_optimizer(), "poly", **arguments)
    halved = Halved(fake_optimizer(), "poly", **arguments)
    [curve], [half] = plan(whole, 2, [1] * 3), plan(halved, 2, [1] * 3)
    assert list(half) == [lr / 2 for lr in curve]
    follow(halved, [half], 2, 3)


def test_check_lr_names_a_schedule_whose_plan_is_wrong():
    class Forgetful(BatchWarmup):
        """Depends on what happened before, so that its plan is another curve."""

        calls = 0

        def _rates(self, epoch, samples):
            Forgetful.calls += 1
            return [base / (1 + Forgetful.calls) for base in self.base_lr]

    scheduler = Forgetful(fake_optimizer(), epochs=2, batchs=3)
    curves = plan(scheduler, 2, [1] * 3)
    message = (
        r"^Forgetful: epoch 0, batch 0: the learning rate of group 0 is 0\.025, "
        r"but 0\.05 was planned"
    )
    with pytest.raises(RuntimeError, match=message):
        follow(scheduler, curves, 2, 3)

    class Staircase(BatchWarmup):
        """Sets its rate in every batch, but does not say so."""

        def _rates(self, epoch, samples):
            return [base / (1 + samples) for base in self.base_lr]

        def step_batch(self, samples=None):
            lr = self._set(self._rates(0, self.num_samples_processed))
            super().step_batch(samples)
            return lr

    scheduler = Staircase(fake_optimizer(), epochs=2, batchs=3)
    curves = plan(scheduler, 2, [1] * 3)
    with pytest.raises(RuntimeError, match=r"^Staircase: epoch 0, batch 1: .*changes_every_batch"):
        follow(scheduler, curves, 2, 3)


# ------------------------------------------------------------------ the command


def run_plan(*arguments, cwd=ROOT):
    return run_python(["-m", "utils.plan", *arguments], cwd=cwd)


def test_the_command_prints_turning_points_and_draws(tmp_path):
    (tmp_path / "short.yaml").write_text(
        "lr0: 0.01\nscheduler: {warmup_epoch: 0, steps: [400], eta_min: 0}\n"
    )
    size = ["--epochs", 300, "--batches", 100]
    files = ["--hyp", "cawb.yaml", "--compare", tmp_path / "short.yaml", "exp.yaml"]
    done = run_plan(*files, *size, "--plot", tmp_path / "lr.png")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "short.yaml: scheduler: steps: 400 is skipped" in done.stderr
    first, second, third = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)[1:]
    assert first.startswith("cawb.yaml: cawb, epochs: 300, batches per epoch: 100, batch size: 16")
    assert third.startswith("exp.yaml: exp")

    # Restarts after a third (99) and two thirds (198) of the run, segments 4 epochs longer than
    # they are, floor 0.35, warm-up 3.
    def cosine(x, y):
        return 0.35 + 0.65 * (1 + math.cos(math.pi * x / y)) / 2

    expected = [
        ("start", 0, 0, 0.0, None),
        ("peak", 3, 0, 1.0, 299 / 300),
        ("restart", 100, 0, 0.7 * cosine(1, 103), cosine(96, 100)),
        ("restart", 199, 0, 0.49 * cosine(1, 102), 0.7 * cosine(99, 103)),
        ("last", 299, 99, 0.49 * cosine(101, 102), 0.49 * cosine(101, 102)),
    ]
    lines = [line.split() for line in first.splitlines()[2:]]
    for line, (point, epoch, batch, factor, factor_before) in zip(lines, expected, strict=True):
        assert line[0] == point and (int(line[1]), int(line[2])) == (epoch, batch)
        factors = [factor] if factor_before is None else [factor, factor_before]
        lrs = [float(lr) for lr in line[3:]]
        assert lrs == pytest.approx([0.002 * f for f in factors], rel=1e-5)
    assert [line.split()[0] for line in second.splitlines()[2:]] == ["start", "peak", "last"]
    image = Image.open(tmp_path / "lr.png").convert("RGB")
    blue, orange, green = (31, 119, 180), (255, 127, 14), (44, 160, 44)
    colors = {color for _, color in image.getcolors(image.width * image.height)}
    assert image.width > 800 and {blue, orange, green} <= colors


def test_turning_points_of_a_schedule_per_batch():
    """The first batch after the boundary restarts, not the next epoch."""
    block = {"steps": [4, "75%"], "warmup_epoch": 1, "per_batch": True}
    scheduler, [curve], _ = build_checked(block, 10, [1] * 5)
    points = turning_points(scheduler, curve, 5)
    assert points == [("start", 0), ("peak", 5), ("restart", 21), ("restart", 41), ("last", 49)]
    for name, i in points:
        if name == "restart":
            assert curve[i] > curve[i - 1] and curve[i] > curve[i + 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hyp", "nowhere.yaml"], "nowhere.yaml"),
        (["--epochs", "0"], "--epochs"),
        (["--batches", "x"], "--batches"),
        (["--color", "red"], "--color"),
        (["--plot", "no/such/dir/lr.png"], "--plot"),
        (["--plot", "lr.doc"], "--plot"),
        (["--compare", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_the_command_reports_an_error_in_one_sentence(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert plan_command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m utils.plan: ") and message in error
    assert error.count("\n") == 1 and "Traceback" not in error


# ------------------------------------------------------------------ in another repository


USE = """
import sys
import torch
with_torch = set(sys.modules)
from {module} import CosineAnnealingWarmbootingLR
new = {{name.partition('.')[0] for name in set(sys.modules) - with_torch}}
assert new <= {{'utils', 'lr', *sys.stdlib_module_names}}, new
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
scheduler = CosineAnnealingWarmbootingLR(optimizer, 10, steps=['50%'], lf={lf})
print(scheduler.step(0), scheduler.step(5), scheduler.step(6))
"""


def run_use(directory, **names):
    setup = f"import sys; sys.path.insert(0, {str(directory)!r})"
    command = [sys.executable, "-I", "-c", setup + USE.format(**names)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]


def test_schedulers_can_be_copied_with_lf(tmp_path):
    """Both files import nothing but torch and the standard library."""
    (tmp_path / "utils").mkdir()
    for name in ("schedulers.py", "lf.py"):
        shutil.copy(ROOT / "utils" / name, tmp_path / "utils")
    lrs = run_use(tmp_path, module="utils.schedulers", lf="'lambda x, y: 1 - x / y'")
    assert lrs == pytest.approx([0.1, 0.1 * (1 - 5 / 6), 0.1 * 0.8 * (1 - 1 / 5)])


def test_schedulers_can_be_copied_without_lf(tmp_path):
    """One file is enough, unless an lf is given as a text."""
    shutil.copy(ROOT / "utils" / "schedulers.py", tmp_path / "lr.py")
    lrs = run_use(tmp_path, module="lr", lf="lambda x, y: 1 - x / y")
    assert lrs == pytest.approx([0.1, 0.1 * (1 - 5 / 6), 0.1 * 0.8 * (1 - 1 / 5)])


# ------------------------------------------------------------------ a fork's schedules


FORK_CLASS = '''
class Triangle(BatchWarmup):
    """Linearly up to the peak at a fraction of the run, and down to a floor."""

    changes_every_batch = True

    def __init__(self, optimizer: Any, epochs: int, batchs: int, peak: float = 0.5, floor: float = 0.0):
        super().__init__(optimizer, epochs, batchs)
        self.peak = peak
        self.floor = floor

    def _rates(self, epoch: float, samples: int) -> list[float]:
        x = epoch / self.epochs
        height = x / self.peak if x < self.peak else (1 - x) / (1 - self.peak)
        return [base * (self.floor + (1 - self.floor) * height) for base in self.base_lr]


'''  # noqa: E501


def copy_for_a_fork(directory, old, new):
    """Copy utils/ and hyp/ and replace `old`, which is in schedulers.py once."""
    for name in ("utils", "hyp"):
        shutil.copytree(ROOT / name, directory / name)
    path = directory / "utils" / "schedulers.py"
    source = path.read_text()
    assert source.count(old) == 1
    path.write_text(source.replace(old, new))


def test_a_class_in_the_registry_is_usable_in_a_hyp_file(tmp_path):
    table = "SCHEDULERS: dict[str, type[BatchWarmup]] = {\n"
    copy_for_a_fork(tmp_path, table, f'{FORK_CLASS}{table}    "triangle": Triangle,\n')
    (tmp_path / "mine.yaml").write_text("lr0: 0.1\nscheduler: {name: triangle, peak: 0.2}\n")
    done = run_plan("--hyp", "mine.yaml", "--epochs", 10, "--batches", 4, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[2:]]
    assert lines[1] == ["peak", "2", "0", "0.1", "0.0875"]
    assert lines[2] == ["last", "9", "3", "0.003125", "0.00625"]
    for block, message in (
        ("{name: triangle, peak: high}", "scheduler: peak: found 'high'"),
        ("{name: triangle, steps: [3]}", "unknown key 'scheduler: steps' (known keys: name, peak"),
    ):
        (tmp_path / "mine.yaml").write_text(f"scheduler: {block}\n")
        done = run_plan("--hyp", "mine.yaml", cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr


def test_a_formula_as_in_the_readme_is_usable_in_a_hyp_file(tmp_path):
    """One function and one line, read from the README's own text; then a hyp file names it."""
    readme = (ROOT / "README.md").read_text()
    function = re.search(r"^ {6}(def wave.*?\n)\n", readme, re.MULTILINE | re.DOTALL)
    line = re.search(r"^ {6}( +\"wave\": .*,)$", readme, re.MULTILINE)
    block = re.search(r"^ {6}(scheduler: \{name: wave.*)$", readme, re.MULTILINE)
    assert function and line and block
    body = re.sub(r"^ {6}", "", function[1], flags=re.MULTILINE)
    table = "SCHEDULES: dict[str, Formula] = {\n"
    copy_for_a_fork(tmp_path, table, f"{body}\n\n{table}{line[1]}\n")
    (tmp_path / "wave.yaml").write_text(f"lr0: 0.1\n{block[1]}\n")
    size = ["--epochs", 10, "--batches", 100, "--batch-size", 100]
    done = run_plan("--hyp", "wave.yaml", *size, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wave.yaml: wave, epochs: 10")
    done = run_plan("--hyp", tmp_path / "wave.yaml", *size)  # of this repository
    assert done.returncode == 2 and "name: found 'wave', allowed are cawb" in done.stderr


# ------------------------------------------------------------------ the hyp files


@pytest.mark.parametrize("name", HYP_FILES)
def test_each_hyp_file_trains_an_epoch(name, tmp_path):
    """On a part of the built-in dataset: the rates are those of the plan for its images."""
    data = few_shapes(tmp_path, train=80, val=8)
    size = ["--data", data, "--epochs", "1", "--imgsz", "64", "--batch-size", "16"]
    arguments = ["--hyp", name, *size, "--noplots", "--project", tmp_path]
    assert train.main([*map(str, arguments), "--device", "cpu", "--patience", "0"]) == 0
    assert (tmp_path / "exp" / "weights" / "last.pt").exists()
    hyp = load_hyp(ROOT / "hyp" / name)
    # 80 images in batches of 16 are 5 batches, all of them in the warm-up.
    assert hyp.scheduler.warmup_epoch >= 1
    header, row = (tmp_path / "exp" / "results.csv").read_text().splitlines()
    lr = dict(zip(header.split(","), row.split(","), strict=True))["lr/0"]
    assert float(lr) == pytest.approx(hyp.lr0 * 4 / 5 / hyp.scheduler.warmup_epoch, rel=1e-12)


@pytest.mark.parametrize("name", HYP_FILES)
def test_each_hyp_file_ends_low_on_the_built_in_dataset(name):
    """As its comments say: for 400 images and 16 epochs all but `constant` end well below the peak,
    above 0."""
    hyp = load_hyp(ROOT / "hyp" / name)
    _, [curve], messages = build_checked_scheduler(
        hyp, Path(name), fake_optimizer(hyp.lr0), 16, [4] * 100, 4
    )
    assert messages == []
    assert max(curve) == pytest.approx(hyp.lr0, rel=0.011)
    if name == "constant.yaml":
        assert curve[-1] == hyp.lr0
    else:
        assert 0 < curve[-1] < 0.25 * hyp.lr0
