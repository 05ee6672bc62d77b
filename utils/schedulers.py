"""Learning-rate schedules for any training loop: CAWB, the sample-count family, and the picture of a run before it is run.

`CosineAnnealingWarmbootingLR` (CAWB) is cosine decay that boots again at chosen epochs; `AnnealingLR` holds eight schedules that
count samples. A schedule is a function of the place in the run (`lr_at`); the scheduler only remembers the place. What trains,
what is drawn before training and what a resumed run continues with are the same function.

This file needs torch and the standard library alone (matplotlib only to draw), so that it can be copied into any repository.
`python -m utils.schedulers --help` prints and draws what hyp files plan.
"""

import ast
import functools
import inspect
import math
import operator
import re
import warnings
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

# --- the sample-count schedules ---------------------------------------------------------------------------------------------


@functools.lru_cache
def parse_milestones(text: str) -> tuple[tuple[float, float], ...]:
    """The pairs (count, rate) of a text such as "1000:1.0,2000:0.9". Raises ValueError for any other text."""
    pairs = []
    for pair in text.split(","):
        try:
            count, rate = map(float, pair.split(":"))
        except ValueError:
            count = rate = math.nan
        if not (math.isfinite(count) and math.isfinite(rate)):
            raise ValueError(f"found {pair.strip()!r}, need pairs such as '1000:1.0,2000:0.9'")
        pairs.append((count, rate))
    return tuple(pairs)


def _manual(lr: float, t: float, args: str) -> float:
    pairs = parse_milestones(args)
    return lr * next((rate for count, rate in pairs if t <= count), pairs[-1][1])


# A name for the hyp file, and the rate as a function of the base rate, the count t, and what it takes of a, b and args, which are
# learning_rate_decay_a, _b and learning_rate_args. t counts samples; for pass_manual, passes. To add a schedule, add a line.
SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": lambda lr, t: lr,
    "poly": lambda lr, t, a, b: lr * (1 + a * t) ** -b,
    "caffe_poly": lambda lr, t, a, b: 0.0 if t > a else lr * (1 - t / a) ** b,
    "exp": lambda lr, t, a, b: lr * a ** (t / b),
    "discexp": lambda lr, t, a, b: lr * a ** math.floor(t / b),
    "linear": lambda lr, t, a, b=0.0: max(lr - a * t, b),
    "manual": _manual,
    "pass_manual": _manual,
}
_LONG_NAMES = {
    "a": "learning_rate_decay_a",
    "b": "learning_rate_decay_b",
    "args": "learning_rate_args",
}


