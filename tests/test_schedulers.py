"""The schedules give the golden rates and those of their formulas, can be drawn before and picked up anywhere."""

import inspect
import json
import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from utils.schedulers import (
    SCHEDULES,
    AnnealingLR,
    BatchWarmup,
    CosineAnnealingWarmbootingLR,
    anneal,
    plan,
)

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
LF_COSINE = "lambda x, y: (((1 + math.cos(x * math.pi / y)) / 2) ** 1.0) * 0.65 + 0.35"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"golden learning rates are not at {GOLDEN}"
)


def stand_in(*rates):
    """Not an optimizer, but all that a schedule may ask of one."""
    return SimpleNamespace(param_groups=[{"lr": lr} for lr in rates])


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def build(case):
    arguments = (
        "epochs",
        "steps",
        "step_scale",
        "eta_min",
        "warmup_epoch",
        "epoch_scale",
        "batchs",
        "lf",
    )
    optimizer = stand_in(*case["base_lr"])
    return optimizer, CosineAnnealingWarmbootingLR(
        optimizer, **{name: case[name] for name in arguments}
    )


@needs_golden
def test_golden_rates_of_cawb():
    cases = json.loads((GOLDEN / "cawb.json").read_text())
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
                followed.append(
                    [rate if warming is None else warming, optimizer.param_groups[0]["lr"]]
                )
        for (value, lr), (golden_value, golden_lr) in zip(
            followed, case["train_order"], strict=True
        ):
            assert lr == pytest.approx(golden_lr, rel=1e-12)
            assert golden_value is None or value == pytest.approx(golden_value, rel=1e-12)


@needs_golden
def test_golden_rates_of_the_sample_count_schedules():
    cases = json.loads((GOLDEN / "annealing.json").read_text())
    assert {case["learning_rate_schedule"] for case in cases} == set(SCHEDULES)
    for case in cases:
        counts, expected = case.pop("t"), case.pop("lr")
        assert [anneal(t=t, **case) for t in counts] == pytest.approx(expected, rel=1e-12, abs=0)

        base = case.pop("learning_rate")
        optimizer = stand_in(base, base / 2)
        scheduler = AnnealingLR(optimizer, **case)
        by_pass = case["learning_rate_schedule"] == "pass_manual"
        for t, following, lr in zip(counts, [*counts[1:], 0], expected, strict=True):
            if by_pass:
                scheduler.step(t)
            assert scheduler.num_samples_processed == (0 if by_pass else t)
            assert scheduler.step_batch(0 if by_pass else following - t) == pytest.approx(
                lr, rel=1e-12, abs=0
            )
            assert rates(optimizer)[0] == pytest.approx(lr, rel=1e-12, abs=0)
            if (
                case["learning_rate_schedule"] != "linear"
            ):  # every other one is proportional to the base rate
                assert rates(optimizer)[1] == pytest.approx(lr / 2, rel=1e-12, abs=0)


def independent_rate(case, base, epoch, batch):
    """The published formula, written a second time."""
    count, warmup = epoch * case["batchs"] + batch, case["batchs"] * case["warmup_epoch"]
    if count < warmup:
        return base * count / warmup
    inner = sorted(s for s in case["steps"] if case["warmup_epoch"] < s < case["epochs"])
    bounds = [case["warmup_epoch"], *inner, case["epochs"]]
    if case["epochs"] <= case["warmup_epoch"]:  # a run shorter than its warm-up stands at f(0, 1)
        x, gap, i = 0, 1, 0
    else:
        e, i = min(epoch, case["epochs"]), 0
        while e > bounds[i + 1]:
            i += 1
        x, gap = e - bounds[i], bounds[i + 1] - bounds[i]
        if i + 2 < len(bounds):
            gap += case["epoch_scale"]
    floor = case["eta_min"]
    shape = (
        0.5 * (1 + math.cos(x / gap * math.pi)) * (1 - floor) + floor
        if case["lf"] is None
        else case["lf"](x, gap)
    )
    return base * case["step_scale"] ** i * shape


CASE = {
    "epochs": 6, "steps": [4, 2], "step_scale": 0.7, "eta_min": 0.1, "warmup_epoch": 1, "epoch_scale": 2.0, "batchs": 5,
    "lf": None, "base_lr": [0.01, 0.1],
}  # fmt: skip


