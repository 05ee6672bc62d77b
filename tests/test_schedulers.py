"""The schedules give the golden rates and those of their formulas, and resume anywhere."""

import json
import math
import re
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import bitwise_equal
from hypothesis import assume, given
from hypothesis import strategies as st
from preloaded import run_python
from torch._dynamo.testing import CompileCounter

from utils.plan import plan
from utils.schedulers import (
    SCHEDULES,
    AnnealingLR,
    BatchWarmup,
    CosineAnnealingWarmbootingLR,
    anneal,
)

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
LF_COSINE = "lambda x, y: (((1 + math.cos(x * math.pi / y)) / 2) ** 1.0) * 0.65 + 0.35"
CAWB = CosineAnnealingWarmbootingLR


def fake_optimizer(*lrs):
    """Not an optimizer, but all that a schedule may need of one."""
    return SimpleNamespace(param_groups=[{"lr": lr} for lr in lrs])


def lrs_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def build(case):
    """A fake optimizer and its CAWB, from the constructor arguments and base rates of `case`."""
    optimizer = fake_optimizer(*case["base_lr"])
    others = ("base_lr", "last_epoch", "step", "train_order")  # results, not arguments
    arguments = {key: value for key, value in case.items() if key not in others}
    return optimizer, CAWB(optimizer, **arguments)


# ------------------------------------------------------------------ golden values


def test_cawb_gives_the_golden_rates():
    cases = json.loads((GOLDEN / "cawb.json").read_text())
    assert cases
    for case in cases:
        optimizer, scheduler = build(case)
        scheduler.last_epoch = case["last_epoch"]
        for expected in case["step"]:
            first = scheduler.step()
            assert lrs_of(optimizer) == pytest.approx(expected, rel=1e-12)
            assert first == lrs_of(optimizer)[0]


def test_cawb_gives_the_golden_rates_in_the_order_of_a_training_loop():
    for case in json.loads((GOLDEN / "cawb.json").read_text()):
        optimizer, scheduler = build(case)
        golden = iter(case["train_order"])
        for epoch in range(case["epochs"]):
            epoch_lr = scheduler.step(epoch)
            for _ in range(case["batchs"]):
                batch_lr = scheduler.step_batch()
                golden_value, golden_lr = next(golden)
                assert lrs_of(optimizer)[0] == pytest.approx(golden_lr, rel=1e-12)
                if golden_value is not None:
                    value = epoch_lr if batch_lr is None else batch_lr
                    assert value == pytest.approx(golden_value, rel=1e-12)
        assert next(golden, None) is None


def test_sample_count_schedules_give_the_golden_rates():
    cases = json.loads((GOLDEN / "annealing.json").read_text())
    assert {case["learning_rate_schedule"] for case in cases} == set(SCHEDULES)
    for case in cases:
        counts, golden = case.pop("t"), case.pop("lr")
        assert [anneal(t=t, **case) for t in counts] == pytest.approx(golden, rel=1e-12, abs=0)

        base = case.pop("learning_rate")
        optimizer = fake_optimizer(base, base / 2)
        scheduler = AnnealingLR(optimizer, **case)
        by_pass = case["learning_rate_schedule"] == "pass_manual"
        for t, next_t, expected in zip(counts, [*counts[1:], 0], golden, strict=True):
            if by_pass:
                scheduler.step(t)
            assert scheduler.num_samples_processed == (0 if by_pass else t)
            lr = scheduler.step_batch(0 if by_pass else next_t - t)
            assert lr == pytest.approx(expected, rel=1e-12, abs=0)
            assert lrs_of(optimizer)[0] == pytest.approx(expected, rel=1e-12, abs=0)
            if case["learning_rate_schedule"] != "linear":  # the others scale with the base rate
                assert lrs_of(optimizer)[1] == pytest.approx(expected / 2, rel=1e-12, abs=0)


# ------------------------------------------------------------------ formulas