def schedule_arguments(schedule: str) -> dict[str, inspect.Parameter]:
    """What a schedule of `SCHEDULES` takes, by the names that hyp files have. Raises ValueError for an unknown schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(
            f"learning_rate_schedule: found {schedule!r}, allowed are {', '.join(SCHEDULES)}"
        )
    parameters = list(inspect.signature(SCHEDULES[schedule]).parameters.values())[2:]
    for parameter in parameters:
        if parameter.name not in _LONG_NAMES:
            raise TypeError(
                f"schedule {schedule!r} takes {parameter.name!r}; beside lr and t it can take a, b and args"
            )
    return {_LONG_NAMES[parameter.name]: parameter for parameter in parameters}


def _real(value: Any) -> float:
    """Pass on a real number; a complex one (a root of a negative number) must not come back as a real one through abs()."""
    if isinstance(value, complex):
        raise ValueError("the result is no real number")
    return float(value)


def _bind(
    schedule: str, a: float, b: float, args: str
) -> Callable[[list[float], float], list[float]]:
    """The schedule as a function of the base rates and t alone."""
    given = {
        "learning_rate_decay_a": float(a),
        "learning_rate_decay_b": float(b),
        "learning_rate_args": args,
    }
    own = [given[key] for key in schedule_arguments(schedule)]
    formula = SCHEDULES[schedule]

    def rates(base: list[float], t: float) -> list[float]:
        try:
            if base.count(base[0]) == len(
                base
            ):  # as most runs have it: one base rate, so one rate, for all groups
                return [_real(formula(base[0], t, *own))] * len(base)
            return [_real(formula(lr, t, *own)) for lr in base]
        except (ArithmeticError, ValueError) as error:
            arguments = "".join(
                f", {key}={value!r}"
                for key, value in zip(schedule_arguments(schedule), own, strict=True)
            )
            why = error.args[-1] if error.args else type(error).__name__
            raise ValueError(f"{schedule} has no value at t={t}{arguments}: {why}") from None

    return rates


def anneal(
    learning_rate_schedule: str,
    learning_rate: float,
    t: float,
    learning_rate_decay_a: float = 0.0,
    learning_rate_decay_b: float = 0.0,
    learning_rate_args: str = "",
) -> float:
    """The rate of a sample-count schedule when `t` samples (for pass_manual, passes) have been processed.

    With lr, a, b for learning_rate and the two decays (formulas of PaddlePaddle's first generation):

        constant  lr                        linear       max(lr - a*t, b)
        poly      lr * (1 + a*t)**-b        caffe_poly   lr * (1 - t/a)**b, and 0 once t > a
        exp       lr * a**(t/b)             manual       "1000:1.0,2000:0.9": lr times the rate of the first pair with t <= its
        discexp   lr * a**floor(t/b)                     count, the last pair's rate after it
                                            pass_manual  the same, counted in passes

    Raises ValueError for an unknown schedule, for `learning_rate_args` that are no such pairs, and where a formula has no value.
    """
    rates = _bind(
        learning_rate_schedule, learning_rate_decay_a, learning_rate_decay_b, learning_rate_args
    )
    return float(rates([learning_rate], t)[0])


# --- the schedulers -----------------------------------------------------------------------------------------------------------


def _put(group: dict[str, Any], lr: float) -> None:
    if isinstance(
        group["lr"], Tensor
    ):  # capturable and compiled optimizers hold on to this very tensor
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _plain(value: Any) -> Any:
    """A copy without numpy's numbers, which the safe loader does not take."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


class BatchWarmup(LRScheduler):
    """What every scheduler here shares: the parameter groups, the batch-wise warm-up from 0, and the state.

    It is an `LRScheduler` by type, so that frameworks accept it, but asks no more of the optimizer than `param_groups`. A
    subclass gives `_rates(epoch, samples)`, every group's rate once the warm-up is over, and adds its attributes to `_state`.

    Call `step(epoch)` at the start of each epoch and `step_batch()` before each batch.
    """

    _state: tuple[str, ...] = (
        "iters",
        "iters_batch",
        "last_epoch",
        "base_lr",
        "batchs",
        "warmup_epoch",
    )
    num_samples_processed = 0  # stays 0 in a schedule that counts no samples
    _by_batch = False  # whether the rate changes inside an epoch once the warm-up is over
    _step_count = 0  # torch's own count, which Accelerate adds to; nothing here depends on it

    def __init__(self, optimizer: Any, batchs: int, warmup_epoch: float) -> None:
        # LRScheduler.__init__ is left out on purpose: it wants a torch optimizer, patches its step() and takes a first step.
        self.optimizer = optimizer
        # A group that was decayed before keeps its first rate in `initial_lr`: start from that, not from the decayed one.
        self.base_lr = [
            float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups
        ]
        for group, lr in zip(optimizer.param_groups, self.base_lr, strict=True):
            group.setdefault("initial_lr", lr)
        self.batchs = batchs
        self.warmup_epoch = warmup_epoch
        self.warmup_iters = batchs * warmup_epoch
        self.iters = -1
        self.iters_batch = -1
        self.last_epoch = 0

    def _rates(self, epoch: float, samples: int) -> list[float]:
        raise NotImplementedError

    def _set(self, rates: list[float]) -> float:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            if group["lr"].__class__ is float:
                group["lr"] = lr
            else:
                _put(group, lr)
        return rates[0]

    def step(self, external_iter: int | None = None) -> float:
        """Go to the next epoch, or to `external_iter`; sets every group's rate and returns the first group's."""
        self.iters = self.iters + 1 if external_iter is None else external_iter
        return self._set(self._rates(self.iters + self.last_epoch, self.num_samples_processed))

    def step_batch(self, samples: int | None = None) -> float | None:
        """Set this batch's rate, if it is one of the warm-up, and return the first group's; after the warm-up, None."""
        self.iters_batch += 1
        if self.iters_batch >= self.warmup_iters:
            return None
        share = self.iters_batch / self.warmup_iters
        # Written out, in every batch: by way of `_set` it takes twice the time. That the groups are as many, `step` has seen.
        for group, base in zip(self.optimizer.param_groups, self.base_lr):  # noqa: B905
            if group["lr"].__class__ is float:
                group["lr"] = base * share
            else:
                _put(group, base * share)
        return self.base_lr[0] * share

    def lr_at(self, epoch: int, batch: int, samples: int = 0) -> list[float]:
        """Every group's rate in batch `batch` of epoch `epoch` (both from 0), `samples` having been processed before it.

        Whatever the scheduler has lived through makes no difference.
        """
        if (count := epoch * self.batchs + batch) >= self.warmup_iters:
            return self._rates(epoch, samples)
        share = count / self.warmup_iters
        return [base * share for base in self.base_lr]

    def get_last_lr(self) -> list[float]:
        """The groups' rates as they stand."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    get_lr = get_last_lr

    def state_dict(self) -> dict[str, Any]:
        """Counts, base rates, arguments and the groups' rates as plain data: numbers, texts, lists."""
        return {name: _plain(getattr(self, name)) for name in self._state} | {
            "last_lr": self.get_last_lr()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up the place, the arguments and the groups' rates of `state_dict`.

        Raises ValueError when it is the state of another class or of another number of groups.
        """
        self._check(state_dict)
        for name in self._state:
            setattr(self, name, _plain(state_dict[name]))
        self.warmup_iters = self.batchs * self.warmup_epoch
        self._set(state_dict["last_lr"])

    def _check(self, state: Mapping[str, Any]) -> None:
        needed, groups = {*self._state, "last_lr"}, len(self.optimizer.param_groups)
        if state.keys() != needed:
            raise ValueError(
                f"{type(self).__name__}: the state has {sorted(state)}, need {sorted(needed)}"
            )
        if not len(state["base_lr"]) == len(state["last_lr"]) == groups:
            raise ValueError(
                f"{type(self).__name__}: the state has {len(state['base_lr'])} groups, the optimizer {groups}"
            )


class CosineAnnealingWarmbootingLR(BatchWarmup):
    """CAWB: cosine decay that boots again at chosen epochs, each time from a scaled peak, after a batch-wise warm-up.

    With B = [warmup_epoch, the steps strictly between it and `epochs`, epochs] and e epochs done, the segment is the first i with
    e <= B[i+1], and lr = base_lr * step_scale**i * f(e - B[i], gap), gap being B[i+1] - B[i], plus `epoch_scale` in every segment
    but the last. f(x, y) is `lf`, or (1 + cos(pi x / y)) / 2 * (1 - eta_min) + eta_min. Published in 2021 as CAWB (Huangdebo).

    Args:
        optimizer: anything with `param_groups`, each with its `lr` (or `initial_lr`).
        epochs: length of the run.
        eta_min: floor of the cosine, as a share of the peak, 0..1; unused when `lf` is given.
        steps: epochs after which the rate boots again; those outside (warmup_epoch, epochs) are left out.
        step_scale: what each boot multiplies the peak by.
        lf: a function (epochs into the segment, its length) -> factor, or a text for `parse_lf`.
        batchs: batches in an epoch; needed for the warm-up.
        warmup_epoch: epochs in which `step_batch` raises the rate from 0 to the base rate.
        epoch_scale: epochs by which a segment is stretched, so that it ends above its floor.

    Raises ValueError for an `lf` text that `parse_lf` refuses.
    """

    _state = (*BatchWarmup._state, "epochs", "eta_min", "steps", "step_scale", "epoch_scale")

    def __init__(
        self,
        optimizer: Any,
        epochs: int = 0,
        eta_min: float = 0.05,
        steps: Iterable[float] = (),
        step_scale: float = 0.8,
        lf: Callable[[float, float], float] | str | None = None,
        batchs: int = 0,
        warmup_epoch: int = 0,
        epoch_scale: float = 1.0,
    ) -> None:
        super().__init__(optimizer, batchs, warmup_epoch)
        self.epochs = epochs
        self.eta_min = eta_min
        self.steps = [warmup_epoch, *sorted(s for s in steps if warmup_epoch < s < epochs), epochs]
        self.step_scale = step_scale
        self.epoch_scale = epoch_scale
        self.lf = parse_lf(lf) if isinstance(lf, str) else lf

    @property
    def gap(self) -> float:
        """Length of the segment that the scheduler is in, stretched as the formula has it, in epochs."""
        return self._segment(max(self.iters, 0) + self.last_epoch)[2]

    def _segment(self, epoch: float) -> tuple[int, float, float]:
        """Number of the segment that `epoch` falls in, epochs into it, and its length."""
        bounds = self.steps
        epoch = min(epoch, bounds[-1])  # past the end the last value is held
        last = len(bounds) - 2
        i = next(i for i in range(last + 1) if epoch <= bounds[i + 1])
        gap = bounds[i + 1] - bounds[i] + (self.epoch_scale if i < last else 0)
        # A run shorter than its warm-up has a segment without length; it stands at its start.
        return (i, epoch - bounds[i], gap) if gap > 0 else (i, 0, 1)

    def _factor(self, x: float, gap: float) -> float:
        if self.lf is None:
            return (1 + math.cos(math.pi * x / gap)) / 2 * (1 - self.eta_min) + self.eta_min
        if x >= 0:
            return self.lf(x, gap)
        try:
            value = self.lf(x, gap)
            if isinstance(value, complex):
                raise ValueError
            return value
        except (ValueError, ArithmeticError):
            # Before the warm-up ends x is negative, and `step_batch` overwrites the value before a batch sees it: an lf that is
            # not defined there must not stop the run.
            return self.lf(0, gap)

    def _rates(self, epoch: float, samples: int) -> list[float]:
        i, x, gap = self._segment(epoch)
        factor = self.step_scale**i * self._factor(x, gap)
        return [base * factor for base in self.base_lr]

    def state_dict(self) -> dict[str, Any]:
        """As the base class has it, with the text of `lf`. An `lf` written in Python is left out, with a warning that says so."""
        state = super().state_dict()
        if self.lf is None or isinstance(self.lf, LF):
            return state | {"lf": self.lf and self.lf.text}
        warnings.warn(
            "state_dict: lf is a Python function and is left out; build the scheduler with it again",
            stacklevel=2,
        )
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the base class has it. Where the state has left an `lf` out, the scheduler's own is kept, and must be there."""
        state = dict(state_dict)
        text = state.pop("lf", self.lf)
        self._check(state)
        if text is None and "lf" not in state_dict:
            raise ValueError(
                "the state is of a schedule with an lf written in Python; build the scheduler with that lf first"
            )
        lf = parse_lf(text) if isinstance(text, str) else text
        super().load_state_dict(state)
        self.lf = lf


class AnnealingLR(BatchWarmup):
    """The eight sample-count schedules of `anneal` behind one class, after the same batch-wise warm-up as CAWB's.

    Args:
        optimizer: anything with `param_groups`, each with its `lr` (or `initial_lr`).
        learning_rate_schedule: a name of `SCHEDULES`, which `anneal` explains.
        learning_rate_decay_a, learning_rate_decay_b, learning_rate_args: as in `anneal`; each schedule takes its own of them.
        batch_size: samples that `step_batch` counts when it is not told.
        batchs: batches in an epoch; needed for the warm-up.
        warmup_epoch: epochs in which `step_batch` raises the rate from 0 to the base rate; their samples count, too.

    Raises ValueError as `anneal` does.
    """

    _by_batch = True
    _state = (
        *BatchWarmup._state, "learning_rate_schedule", "learning_rate_decay_a", "learning_rate_decay_b", "learning_rate_args",
        "batch_size", "num_samples_processed",
    )  # fmt: skip

    def __init__(
        self,
        optimizer: Any,
        learning_rate_schedule: str = "constant",
        learning_rate_decay_a: float = 0.0,
        learning_rate_decay_b: float = 0.0,
        learning_rate_args: str = "",
        batch_size: int = 1,
        batchs: int = 0,
        warmup_epoch: int = 0,
    ) -> None:
        super().__init__(optimizer, batchs, warmup_epoch)
        self.learning_rate_schedule = learning_rate_schedule
        self.learning_rate_decay_a = learning_rate_decay_a
        self.learning_rate_decay_b = learning_rate_decay_b
        self.learning_rate_args = learning_rate_args
        self.batch_size = batch_size
        self._bind()
        self._rates(
            0, 0
        )  # arguments that give no rate at all are found here, not in the first batch

    def _bind(self) -> None:
        arguments = self.learning_rate_decay_a, self.learning_rate_decay_b, self.learning_rate_args
        self._anneal = _bind(self.learning_rate_schedule, *arguments)

    def _rates(self, epoch: float, samples: int) -> list[float]:
        t = epoch if self.learning_rate_schedule == "pass_manual" else samples
        return self._anneal(self.base_lr, t)

    def step_batch(self, samples: int | None = None) -> float:
        """Set this batch's rate from the count so far, then count its `samples` (default: `batch_size`).

        Returns the first group's rate. Batches before any `step()` belong to pass 0.
        """
        if self.iters < 0:
            self.iters = 0
        rate = super().step_batch()
        if rate is None:
            rate = self._set(self._rates(self.iters + self.last_epoch, self.num_samples_processed))
        self.num_samples_processed += self.batch_size if samples is None else samples
        return rate

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the base class has it."""
        super().load_state_dict(state_dict)
        self._bind()


# --- lf: a function written in a hyp file -----------------------------------------------------------------------------------

_MAX_TEXT = 500  # characters; also what bounds the work of one evaluation
_MAX_DEPTH = 100  # operations inside operations, well within what Python's own stack takes
_NEEDS_INTEGERS_OR_LISTS = {
    "comb", "dist", "factorial", "frexp", "fsum", "gcd", "isqrt", "lcm", "ldexp", "modf", "perm", "prod", "sumprod",
}  # fmt: skip
_MATH = {
    n: getattr(math, n)
    for n in dir(math)
    if not n.startswith("_") and n not in _NEEDS_INTEGERS_OR_LISTS
}
_CONSTANTS = {name: value for name, value in _MATH.items() if isinstance(value, float)}
_FUNCTIONS = {name: value for name, value in _MATH.items() if callable(value)} | {
    "min": min,
    "max": max,
    "abs": abs,
}
_OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.UAdd: operator.pos, ast.USub: operator.neg,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip

_Node = Callable[[tuple[float, ...]], float]


class LF:
    """A function of (epochs into the segment, the segment's length), made from a text by `parse_lf`; `text` is that text."""

    def __init__(self, text: str, body: _Node) -> None:
        self.text = text
        self._body = body

    def __call__(self, x: float, y: float) -> float:
        """The factor at x of y epochs. Raises ValueError where it has no value: overflow, division by zero, no real number."""
        try:
            value = self._body((float(x), float(y)))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(
                f"lf {self.text!r} has no value at x={x}, y={y}: {error.args[-1]}"
            ) from None
        if not math.isfinite(value):
            raise ValueError(
                f"lf {self.text!r} gives {value} at x={x}, y={y}; a finite number is needed"
            )
        return value

    def __repr__(self) -> str:
        return f"parse_lf({self.text!r})"


def parse_lf(text: str) -> LF:
    """Make a function of a text such as "lambda x, y: (1 - x / y) * 0.8 + 0.2", without ever running it as code.

    The lambda has two arguments; the second may have a default. Allowed are arithmetic, comparison, `if else`, numbers, and the
    functions and constants of `math` that work on floats, with `min`, `max` and `abs`, written `cos` or `math.cos`. Every number
    is a float, so no result grows without bound. Raises ValueError, naming what was found, for anything else.
    """
    if not isinstance(text, str):
        raise ValueError(f"lf: found {text!r}, need a text such as 'lambda x, y: 1 - x / y'")
    if len(text) > _MAX_TEXT:
        raise ValueError(f"lf: {len(text)} characters long, at most {_MAX_TEXT} are allowed")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"lf {text!r} is no expression: {getattr(error, 'msg', error)}") from None
    if not isinstance(tree, ast.Lambda):
        raise ValueError(f"lf {text!r}: found {_describe(tree)}, need 'lambda x, y: ...'")
    spec = tree.args
    names = [a.arg for a in spec.posonlyargs + spec.args]
    if (
        len(names) != 2
        or len(set(names)) != 2
        or spec.vararg
        or spec.kwarg
        or spec.kwonlyargs
        or len(spec.defaults) > 1
    ):
        raise ValueError(
            f"lf {text!r}: a lambda with exactly two arguments is needed, the second may have a default"
        )
    try:
        for (
            default
        ) in spec.defaults:  # checked like everything else, though the length is always given
            _compile(default, [], text)
        lf = LF(text, _compile(tree.body, names, text))
        for node in ast.walk(
            tree.body
        ):  # what fails whatever the arguments are need not wait for them
            if isinstance(node, ast.BinOp | ast.Call) and not any(
                isinstance(n, ast.Name) and n.id in names for n in ast.walk(node)
            ):
                LF(text, _compile(node, [], text))(0, 0)
        return lf
    except RecursionError:
        raise ValueError(f"lf {text!r}: is nested too deeply") from None


def _describe(node: ast.AST) -> str:
    return f"{type(node).__name__} ({ast.unparse(node)!r})"


def _compile(node: ast.AST, names: list[str], text: str, depth: int = 0) -> _Node:
    """Turn a checked syntax tree into nested functions of the arguments' values."""
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"lf {text!r}: is nested too deeply, at most {_MAX_DEPTH} levels are allowed"
        )

    def sub(child: ast.AST) -> _Node:
        return _compile(child, names, text, depth + 1)

    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        try:
            number = float(node.value)
        except OverflowError:
            raise ValueError(f"lf {text[:60]!r}: a number is too large") from None
        return lambda args: number
    if isinstance(node, ast.Name) and node.id in names:
        position = names.index(node.id)
        return lambda args: args[position]
    if (name := _math_name(node, names)) in _CONSTANTS:
        constant = _CONSTANTS[name]
        return lambda args: constant
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        binary, left, right = _OPERATORS[type(node.op)], sub(node.left), sub(node.right)
        return lambda args: _real(binary(left(args), right(args)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        unary, operand = _OPERATORS[type(node.op)], sub(node.operand)
        return lambda args: unary(operand(args))
    if isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops):
        terms = [sub(child) for child in (node.left, *node.comparators)]
        relations = [_OPERATORS[type(op)] for op in node.ops]

        def compare(args: tuple[float, ...]) -> float:
            values = [term(args) for term in terms]
            return float(
                all(r(a, b) for r, a, b in zip(relations, values, values[1:], strict=False))
            )

        return compare
    if isinstance(node, ast.IfExp):
        test, then, other = sub(node.test), sub(node.body), sub(node.orelse)
        return lambda args: then(args) if test(args) else other(args)
    if (
        isinstance(node, ast.Call)
        and not node.keywords
        and (name := _math_name(node.func, names)) in _FUNCTIONS
    ):
        function, given = _FUNCTIONS[name], [sub(child) for child in node.args]
        return lambda args: _real(function(*(argument(args) for argument in given)))
    raise ValueError(
        f"lf {text!r}: found {_describe(node)}; allowed are numbers, {', '.join(names) or 'no names'}, arithmetic, comparison, "
        "'if else', and the functions and constants of math"
    )


def _math_name(node: ast.AST, names: list[str]) -> str | None:
    """`cos` for the tree of `cos` or `math.cos`, None for anything else."""
    if isinstance(node, ast.Name) and node.id not in names:
        return node.id
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "math" not in names
    ):
        return node.attr
    return None


# --- from a hyp file to a schedule, and to its picture ----------------------------------------------------------------------

_CAWB_ARGUMENTS = ("steps", "step_scale", "eta_min", "warmup_epoch", "epoch_scale", "lf")


def restart_epoch(step: int | str, epochs: int) -> int:
    """The epoch of a restart that is written as an epoch (30) or as a share of a run of `epochs` ("33%", to the nearest epoch).

    Raises ValueError for anything else.
    """
    if isinstance(step, int) and not isinstance(step, bool) and step > 0:
        return step
    if (
        isinstance(step, str)
        and re.fullmatch(r"\d{1,2}(\.\d{1,9})?%", step)
        and float(step[:-1]) > 0
    ):
        return math.floor(float(step[:-1]) * epochs / 100 + 0.5)
    raise ValueError(
        f"found {step!r}, need an epoch (a whole number from 1) or a share of the run such as 33%"
    )


def build_scheduler(
    block: Mapping[str, Any] | Iterable[tuple[str, Any]],
    optimizer: Any,
    epochs: int,
    batches_per_epoch: int,
    batch_size: int,
) -> BatchWarmup:
    """The schedule that the `scheduler` block of a hyp file describes, for a run of `epochs` of `batches_per_epoch` each.

    `block` holds the `name`, cawb or one of `SCHEDULES`, and that schedule's own arguments; `steps` are epochs or shares of the
    run such as "33%". `batch_size` is what `AnnealingLR.step_batch` counts when it is not told. A restart that falls outside the
    run, or on another, is left out with a UserWarning that names it. Raises ValueError for another name, argument or value.
    """
    arguments = dict(block)
    name = arguments.pop("name", "cawb")
    if name not in ("cawb", *SCHEDULES):
        raise ValueError(
            f"scheduler: name: found {name!r}, allowed are {', '.join(('cawb', *SCHEDULES))}"
        )
    allowed = _CAWB_ARGUMENTS if name == "cawb" else ("warmup_epoch", *schedule_arguments(name))
    for key in arguments:
        if key not in allowed:
            raise ValueError(
                f"scheduler: {key}: is no argument of {name}, whose are {', '.join(allowed)}"
            )
    if name != "cawb":
        try:
            return AnnealingLR(
                optimizer, name, batch_size=batch_size, batchs=batches_per_epoch, **arguments
            )
        except ValueError as error:
            raise ValueError(f"scheduler: {error}") from None
    warmup, steps = arguments.get("warmup_epoch", 0), []
    for step in arguments.pop("steps", ()):
        epoch = restart_epoch(step, epochs)
        if warmup < epoch < epochs and epoch not in steps:
            steps.append(epoch)
            continue
        why = (
            "which has one already"
            if epoch in steps
            else f"but the warm-up ends at {warmup} and the run at {epochs}"
        )
        warnings.warn(
            f"scheduler: steps: {step} is left out: it falls on epoch {epoch}, {why}", stacklevel=2
        )
    return CosineAnnealingWarmbootingLR(
        optimizer, epochs, steps=steps, batchs=batches_per_epoch, **arguments
    )


def plan(scheduler: BatchWarmup, epochs: int, sizes: Sequence[int]) -> list[array]:
    """The rate in every batch of a run of `epochs`, whose batches hold `sizes` samples each: a curve for each parameter group.

    Raises ValueError, naming the epoch, where a rate is not finite or is negative.
    """
    curves = [array("d") for _ in scheduler.base_lr]
    samples = 0
    for epoch in range(epochs):
        for batch, size in enumerate(sizes):
            if batch == 0 or scheduler._by_batch or epoch <= scheduler.warmup_epoch:
                try:
                    rates = scheduler.lr_at(epoch, batch, samples)
                except ValueError as error:
                    raise ValueError(f"scheduler: epoch {epoch}: {error}") from None
                if not all(0 <= lr < math.inf for lr in rates):
                    raise ValueError(
                        f"scheduler: epoch {epoch}: the rate would be {rates}; it must be finite and not negative"
                    )
            for curve, lr in zip(curves, rates, strict=True):
                curve.append(lr)
            samples += size
    return curves


def draw_plan(
    curves: Sequence[array], batches_per_epoch: int, path: str | Path, labels: Sequence[str] = ()
) -> None:
    """Draw curves as `plan` gives them over epochs, equal ones as one line, and write the picture to `path`."""
    from matplotlib.figure import (
        Figure,  # not pyplot: a picture needs no window and no global state
    )

    named: dict[bytes, list[int]] = {}
    for i, curve in enumerate(curves):
        named.setdefault(curve.tobytes(), []).append(i)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for same in named.values():
        curve = curves[same[0]]
        label = (
            ", ".join(labels[i] for i in same) if labels else "group " + ", ".join(map(str, same))
        )
        shown = range(
            0, len(curve), 1 + len(curve) // 20000
        )  # far more than the picture has pixels
        axes.plot(
            [i / batches_per_epoch for i in shown],
            [curve[i] for i in shown],
            linewidth=1.2,
            label=label,
        )
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    from utils.plan import main  # in this project only: it reads hyp files

    raise SystemExit(main())
