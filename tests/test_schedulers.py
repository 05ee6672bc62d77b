"""The schedules give the golden rates, can be picked up anywhere, and an `lf` text can do nothing but arithmetic."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from utils.schedulers import CosineAnnealingWarmbootingLR, parse_lf, plan

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "cawb.json"
LF_COSINE = "lambda x, y: (((1 + math.cos(x * math.pi / y)) / 2) ** 1.0) * 0.65 + 0.35"


def stand_in(*rates):
    """Not an optimizer, but all that a schedule may ask of one."""
    return SimpleNamespace(param_groups=[{"lr": lr} for lr in rates])


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def build(case):
    arguments = ("epochs", "steps", "step_scale", "eta_min", "warmup_epoch", "epoch_scale", "batchs", "lf")
    optimizer = stand_in(*case["base_lr"])
    return optimizer, CosineAnnealingWarmbootingLR(optimizer, **{name: case[name] for name in arguments})


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"golden learning rates are not at {GOLDEN}")
def test_golden_rates():
    cases = json.loads(GOLDEN.read_text())
    assert cases
    for case in cases:
        optimizer, scheduler = build(case)
        scheduler.last_epoch = case["last_epoch"]
        for expected in case["step"]:
            first = scheduler.step()
            assert rates(optimizer) == pytest.approx(expected, rel=1e-12)
            assert first == rates(optimizer)[0]

        optimizer, scheduler = build(case)
        followed = []
        for epoch in range(case["epochs"]):
            rate = scheduler.step(epoch)
            for _ in range(case["batchs"]):
                warming = scheduler.step_batch()
                followed.append([rate if warming is None else warming, optimizer.param_groups[0]["lr"]])
        for (value, lr), (golden_value, golden_lr) in zip(followed, case["train_order"], strict=True):
            assert lr == pytest.approx(golden_lr, rel=1e-12)
            assert golden_value is None or value == pytest.approx(golden_value, rel=1e-12)


def independent_rate(case, base, epoch, batch):
    """The published formula, written a second time."""
    count, warmup = epoch * case["batchs"] + batch, case["batchs"] * case["warmup_epoch"]
    if count < warmup:
        return base * count / warmup
    inner = sorted(s for s in case["steps"] if case["warmup_epoch"] < s < case["epochs"])
    bounds = [case["warmup_epoch"], *inner, case["epochs"]]
    i = 0
    while epoch > bounds[i + 1]:
        i += 1
    gap = bounds[i + 1] - bounds[i]
    if i + 2 < len(bounds):
        gap += case["epoch_scale"]
    floor = case["eta_min"]
    shape = 0.5 * (1 + math.cos((epoch - bounds[i]) / gap * math.pi)) * (1 - floor) + floor
    return base * case["step_scale"] ** i * shape


CASE = {
    "epochs": 6, "steps": [4, 2], "step_scale": 0.7, "eta_min": 0.1, "warmup_epoch": 1, "epoch_scale": 2.0, "batchs": 5,
    "lf": None, "base_lr": [0.01, 0.1],
}  # fmt: skip


def test_followed_rates_are_the_planned_ones():
    optimizer, scheduler = build(CASE)
    planned = plan(scheduler, CASE["epochs"], CASE["batchs"])
    followed = []
    for epoch in range(CASE["epochs"]):
        scheduler.step(epoch)
        for batch in range(CASE["batchs"]):
            scheduler.step_batch()
            followed.append(rates(optimizer))
            for lr, base in zip(followed[-1], CASE["base_lr"], strict=True):
                assert lr == pytest.approx(independent_rate(CASE, base, epoch, batch), rel=1e-12)
    assert followed == planned


@pytest.mark.parametrize("lf", [None, LF_COSINE])
def test_state_picked_up_at_every_batch(lf, tmp_path):
    case = CASE | {"lf": lf}
    optimizer, scheduler = build(case)
    planned = plan(scheduler, case["epochs"], case["batchs"])
    for epoch in range(case["epochs"]):
        scheduler.step(epoch)
        for batch in range(case["batchs"]):
            scheduler.step_batch()
            torch.save(scheduler.state_dict(), tmp_path / "state.pt")
            fresh_optimizer, fresh = build(case)
            fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            assert rates(fresh_optimizer) == rates(optimizer)
            rest = []
            for later in range(epoch, case["epochs"]):
                if later > epoch:
                    fresh.step(later)
                for _ in range(batch + 1 if later == epoch else 0, case["batchs"]):
                    fresh.step_batch()
                    rest.append(rates(fresh_optimizer))
            assert rest == planned[epoch * case["batchs"] + batch + 1 :]


def test_a_decayed_optimizer_starts_from_its_first_rate():
    optimizer = stand_in(0.001)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    assert CosineAnnealingWarmbootingLR(optimizer, epochs=3).step(0) == pytest.approx(0.1)


def test_tensor_rates_are_filled_in_place():
    lr = torch.tensor(0.1)
    optimizer = stand_in(lr)
    CosineAnnealingWarmbootingLR(optimizer, epochs=2, eta_min=0.0).step(1)
    assert optimizer.param_groups[0]["lr"] is lr and float(lr) == pytest.approx(0.05)


def test_edges_of_the_formula():
    steps = [3, 1]
    optimizer = stand_in(1.0)
    scheduler = CosineAnnealingWarmbootingLR(optimizer, epochs=4, steps=steps, eta_min=0.2)
    assert steps == [3, 1] and scheduler.steps == [0, 1, 3, 4]
    assert scheduler.step(9) == scheduler.step(4)  # past the end the last value is held
    short = CosineAnnealingWarmbootingLR(stand_in(1.0), epochs=2, warmup_epoch=5, batchs=3)
    assert short.step(0) == 1.0
    root = CosineAnnealingWarmbootingLR(stand_in(1.0), epochs=5, warmup_epoch=2, batchs=3, lf="lambda x, y: 1 - (x / y) ** 0.5")
    assert root.step(0) == 1.0  # asked at 0 where its root of a negative number has no value


def test_a_rate_that_cannot_be_names_its_epoch():
    scheduler = CosineAnnealingWarmbootingLR(stand_in(1.0), epochs=6, batchs=2, lf="lambda x, y: 0.5 - x / y")
    with pytest.raises(ValueError, match="epoch 4"):
        plan(scheduler, 6, 2)
    scheduler = CosineAnnealingWarmbootingLR(stand_in(1.0), epochs=6, batchs=2, lf="lambda x, y: 1 / (x - 3)")
    with pytest.raises(ValueError, match="epoch 0"):
        plan(scheduler, 6, 2)


@pytest.mark.parametrize(
    ("text", "x", "y", "value"),
    [
        ("lambda x, y: (1 - x / y) * 0.8 + 0.2", 5, 10, 0.6),
        ("lambda x, y=10: x % 3 + y // 3", 5, 10, 5.0),
        ("lambda e, pi: max(e, pi, 2) if e < pi <= 10 else -e", 5, 10, 10.0),
        ("lambda x, y: math.exp(-x / y) + sqrt(y) * 0 + abs(-1)", 5, 10, math.exp(-0.5) + 1),
        (LF_COSINE, 5, 10, 0.675),
    ],
)
def test_lf_is_arithmetic(text, x, y, value):
    assert parse_lf(text)(x, y) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "x", "def f(x, y): return 1", "lambda x: x", "lambda: 1", "lambda x, y, z: 1", "lambda *x: 1",
        "lambda x=1, y=2: 1",
        "lambda x, *, y: 1", "lambda x, y: __import__('os').system('true')", "lambda x, y: ().__class__", "lambda x, y: x.real",
        "lambda x, y: 'a' * 10", "lambda x, y: [x][0]", "lambda x, y: [i for i in (1, 2)]", "lambda x, y: (z := 1)",
        "lambda x, y: (lambda: 1)()", "lambda x, y: f'{x}'", "lambda x, y: True", "lambda x, y: 1j", "lambda x, y: open('f')",
        "lambda x, y: exp(*(1,))", "lambda x, y: pow(x, y, mod=2)", "lambda x, y: factorial(10 ** 9)",
        "lambda x, y: x << 10 ** 9",
        "lambda x, y: math.__dict__", "lambda x, y: math.sys", "lambda x, y: x and y", "lambda x, y: (" * 200,
        "lambda x, y: 1" + "+1" * 300,
        "lambda x, y=().__class__: 1", "lambda x, y: 1" + "0" * 400, "lambda x, y: x\0",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="lf"):
        parse_lf(text)


@pytest.mark.parametrize(
    "body", ["9**9**9**9", "1 / 0", "(-8) ** 0.5", "exp(1000)", "inf", "nan", "cos()", "sqrt(-x)", "abs((-8) ** 0.5)"]
)
def test_what_fails_when_evaluated(body):
    with pytest.raises(ValueError, match="lf"):
        parse_lf(f"lambda x, y: {body}")(1, 2)