def independent_lr(case, base, epoch, batch):
    """The published formula, written a second time."""
    count, warmup = epoch * case["batchs"] + batch, case["batchs"] * case["warmup_epoch"]
    if count < warmup:
        return base * count / warmup
    inner = sorted(s for s in case["steps"] if case["warmup_epoch"] < s < case["epochs"])
    bounds = [case["warmup_epoch"], *inner, case["epochs"]]
    if case["epochs"] <= case["warmup_epoch"]:  # a run shorter than its warm-up stays at f(0, 1)
        x, gap, i = 0, 1, 0
    else:
        e, i = epoch, 0
        if case.get("per_batch") and case["batchs"]:
            e += batch / case["batchs"]
        e = min(e, case["epochs"])
        while e > bounds[i + 1]:
            i += 1
        x, gap = e - bounds[i], bounds[i + 1] - bounds[i]
        if i + 2 < len(bounds):
            gap += case["epoch_scale"]
    if case["lf"] is not None:
        factor = case["lf"](x, gap)
    else:
        floor = case["eta_min"]
        factor = 0.5 * (1 + math.cos(x / gap * math.pi)) * (1 - floor) + floor
    return base * case["step_scale"] ** i * factor


CASE = {
    "epochs": 6,
    "steps": [4, 2],
    "step_scale": 0.7,
    "eta_min": 0.1,
    "warmup_epoch": 1,
    "epoch_scale": 2.0,
    "batchs": 5,
    "lf": None,
    "base_lr": [0.01, 0.1],
}


def follow(optimizer, scheduler, epochs, batchs, start=0, sizes=None):
    """The rates of all groups in every batch from batch number `start` on, as a loop follows them.

    It calls step(epoch) at the start of every epoch and, like a resumed run, where it starts.
    """
    followed = []
    for i in range(start, epochs * batchs):
        if i % batchs == 0 or i == start:
            scheduler.step(i // batchs)
        scheduler.step_batch(sizes and sizes[i % batchs])
        followed.append(lrs_of(optimizer))
    return followed


@pytest.mark.parametrize("per_batch", [False, True])
def test_cawb_follows_its_plan_and_its_formula(per_batch):
    case = CASE | {"per_batch": per_batch}
    optimizer, scheduler = build(case)
    curves = plan(scheduler, 6, [1] * 5)
    followed = follow(optimizer, scheduler, 6, 5)
    assert followed == [list(lrs) for lrs in zip(*curves, strict=True)]
    for i, lrs in enumerate(followed):
        expected = [independent_lr(case, base, *divmod(i, 5)) for base in case["base_lr"]]
        assert lrs == pytest.approx(expected, rel=1e-12)
    distinct_in_epoch_2 = {lr for lr, _ in followed[10:15]}
    assert len(distinct_in_epoch_2) == (5 if per_batch else 1)


fractions = st.floats(0.001, 1)
lengths = st.one_of(st.integers(0, 60), st.floats(0, 60))


@pytest.mark.filterwarnings("ignore:steps")
@given(
    epochs=st.integers(1, 60),
    steps=st.lists(lengths, max_size=6),
    step_scale=st.floats(0.1, 1.5),
    eta_min=fractions,
    warmup_epoch=st.integers(0, 8),
    epoch_scale=st.floats(0, 20),
    batchs=st.integers(1, 5),
    base_lr=st.lists(fractions, min_size=1, max_size=4),
    lf=st.sampled_from([None, lambda x, y: 1 - 0.9 * x / y, lambda x, y: 2.0 ** (-x / y)]),
    per_batch=st.booleans(),
)
def test_cawb_is_its_formula(**case):
    optimizer, scheduler = build(case)
    for epoch in range(case["epochs"] + 3):
        first = scheduler.step()
        no_warmup = case | {"batchs": 0}
        expected = [independent_lr(no_warmup, base, epoch, 0) for base in case["base_lr"]]
        if epoch >= case["warmup_epoch"] or case["lf"] is None:
            assert lrs_of(optimizer) == pytest.approx(expected, rel=1e-12)
            assert first == lrs_of(optimizer)[0]
        for batch in range(case["batchs"]):
            lr = scheduler.step_batch()
            expected = [independent_lr(case, base, epoch, batch) for base in case["base_lr"]]
            assert lrs_of(optimizer) == pytest.approx(expected, rel=1e-12)
            sets_lr = epoch < case["warmup_epoch"] or case["per_batch"]
            assert lr == (lrs_of(optimizer)[0] if sets_lr else None)


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
    for count, factor in pairs:
        if t <= count:
            return lr * factor
    return lr * pairs[-1][1]


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    lr=st.floats(1e-5, 10),
    t=st.integers(0, 10**6),
    a=st.floats(1e-6, 2),
    b=st.floats(1e-3, 3),
    scale=st.floats(1e3, 1e6),
    pairs=st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(0, 2).map(lambda v: round(v, 6))),
        min_size=1,
        max_size=5,
    ),
)
def test_anneal_is_its_formulas(schedule, lr, t, a, b, scale, pairs):
    if schedule == "caffe_poly":
        a *= scale
        # So close to 0 the subtraction itself leaves fewer than 12 digits.
        assume(abs(1 - t / a) > 1e-3 or t > a)
    if schedule in ("exp", "discexp"):
        b *= scale
        # Within the range of a float, and where exp(log(a) * n) has 12 digits.
        assume(abs(math.log(a) * t / b) < 300)
        assume(schedule == "exp" or abs(t / b - round(t / b)) > 1e-9)
    if schedule == "linear":
        a /= scale
        assume(abs(lr - a * t) > 1e-3 * lr)
    text = ",".join(f"{count}:{factor}" for count, factor in pairs)
    expected = independent_annealing(schedule, lr, t, a, b, pairs)
    assert anneal(schedule, lr, t, a, b, text) == pytest.approx(expected, rel=1e-12, abs=0)