def test_followed_rates_are_the_planned_ones():
    optimizer, scheduler = build(CASE)
    planned = plan(scheduler, CASE["epochs"], [1] * CASE["batchs"])
    followed = []
    for epoch in range(CASE["epochs"]):
        scheduler.step(epoch)
        for batch in range(CASE["batchs"]):
            scheduler.step_batch()
            followed.append(tuple(rates(optimizer)))
            for lr, base in zip(followed[-1], CASE["base_lr"], strict=True):
                assert lr == pytest.approx(independent_rate(CASE, base, epoch, batch), rel=1e-12)
    assert followed == list(zip(*planned, strict=True))


share = st.floats(0.001, 1)
lengths = st.one_of(st.integers(0, 60), st.floats(0, 60))


@given(
    epochs=st.integers(1, 60), steps=st.lists(lengths, max_size=6), step_scale=st.floats(0.1, 1.5), eta_min=share,
    warmup_epoch=st.integers(0, 8), epoch_scale=st.floats(0, 20), batchs=st.integers(1, 5),
    base_lr=st.lists(share, min_size=1, max_size=4),
    lf=st.sampled_from([None, lambda x, y: 1 - 0.9 * x / y, lambda x, y: 2.0 ** (-x / y)]),
)  # fmt: skip
def test_cawb_is_its_formula(**case):
    optimizer, scheduler = build(case)
    for epoch in range(case["epochs"] + 3):
        first = scheduler.step()
        expected = [
            independent_rate(case | {"batchs": 0}, base, epoch, 0) for base in case["base_lr"]
        ]
        if epoch >= case["warmup_epoch"] or case["lf"] is None:
            assert rates(optimizer) == pytest.approx(expected, rel=1e-12)
            assert first == rates(optimizer)[0]
        for batch in range(case["batchs"]):
            warming = scheduler.step_batch()
            expected = [independent_rate(case, base, epoch, batch) for base in case["base_lr"]]
            assert rates(optimizer) == pytest.approx(expected, rel=1e-12)
            assert warming == (rates(optimizer)[0] if epoch < case["warmup_epoch"] else None)


def independent_annealing(schedule, lr, t, a, b, pairs):
    """The formulas of PaddlePaddle's first generation, written a second time."""
    if schedule == "constant":
        return lr
    if schedule == "poly":
        return lr / math.exp(b * math.log1p(a * t))
    if schedule == "caffe_poly":
        return lr * math.pow((a - t) / a, b) if t <= a else 0
    if schedule == "exp":
        return lr * math.exp(math.log(a) * t / b)
    if schedule == "discexp":
        return lr * math.exp(math.log(a) * (t // b))
    if schedule == "linear":
        return lr - a * t if lr - a * t > b else b
    for count, rate in pairs:
        if t <= count:
            return lr * rate
    return lr * pairs[-1][1]


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)), lr=st.floats(1e-5, 10), t=st.integers(0, 10**6), a=st.floats(1e-6, 2),
    b=st.floats(1e-3, 3), scale=st.floats(1e3, 1e6),
    pairs=st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 2).map(lambda v: round(v, 6))), min_size=1, max_size=5),
)  # fmt: skip
def test_the_sample_count_schedules_are_their_formulas(schedule, lr, t, a, b, scale, pairs):
    if schedule == "caffe_poly":
        a *= scale
        assume(
            abs(1 - t / a) > 1e-3 or t > a
        )  # so close to 0, the subtraction itself leaves fewer than 12 digits
    if schedule in ("exp", "discexp"):
        b *= scale
        assume(
            abs(math.log(a) * t / b) < 300
        )  # within what a float holds, and what exp(log(a) * n) keeps of 12 digits
        assume(schedule == "exp" or abs(t / b - round(t / b)) > 1e-9)
    if schedule == "linear":
        a /= scale
        assume(abs(lr - a * t) > 1e-3 * lr)
    text = ",".join(f"{count}:{rate}" for count, rate in pairs)
    expected = independent_annealing(schedule, lr, t, a, b, pairs)
    assert anneal(schedule, lr, t, a, b, text) == pytest.approx(expected, rel=1e-12, abs=0)