def test_annealing_counts_samples():
    """The rate of a batch is that of the samples before it, for batches of any size."""
    optimizer = fake_optimizer(0.1)
    scheduler = AnnealingLR(optimizer, "poly", 0.01, 0.5, batch_size=8, batchs=4, warmup_epoch=1)
    sizes = [8, 8, 8, 3] * 3
    t = 0
    for i, size in enumerate(sizes):
        if i % 4 == 0:
            scheduler.step()
        lr = scheduler.step_batch() if size == 8 else scheduler.step_batch(size)
        expected = 0.1 * i / 4 if i < 4 else 0.1 / math.sqrt(1 + 0.01 * t)
        assert lr == optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
        t += size
    assert scheduler.num_samples_processed == t == 81
    assert scheduler.get_last_lr() == [lr]
    planned = AnnealingLR(fake_optimizer(0.1), "poly", 0.01, 0.5, batchs=4, warmup_epoch=1)
    assert plan(planned, 3, sizes[:4])[0][-1] == lr


@pytest.mark.parametrize("step_first", [True, False])
def test_annealing_counts_passes(step_first):
    """`step()` at the start of each pass, or, as with torch's own schedulers, at its end."""
    scheduler = AnnealingLR(
        fake_optimizer(1.0), "pass_manual", learning_rate_args="0:1.0,1:0.5,2:0.25"
    )
    lrs = []
    for _ in range(4):
        if step_first:
            scheduler.step()
        lrs.append(scheduler.step_batch())
        if not step_first:
            scheduler.step()
    assert lrs == [1.0, 0.5, 0.25, 0.25]
    scheduler = AnnealingLR(fake_optimizer(1.0), "pass_manual", learning_rate_args="0:1.0,1:0.5")
    assert scheduler.step(7) == 0.5


@pytest.mark.parametrize("batchs", [3, 8])
def test_a_pass_has_one_rate_however_many_batches_it_has(batchs):
    """Not even more batches than `batchs` run into the next pass."""
    scheduler = AnnealingLR(
        fake_optimizer(1.0), "pass_manual", learning_rate_args="0:1.0,1:0.5", batchs=batchs
    )
    scheduler.step(0)
    assert [scheduler.step_batch() for _ in range(7)] == [1.0] * 7
    assert scheduler.step(1) == scheduler.step_batch() == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosine",), "cosine.*allowed are constant"),
        (("exp", 0.5, 0.0), "zero"),
        (("caffe_poly", 0.0, 1.0), "zero"),
        (("manual",), "pairs such as"),
        (("manual", 0, 0, "1000"), "'1000'"),
        (("manual", 0, 0, "1000:a"), "'1000:a'"),
        (("manual", 0, 0, "1000:1.0,"), "pairs"),
        (("pass_manual", 0, 0, "nan:1"), "nan"),
        (("manual", 0, 0, "1:inf"), "inf"),
    ],
)
def test_annealing_rejects_arguments_that_give_no_rate(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnnealingLR(fake_optimizer(0.1), *arguments)
    schedule, *rest = arguments
    with pytest.raises(ValueError, match=message):
        anneal(schedule, 0.1, 0, *rest)


@pytest.mark.parametrize(
    "arguments", [("exp", 10.0, 1.0), ("poly", -1e-3, 0.5), ("poly", 1.0, -400.0)]
)
def test_anneal_names_a_count_that_has_no_rate(arguments):
    with pytest.raises(ValueError, match="t=2000"):
        anneal(arguments[0], 0.1, 2000, *arguments[1:])


# ------------------------------------------------------------------ arguments


def test_batches_per_epoch_is_another_name_of_batchs():
    for build_with in (
        lambda **batches: CAWB(fake_optimizer(0.1), 5, warmup_epoch=1, **batches),
        lambda **batches: AnnealingLR(fake_optimizer(0.1), warmup_epoch=1, **batches),
    ):
        expected = build_with(batchs=4).state_dict()
        assert expected["batchs"] == 4
        assert build_with(batches_per_epoch=4).state_dict() == expected
        assert build_with(batchs=4, batches_per_epoch=4).state_dict() == expected
        with pytest.raises(ValueError, match="batchs is 4 and batches_per_epoch 5"):
            build_with(batchs=4, batches_per_epoch=5)


def test_restarts_can_be_fractions_of_the_run():
    def boundaries(steps, epochs=300, warmup_epoch=2):
        return CAWB(fake_optimizer(0.1), epochs, steps=steps, warmup_epoch=warmup_epoch).steps

    assert boundaries(["33%", "66%"]) == [2, 99, 198, 300]
    assert boundaries([30, "12.5%"], epochs=200) == [2, 25, 30, 200]
    assert boundaries(["10%", 40], epochs=20) == [2, 20]  # on the end of the warm-up, outside
    assert boundaries(["50%", 10, "50%"], epochs=20) == [2, 10, 20]
    with pytest.raises(ValueError, match="found '101%', need an epoch"):
        boundaries(["101%"])


def test_per_batch_needs_the_number_of_batches():
    with pytest.raises(ValueError, match="per_batch needs batchs"):
        CAWB(fake_optimizer(0.1), 5, per_batch=True)


def test_base_rates_are_those_before_any_decay():
    optimizer = fake_optimizer(0.001)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    assert CAWB(optimizer, epochs=3).step(0) == pytest.approx(0.1)


def test_cawb_at_the_edges_of_its_formula():
    steps = [3, 1]
    optimizer = fake_optimizer(1.0)
    scheduler = CAWB(optimizer, epochs=4, steps=steps, eta_min=0.2)
    assert steps == [3, 1] and scheduler.steps == [0, 1, 3, 4]
    assert scheduler.step(9) == scheduler.step(4)  # past the end the last value is held
    short = CAWB(fake_optimizer(1.0), epochs=2, warmup_epoch=5, batchs=3)
    assert short.step(0) == 1.0
    root = CAWB(
        fake_optimizer(1.0),
        epochs=5,
        warmup_epoch=2,
        batchs=3,
        lf="lambda x, y: 1 - (x / y) ** 0.5",
    )
    assert root.step(0) == 1.0  # f(0, gap), since the root of a negative number has no value


# ------------------------------------------------------------------ state


SIZES = [16, 16, 7, 16, 16]  # samples in the batches of an epoch


def cawb(**arguments):
    return lambda optimizer: CAWB(
        optimizer, 6, steps=[2, "67%"], batchs=5, warmup_epoch=1, **arguments
    )


def annealing(*arguments, **keywords):
    return lambda optimizer: AnnealingLR(optimizer, *arguments, batchs=5, **keywords)


BUILDERS = {
    "cosine": cawb(epoch_scale=2.0),
    "per_batch": cawb(per_batch=True),
    "lf": cawb(lf=LF_COSINE),
    "python lf": cawb(lf=lambda x, y: 2**-x),
    "poly": annealing("poly", 0.01, 0.75, batch_size=16, warmup_epoch=1),
    "manual": annealing("manual", learning_rate_args="99:1,200:.5,300:.1", warmup_epoch=1),
    "pass_manual": annealing("pass_manual", learning_rate_args="1:1,3:0.5", warmup_epoch=2),
}
MINIMAL_BUILDERS = {
    CAWB: lambda optimizer: CAWB(optimizer, 1, lf=lambda x, y: 0.5),
    AnnealingLR: lambda optimizer: AnnealingLR(optimizer),
}


def real_optimizer(lr=0.1):
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr},
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr / 4},
    ]
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.filterwarnings("ignore:state_dict. lf is a Python function")
@pytest.mark.parametrize("optimizer_state", ["before", "after", None])
@pytest.mark.parametrize("name", BUILDERS)
def test_state_resumes_at_every_batch(name, optimizer_state, tmp_path):
    """After any batch of 6 epochs with 2 restarts the rest is the same, and the warm-up is not
    started again, although step(epoch) is called for the epoch that is resumed."""
    build_scheduler = BUILDERS[name]
    optimizer = real_optimizer()
    scheduler = build_scheduler(optimizer)
    whole = []
    for i in range(30):
        if i % 5 == 0:
            scheduler.step(i // 5)
        scheduler.step_batch(SIZES[i % 5])
        whole.append(lrs_of(optimizer))
        state = {"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, tmp_path / f"{i}.pt")

    for i in range(30):
        state = torch.load(tmp_path / f"{i}.pt", weights_only=True)
        # What the scheduler is built with makes no difference: the state has the base rates and
        # the arguments, except a function written in Python, which cannot be saved.
        optimizer = real_optimizer(lr=0.5)
        if optimizer_state == "before":
            optimizer.load_state_dict(state["optimizer"])
        is_saved = name != "python lf"
        resumed = (MINIMAL_BUILDERS[type(scheduler)] if is_saved else build_scheduler)(optimizer)
        if optimizer_state == "after":
            optimizer.load_state_dict(state["optimizer"])
        resumed.load_state_dict(state["scheduler"])
        assert lrs_of(optimizer) == resumed.get_last_lr() == whole[i]
        assert follow(optimizer, resumed, 6, 5, i + 1, SIZES) == whole[i + 1 :]


@pytest.mark.filterwarnings("ignore:state_dict. lf is a Python function")
@pytest.mark.parametrize("name", BUILDERS)
def test_step_of_a_resumed_epoch_changes_no_number(name):
    optimizer = fake_optimizer(0.1, 0.2)
    scheduler = BUILDERS[name](optimizer)
    for i in range(30):
        if i % 5 == 0:
            scheduler.step(i // 5)
        scheduler.step_batch(SIZES[i % 5])
        before = scheduler.state_dict()
        assert scheduler.step(i // 5) == before["last_lr"][0]
        assert scheduler.state_dict() == before


@pytest.mark.filterwarnings("ignore:state_dict. lf is a Python function")
@pytest.mark.parametrize("start", [0, 1, 3, 5, 13, 19])
@pytest.mark.parametrize("name", BUILDERS)
def test_extended_run_has_the_rates_of_a_longer_one(name, start):
    """From any batch on, also in the warm-up, and with restarts at fractions of the length."""

    def builder(epochs):
        if "manual" in name or name == "poly":
            return BUILDERS[name]
        lf = {"lf": LF_COSINE, "python lf": lambda x, y: 2**-x}.get(name)
        arguments = {"steps": ["50%", 3], "warmup_epoch": 2, "batchs": 5}
        per_batch = name == "per_batch"
        return lambda optimizer: CAWB(optimizer, epochs, lf=lf, per_batch=per_batch, **arguments)

    long_optimizer, optimizer, resumed_optimizer = (fake_optimizer(0.1, 0.2) for _ in range(3))
    long = builder(12)(long_optimizer)
    expected = follow(long_optimizer, long, 12, 5, sizes=SIZES)
    scheduler = builder(4)(optimizer)
    for i in range(start):
        if i % 5 == 0:
            scheduler.step(i // 5)
        scheduler.step_batch(SIZES[i % 5])
    resumed = builder(4)(resumed_optimizer)
    resumed.load_state_dict(scheduler.state_dict())
    resumed.extend(12)
    assert follow(resumed_optimizer, resumed, 12, 5, start, SIZES) == expected[start:]
    assert resumed.state_dict() == long.state_dict()


def test_state_has_plain_numbers_of_numpy_ones(tmp_path):
    one, half = np.int64(1), np.float64(0.5)
    scheduler = CAWB(
        fake_optimizer(np.float64(0.1)),
        np.int64(6),
        half,
        np.array([2, 4]),
        half,
        batchs=one,
        epoch_scale=half,
    )
    annealing = AnnealingLR(fake_optimizer(0.1), "poly", half, half, batch_size=one)
    annealing.step_batch(one)
    for each in (scheduler, annealing):
        torch.save(each.state_dict(), tmp_path / "state.pt")
        assert torch.load(tmp_path / "state.pt", weights_only=True) == each.state_dict()


def test_state_skips_a_python_lf_with_a_warning():
    scheduler = BUILDERS["python lf"](fake_optimizer(0.1))
    with pytest.warns(UserWarning, match="lf is a Python function and is not saved"):
        state = scheduler.state_dict()
    assert "lf" not in state
    with pytest.raises(ValueError, match="lf is a Python function"):
        BUILDERS["cosine"](fake_optimizer(0.1)).load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = BUILDERS["lf"](fake_optimizer(0.1)).state_dict()
        assert text["lf"] == LF_COSINE
        resumed = BUILDERS["python lf"](fake_optimizer(0.1))
        resumed.load_state_dict(text)
        assert resumed.lf.text == LF_COSINE
        no_lf = BUILDERS["cosine"](fake_optimizer(0.1)).state_dict()
        resumed.load_state_dict(no_lf)
        assert resumed.lf is None


def test_state_has_the_text_of_any_function_that_has_one():
    """A copy of schedulers.py without lf.py can save its functions, too."""

    class Halving:
        text = "a half after each epoch"

        def __call__(self, x, y):
            return 0.5**x

    scheduler = CAWB(fake_optimizer(0.1), 5, lf=Halving())
    state = scheduler.state_dict()
    assert state["lf"] == Halving.text
    lf = Halving()
    resumed = CAWB(fake_optimizer(0.1), 5, lf=lf)
    resumed.load_state_dict(state)
    assert resumed.lf is lf


def test_state_of_something_else_is_rejected():
    cawb, annealing = (BUILDERS[name](fake_optimizer(0.1)) for name in ("cosine", "poly"))
    of_torch = torch.optim.lr_scheduler.LambdaLR(real_optimizer(), lambda e: 1.0)
    two_groups = BUILDERS["poly"](fake_optimizer(0.1, 0.2))
    for scheduler, state, message in (
        (cawb, annealing.state_dict(), "eta_min.* missing, learning_rate_args"),
        (annealing, cawb.state_dict(), "missing, .*eta_min.* unknown"),
        (cawb, of_torch.state_dict(), "missing"),
        (two_groups, annealing.state_dict(), "groups is 1 in the state and 2 in the optimizer"),
    ):
        before = scheduler.state_dict()
        with pytest.raises(ValueError, match=f"{type(scheduler).__name__}.*{message}"):
            scheduler.load_state_dict(state)
        assert scheduler.state_dict() == before
    malicious = {"lf": "lambda x, y: __import__('os').system('true')"}
    with pytest.raises(ValueError, match="system"):
        cawb.load_state_dict(cawb.state_dict() | malicious)
    with pytest.raises(ValueError, match="'wave', allowed are constant"):
        annealing.load_state_dict(annealing.state_dict() | {"learning_rate_schedule": "wave"})


# ------------------------------------------------------------------ subclasses


class Triangle(BatchWarmup):
    """A user's schedule: up to the middle of the run and down again."""

    changes_every_batch = True

    def __init__(self, optimizer, epochs, batchs, floor=0.1):
        super().__init__(optimizer, epochs, batchs, warmup_epoch=1)
        self.floor = floor

    def _rates(self, epoch, samples):
        height = 1 - abs(2 * epoch / self.epochs - 1)
        return [base * (self.floor + height) for base in self.base_lr]


def test_a_subclass_needs_only_its_formula():
    """Per-batch rates, plan, resume and extension follow from `__init__` and `_rates`."""
    optimizer = fake_optimizer(0.1)
    scheduler = Triangle(optimizer, 4, 5, floor=0.2)
    [curve] = plan(scheduler, 4, [1] * 5)
    assert follow(optimizer, scheduler, 4, 5) == [[lr] for lr in curve]
    for i, lr in enumerate(curve):
        expected = i / 5 if i < 5 else 1.2 - abs(i / 10 - 1)
        assert lr == pytest.approx(0.1 * expected)

    optimizer = fake_optimizer(0.1)
    scheduler = Triangle(optimizer, 4, 5, floor=0.2)
    for i in range(8):
        if i % 5 == 0:
            scheduler.step()
        scheduler.step_batch()
    resumed_optimizer = fake_optimizer(0.7)
    resumed = Triangle(resumed_optimizer, 4, 5)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.floor == 0.2
    resumed.extend(9)
    [longer] = plan(Triangle(fake_optimizer(0.1), 9, 5, floor=0.2), 9, [1] * 5)
    assert follow(resumed_optimizer, resumed, 9, 5, start=8) == [[lr] for lr in longer[8:]]


def test_samples_are_counted_for_every_subclass():
    class BySamples(BatchWarmup):
        changes_every_batch = True

        def _rates(self, epoch, samples):
            return [base / (1 + samples) for base in self.base_lr]

    scheduler = BySamples(fake_optimizer(1.0), epochs=2, batchs=3)
    scheduler.step(0)
    assert [scheduler.step_batch(size) for size in (4, 5, 6)] == [1.0, 1 / 5, 1 / 10]
    resumed = BySamples(fake_optimizer(1.0), epochs=2, batchs=3)
    resumed.load_state_dict(scheduler.state_dict())
    resumed.step(1)
    assert resumed.step_batch(4) == 1 / 16


@pytest.mark.parametrize("value", [{"a": 1}, (1, 2), torch.ones(2), np.ones(2), math.cos, [[{}]]])
def test_an_attribute_that_cannot_be_saved_is_named(value):
    scheduler = Triangle(fake_optimizer(0.1), 4, 5)
    scheduler.shape = value
    with pytest.raises(TypeError, match=r"Triangle.shape: cannot save a \w+ \(allowed are numbers"):
        scheduler.state_dict()
    del scheduler.shape
    scheduler._shape = value
    assert "_shape" not in scheduler.state_dict()


# ------------------------------------------------------------------ optimizers


def test_tensor_rates_are_filled_in_place():
    lr = torch.tensor(0.1)
    optimizer = fake_optimizer(lr, 0.2)
    scheduler = CAWB(optimizer, epochs=3, eta_min=0.0, batchs=2, warmup_epoch=1)
    scheduler.step_batch()
    scheduler.step_batch()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lrs_of(optimizer) == pytest.approx([0.05, 0.1])
    scheduler.step(2)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lrs_of(optimizer) == pytest.approx([0.05, 0.1])
    AnnealingLR(optimizer, "constant").step_batch()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lrs_of(optimizer) == pytest.approx([0.1, 0.2])


def test_a_compiled_optimizer_is_compiled_once():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.Adam([parameter], lr=torch.tensor(0.1), foreach=False)
    scheduler = CAWB(optimizer, epochs=4, batchs=3, warmup_epoch=1)
    torch._dynamo.reset()
    compilations = CompileCounter()
    optimizer_step = torch.compile(optimizer.step, backend=compilations)
    updates = []
    for epoch in range(4):
        scheduler.step(epoch)
        for _ in range(3):
            scheduler.step_batch()
            before = parameter.detach().clone()
            optimizer_step()
            updates.append(float((before - parameter.detach())[0]))
    assert compilations.frame_count == 1
    # With a constant gradient, Adam's update is the learning rate.
    assert updates == pytest.approx(list(plan(scheduler, 4, [1] * 3)[0]), rel=1e-4, abs=1e-6)


# ------------------------------------------------------------------ the file


def test_schedulers_is_not_a_command():
    done = run_python(["-m", "utils.schedulers", "--hyp", "cawb.yaml"], cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert "use python -m utils.plan" in done.stderr and done.stderr.count("\n") == 1


def test_documented_lines_of_code_exist():
    """docs/schedulers.md explains the algorithm line by line: each quoted line is in the file."""
    text = (ROOT / "docs" / "schedulers.md").read_text()
    section = text[text.index("### Line by line") : text.index("### Where it")]
    rows = re.findall(r"^\| `([^`]+)` \| \S.* \| \S.*\|$", section, re.MULTILINE)
    source = (ROOT / "utils" / "schedulers.py").read_text()
    code = {line.partition("  # ")[0].strip() for line in source.splitlines()}
    assert len(rows) > 20
    assert [row for row in rows if row not in code] == []


def test_the_program_in_the_docs_runs_and_resumes(tmp_path, monkeypatch, capsys):
    """It is taken from docs/schedulers.md, stopped after 5 epochs, and started again."""
    text = (ROOT / "docs" / "schedulers.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    outputs = {}
    for name, stop_after in (("whole", 0), ("parts", 5)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        if stop_after:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(torch, "save", stop_after_saves(stop_after))
                runpy.run_path(str(tmp_path / "program.py"))
        runpy.run_path(str(tmp_path / "program.py"))
        outputs[name] = capsys.readouterr().out
        assert (tmp_path / name / "lr.png").stat().st_size > 5000
    assert outputs["parts"] == outputs["whole"]
    whole, parts = (torch.load(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert bitwise_equal(whole, parts)

    printed = [float(line.split()[-1]) for line in outputs["whole"].splitlines()]
    assert len(printed) == 30
    bounds = [2, 10, 20, 30]  # 33% and 66% of 30 epochs, to the nearest
    for epoch in range(3, 30):
        i = next(k for k in range(3) if epoch <= bounds[k + 1])
        gap = bounds[i + 1] - bounds[i] + (i < 2)
        cosine = (1 + math.cos(math.pi * (epoch - bounds[i]) / gap)) / 2 * 0.95 + 0.05
        assert printed[epoch] == pytest.approx(0.05 * 0.7**i * cosine, abs=1e-6)


def stop_after_saves(count: int):
    """Return torch.save, which after that many calls raises KeyboardInterrupt."""
    save, calls = torch.save, []

    def save_and_stop(*args: object) -> None:
        save(*args)
        calls.append(args)
        if len(calls) == count:
            raise KeyboardInterrupt

    return save_and_stop


def test_steps_that_are_one_text_are_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=re.escape("steps: found '33%', need a list such as [30")):
        CosineAnnealingWarmbootingLR(optimizer, 100, steps="33%")


def test_steps_that_look_like_fractions_of_the_run_are_said():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.warns(UserWarning, match=re.escape("steps: 0.33 is in the first epoch")):
        CosineAnnealingWarmbootingLR(optimizer, 100, steps=[0.33, 50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CosineAnnealingWarmbootingLR(optimizer, 1, steps=[0.33], batchs=100, per_batch=True)
        CosineAnnealingWarmbootingLR(optimizer, 100, steps=["33%", 50.5])