def test_counting_samples():
    """What a user's own loop does: the rate of a batch is that of the samples before it, whatever their number."""
    optimizer = stand_in(0.1)
    scheduler = AnnealingLR(optimizer, "poly", 0.01, 0.5, batch_size=8, batchs=4, warmup_epoch=1)
    sizes = [8, 8, 8, 3] * 3
    t = 0
    for i, size in enumerate(sizes):
        if i % 4 == 0:
            scheduler.step()
        rate = scheduler.step_batch() if size == 8 else scheduler.step_batch(size)
        expected = 0.1 * i / 4 if i < 4 else 0.1 / math.sqrt(1 + 0.01 * t)
        assert rate == optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
        t += size
    assert scheduler.num_samples_processed == t == 81
    assert scheduler.get_last_lr() == [rate]
    assert (
        list(
            plan(
                AnnealingLR(stand_in(0.1), "poly", 0.01, 0.5, batchs=4, warmup_epoch=1),
                3,
                sizes[:4],
            )[0]
        )[-1]
        == rate
    )


@pytest.mark.parametrize("step_first", [True, False])
def test_counting_passes(step_first):
    """`step()` at the start of each pass, or, as torch's own schedulers have it, at its end."""
    scheduler = AnnealingLR(stand_in(1.0), "pass_manual", learning_rate_args="0:1.0,1:0.5,2:0.25")
    seen = []
    for _ in range(4):
        if step_first:
            scheduler.step()
        seen.append(scheduler.step_batch())
        if not step_first:
            scheduler.step()
    assert seen == [1.0, 0.5, 0.25, 0.25]
    assert (
        AnnealingLR(stand_in(1.0), "pass_manual", learning_rate_args="0:1.0,1:0.5").step(7) == 0.5
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cosine",), "cosine.*allowed are constant"), (("exp", 0.5, 0.0), "zero"), (("caffe_poly", 0.0, 1.0), "zero"),
        (("manual",), "pairs such as"), (("manual", 0, 0, "1000"), "'1000'"), (("manual", 0, 0, "1000:a"), "'1000:a'"),
        (("manual", 0, 0, "1000:1.0,"), "pairs"), (("pass_manual", 0, 0, "nan:1"), "nan"), (("manual", 0, 0, "1:inf"), "inf"),
    ],
)  # fmt: skip
def test_arguments_that_give_no_rate(arguments, says):
    with pytest.raises(ValueError, match=says):
        AnnealingLR(stand_in(0.1), *arguments)
    schedule, *rest = arguments
    with pytest.raises(ValueError, match=says):
        anneal(schedule, 0.1, 0, *rest)


@pytest.mark.parametrize(
    "arguments", [("exp", 10.0, 1.0), ("poly", -1e-3, 0.5), ("poly", 1.0, -400.0)]
)
def test_a_count_without_a_rate_is_named(arguments):
    with pytest.raises(ValueError, match="t=2000"):
        anneal(arguments[0], 0.1, 2000, *arguments[1:])


SIZES = [16, 16, 7, 16, 16]  # samples in the batches of an epoch
MAKERS = {
    "cosine": lambda o: CosineAnnealingWarmbootingLR(o, 6, steps=[2, 4], batchs=5, warmup_epoch=1, epoch_scale=2.0),
    "lf": lambda o: CosineAnnealingWarmbootingLR(o, 6, steps=[2, 4], batchs=5, warmup_epoch=1, lf=LF_COSINE),
    "python lf": lambda o: CosineAnnealingWarmbootingLR(o, 6, steps=[2, 4], batchs=5, warmup_epoch=1, lf=lambda x, y: 2**-x),
    "poly": lambda o: AnnealingLR(o, "poly", 0.01, 0.75, batch_size=16, batchs=5, warmup_epoch=1),
    "manual": lambda o: AnnealingLR(o, "manual", learning_rate_args="99:1,200:.5,300:.1", batchs=5, warmup_epoch=1),
    "pass_manual": lambda o: AnnealingLR(o, "pass_manual", learning_rate_args="1:1,3:0.5", batchs=5, warmup_epoch=2),
}  # fmt: skip
ARGUMENTS_OF_NOTHING = {
    CosineAnnealingWarmbootingLR: lambda o: CosineAnnealingWarmbootingLR(o, 1, lf=lambda x, y: 0.5),
    AnnealingLR: lambda o: AnnealingLR(o),
}


def real_optimizer(lr=0.1):
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr},
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr / 4},
    ]
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.filterwarnings("ignore:state_dict. lf is a Python function")
@pytest.mark.parametrize("optimizer_state", ["before", "after", None])
@pytest.mark.parametrize("name", MAKERS)
def test_state_picked_up_at_every_batch(name, optimizer_state, tmp_path):
    """A run of 6 epochs and 2 restarts, stopped after any batch: the rest is the same, and the warm-up is not begun again."""
    make = MAKERS[name]

    def follow(optimizer, scheduler, first, after=lambda: None):
        seen = []
        for i in range(first, 30):
            if i % 5 == 0:
                scheduler.step(i // 5)
            scheduler.step_batch(SIZES[i % 5])
            seen.append(rates(optimizer))
            after()
        return seen

    optimizer = real_optimizer()
    scheduler = make(optimizer)
    saved = []

    def save():
        path = tmp_path / f"{len(saved)}.pt"
        torch.save({"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict()}, path)
        saved.append(path)

    whole = follow(optimizer, scheduler, 0, save)
    for i, path in enumerate(saved):
        state = torch.load(path, weights_only=True)
        fresh = real_optimizer(
            lr=0.5
        )  # what it was built with makes no difference: the state has the base rates
        if optimizer_state == "before":
            fresh.load_state_dict(state["optimizer"])
        # Not even its arguments do, but for a function written in Python, which no file can hold.
        build_fresh = make if name == "python lf" else ARGUMENTS_OF_NOTHING[type(scheduler)]
        resumed = build_fresh(fresh)
        if optimizer_state == "after":
            fresh.load_state_dict(state["optimizer"])
        resumed.load_state_dict(state["scheduler"])
        assert rates(fresh) == resumed.get_last_lr() == whole[i]
        assert follow(fresh, resumed, i + 1) == whole[i + 1 :]


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    one, two = np.int64(1), np.float64(0.5)
    cawb = CosineAnnealingWarmbootingLR(
        stand_in(np.float64(0.1)),
        np.int64(6),
        two,
        np.array([2, 4]),
        two,
        batchs=one,
        epoch_scale=two,
    )
    annealing = AnnealingLR(stand_in(0.1), "poly", two, two, batch_size=one)
    annealing.step_batch(one)
    for scheduler in (cawb, annealing):
        torch.save(scheduler.state_dict(), tmp_path / "state.pt")
        assert torch.load(tmp_path / "state.pt", weights_only=True) == scheduler.state_dict()


def test_a_python_lf_is_left_out_of_the_state_which_says_so():
    scheduler = MAKERS["python lf"](stand_in(0.1))
    with pytest.warns(UserWarning, match="lf is a Python function and is left out"):
        state = scheduler.state_dict()
    assert "lf" not in state
    with pytest.raises(ValueError, match="written in Python"):
        MAKERS["cosine"](stand_in(0.1)).load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = MAKERS["lf"](stand_in(0.1)).state_dict()
        assert text["lf"] == LF_COSINE
        MAKERS["python lf"](stand_in(0.1)).load_state_dict(text)


def test_a_state_of_something_else_is_refused():
    cawb, annealing = MAKERS["cosine"](stand_in(0.1)), MAKERS["poly"](stand_in(0.1))
    for scheduler, state in (
        (cawb, annealing.state_dict()),
        (annealing, cawb.state_dict()),
        (cawb, torch.optim.lr_scheduler.LambdaLR(real_optimizer(), lambda e: 1.0).state_dict()),
        (MAKERS["poly"](stand_in(0.1, 0.2)), annealing.state_dict()),
    ):
        with pytest.raises(ValueError, match=type(scheduler).__name__):
            scheduler.load_state_dict(state)
    with pytest.raises(ValueError, match="system"):
        cawb.load_state_dict(
            cawb.state_dict() | {"lf": "lambda x, y: __import__('os').system('true')"}
        )


def test_the_line_by_line_explanation_has_every_line():
    """docs/schedulers.md explains the algorithm as it is: its lines are those of the code, none missing, none made up."""
    text = (ROOT / "docs" / "schedulers.md").read_text()
    explained = re.findall(
        r"^\| `([^`]+)` \| \S.* \| \S.*\|$",
        text[text.index("### Line by line") : text.index("### Where it")],
        re.M,
    )
    methods = (
        BatchWarmup.step, CosineAnnealingWarmbootingLR._rates, CosineAnnealingWarmbootingLR._segment,
        CosineAnnealingWarmbootingLR._factor, BatchWarmup.step_batch,
    )  # fmt: skip
    lines = []
    for method in methods:
        code = re.sub(r'"""[^"]*"""', "", inspect.getsource(method))
        lines += [
            line
            for line in (re.sub(r" *#.*", "", line).strip() for line in code.splitlines()[1:])
            if line
        ]
    assert explained[3:] == lines
    source = (ROOT / "utils" / "schedulers.py").read_text()
    assert all(f"        {line}\n" in source for line in explained[:3])


def test_a_decayed_optimizer_starts_from_its_first_rate():
    optimizer = stand_in(0.001)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    assert CosineAnnealingWarmbootingLR(optimizer, epochs=3).step(0) == pytest.approx(0.1)


def test_tensor_rates_are_filled_in_place():
    lr = torch.tensor(0.1)
    optimizer = stand_in(lr, 0.2)
    scheduler = CosineAnnealingWarmbootingLR(
        optimizer, epochs=3, eta_min=0.0, batchs=2, warmup_epoch=1
    )
    scheduler.step_batch()
    scheduler.step_batch()
    assert optimizer.param_groups[0]["lr"] is lr and rates(optimizer) == pytest.approx([0.05, 0.1])
    scheduler.step(2)
    assert optimizer.param_groups[0]["lr"] is lr and rates(optimizer) == pytest.approx([0.05, 0.1])
    AnnealingLR(optimizer, "constant").step_batch()
    assert optimizer.param_groups[0]["lr"] is lr and rates(optimizer) == pytest.approx([0.1, 0.2])


def test_a_compiled_optimizer_follows_and_is_not_compiled_again():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.Adam([parameter], lr=torch.tensor(0.1), foreach=False)
    scheduler = CosineAnnealingWarmbootingLR(optimizer, epochs=4, batchs=3, warmup_epoch=1)
    torch._dynamo.reset()
    compilations = CompileCounter()
    optimizer_step = torch.compile(optimizer.step, backend=compilations)
    moved = []
    for epoch in range(4):
        scheduler.step(epoch)
        for _ in range(3):
            scheduler.step_batch()
            before = parameter.detach().clone()
            optimizer_step()
            moved.append(float((before - parameter.detach())[0]))
    assert compilations.frame_count == 1
    # With a gradient that never changes, Adam moves by its rate.
    assert moved == pytest.approx(list(plan(scheduler, 4, [1] * 3)[0]), rel=1e-4, abs=1e-6)


def test_edges_of_the_formula():
    steps = [3, 1]
    optimizer = stand_in(1.0)
    scheduler = CosineAnnealingWarmbootingLR(optimizer, epochs=4, steps=steps, eta_min=0.2)
    assert steps == [3, 1] and scheduler.steps == [0, 1, 3, 4]
    assert scheduler.step(9) == scheduler.step(4)  # past the end the last value is held
    short = CosineAnnealingWarmbootingLR(stand_in(1.0), epochs=2, warmup_epoch=5, batchs=3)
    assert short.step(0) == 1.0
    root = CosineAnnealingWarmbootingLR(
        stand_in(1.0), epochs=5, warmup_epoch=2, batchs=3, lf="lambda x, y: 1 - (x / y) ** 0.5"
    )
    assert root.step(0) == 1.0  # asked at 0 where its root of a negative number has no value


def test_a_rate_that_cannot_be_names_its_epoch():
    scheduler = CosineAnnealingWarmbootingLR(
        stand_in(1.0), epochs=6, batchs=2, lf="lambda x, y: 0.5 - x / y"
    )
    with pytest.raises(ValueError, match="epoch 4"):
        plan(scheduler, 6, [1, 1])
    scheduler = CosineAnnealingWarmbootingLR(
        stand_in(1.0), epochs=6, batchs=2, lf="lambda x, y: 1 / (x - 3)"
    )
    with pytest.raises(ValueError, match="epoch 0"):
        plan(scheduler, 6, [1, 1])
    for bad in (math.inf, math.nan, -1e-9):
        scheduler = CosineAnnealingWarmbootingLR(
            stand_in(1.0), epochs=6, batchs=2, lf=lambda x, y, bad=bad: bad if x == 2 else 1.0
        )
        with pytest.raises(ValueError, match="epoch 2: the rate would be"):
            plan(scheduler, 6, [1, 1])
