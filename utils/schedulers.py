"""Learning-rate schedules: `CosineAnnealingWarmbootingLR` (CAWB), the `lf` texts of hyp files, and the picture of a planned run.

A schedule is a function of the place in the run (`lr_at`); the scheduler only remembers the place. What trains, what is drawn
before training and what a resumed run continues with are the same function.

This file needs torch and the standard library alone (matplotlib only to draw), so that it can be copied into any repository.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

# --- lf: a function written in a hyp file -----------------------------------------------------------------------------------

_MAX_TEXT = 500  # characters; also what bounds the work of one evaluation
_NEEDS_INTEGERS_OR_LISTS = {
    "comb", "dist", "factorial", "frexp", "fsum", "gcd", "isqrt", "lcm", "ldexp", "modf", "perm", "prod", "sumprod",
}  # fmt: skip
_MATH = {n: getattr(math, n) for n in dir(math) if not n.startswith("_") and n not in _NEEDS_INTEGERS_OR_LISTS}
_CONSTANTS = {name: value for name, value in _MATH.items() if isinstance(value, float)}
_FUNCTIONS = {name: value for name, value in _MATH.items() if callable(value)} | {"min": min, "max": max, "abs": abs}
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
            raise ValueError(f"lf {self.text!r} has no value at x={x}, y={y}: {error}") from None
        if not math.isfinite(value):
            raise ValueError(f"lf {self.text!r} gives {value} at x={x}, y={y}; a finite number is needed")
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
    if len(names) != 2 or spec.vararg or spec.kwarg or spec.kwonlyargs or len(spec.defaults) > 1:
        raise ValueError(f"lf {text!r}: a lambda with exactly two arguments is needed, the second may have a default")
    for default in spec.defaults:  # checked like everything else, though the length is always given
        _compile(default, [], text)
    return LF(text, _compile(tree.body, names, text))


def _describe(node: ast.AST) -> str:
    return f"{type(node).__name__} ({ast.unparse(node)!r})"


def _real(value: Any) -> float:
    """Pass on a real number; complex ones (a root of a negative number) must not come back as real ones through abs()."""
    if isinstance(value, complex):
        raise ValueError("the result is no real number")
    return float(value)


def _compile(node: ast.AST, names: list[str], text: str) -> _Node:
    """Turn a checked syntax tree into nested functions of the arguments' values."""

    def sub(child: ast.AST) -> _Node:
        return _compile(child, names, text)

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
            return float(all(r(a, b) for r, a, b in zip(relations, values, values[1:], strict=False)))

        return compare
    if isinstance(node, ast.IfExp):
        test, then, other = sub(node.test), sub(node.body), sub(node.orelse)
        return lambda args: then(args) if test(args) else other(args)
    if isinstance(node, ast.Call) and not node.keywords and (name := _math_name(node.func, names)) in _FUNCTIONS:
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
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math" not in names:
        return node.attr
    return None


# --- schedules --------------------------------------------------------------------------------------------------------------


class BatchWarmup(LRScheduler):
    """What every schedule here shares: the parameter groups and the batch-wise warm-up from 0.

    It is an `LRScheduler` by type, so that frameworks accept it, but asks no more of the optimizer than `param_groups`. A
    subclass gives `_rates(epoch)`, every group's rate once the warm-up is over.
    """

    def __init__(self, optimizer: Any, batchs: int, warmup_epoch: float) -> None:
        # LRScheduler.__init__ is left out on purpose: it wants a torch optimizer, patches its step() and takes a first step.
        self.optimizer = optimizer
        # A group that was decayed before keeps its first rate in `initial_lr`: start from that, not from the decayed one.
        self.base_lr = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        for group, lr in zip(optimizer.param_groups, self.base_lr, strict=True):
            group.setdefault("initial_lr", lr)
        self.batchs = batchs
        self.warmup_epoch = warmup_epoch
        self.warmup_iters = batchs * warmup_epoch
        self.iters = -1
        self.iters_batch = -1
        self.last_epoch = 0

    def _set(self, rates: Iterable[float]) -> float:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):  # capturable and compiled optimizers hold on to this very tensor
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        return float(self.optimizer.param_groups[0]["lr"])

    def _warmup(self, batch: int) -> list[float]:
        return [base * batch / self.warmup_iters for base in self.base_lr]

    def step_batch(self) -> float | None:
        """Call before each batch: sets the warm-up's rate and returns the first group's; after the warm-up, None."""
        self.iters_batch += 1
        if self.iters_batch >= self.warmup_iters:
            return None
        return self._set(self._warmup(self.iters_batch))

    def lr_at(self, epoch: int, batch: int) -> list[float]:
        """Every group's rate in batch `batch` (from 0) of epoch `epoch` (from 0), whatever the scheduler has lived through."""
        count = epoch * self.batchs + batch
        return self._warmup(count) if count < self.warmup_iters else self._rates(epoch)

    def _rates(self, epoch: int) -> list[float]:
        raise NotImplementedError

    def get_last_lr(self) -> list[float]:
        """The groups' rates as they stand."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]


class CosineAnnealingWarmbootingLR(BatchWarmup):
    """CAWB: cosine decay that boots again at chosen epochs, each time from a scaled peak, after a batch-wise warm-up.

    With B = [warmup_epoch, the steps strictly between it and `epochs`, epochs] and e epochs done, the segment is the first i with
    e <= B[i+1], and lr = base_lr * step_scale**i * f(e - B[i], gap), gap being B[i+1] - B[i], plus `epoch_scale` in every segment
    but the last. f(x, y) is `lf`, or (1 + cos(pi x / y)) / 2 * (1 - eta_min) + eta_min. Published in 2021 as CAWB.

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

    Call `step(epoch)` at the start of each epoch and `step_batch()` before each batch. Raises ValueError for an `lf` text that
    `parse_lf` refuses.
    """

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
        self.gap = self._segment(0)[2]

    def step(self, external_iter: int | None = None) -> float:
        """Go to the next epoch, or to `external_iter`; sets every group's rate and returns the first group's."""
        self.iters = self.iters + 1 if external_iter is None else external_iter
        epoch = self.iters + self.last_epoch
        self.gap = self._segment(epoch)[2]
        return self._set(self._rates(epoch))

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

    def _rates(self, epoch: int) -> list[float]:
        i, x, gap = self._segment(epoch)
        factor = self.step_scale**i * self._factor(x, gap)
        return [base * factor for base in self.base_lr]

    def state_dict(self) -> dict[str, Any]:
        """Counts, base rates and arguments as plain data. An `lf` that is no text of a hyp file is left out."""
        names = ("iters", "iters_batch", "last_epoch", "base_lr", "batchs", "warmup_epoch", "epochs", "eta_min", "steps")
        state = {name: getattr(self, name) for name in (*names, "step_scale", "epoch_scale")}
        state["base_lr"], state["steps"] = list(self.base_lr), list(self.steps)
        state["lf"] = self.lf.text if isinstance(self.lf, LF) else None
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up the place and the arguments of `state_dict`; the groups' rates are set to those of that place."""
        state = dict(state_dict)
        text = state.pop("lf")
        self.__dict__.update(state)
        self.base_lr, self.steps = list(self.base_lr), list(self.steps)
        self.lf = parse_lf(text) if text is not None else self.lf
        self.warmup_iters = self.batchs * self.warmup_epoch
        epoch = self.iters + self.last_epoch
        self.gap = self._segment(epoch)[2]
        if 0 <= self.iters_batch < self.warmup_iters:
            self._set(self._warmup(self.iters_batch))
        elif self.iters >= 0:
            self._set(self._rates(epoch))


# --- from a hyp file to a schedule, and to its picture ----------------------------------------------------------------------


def build_scheduler(
    block: Mapping[str, Any] | Iterable[tuple[str, Any]], optimizer: Any, epochs: int, batches_per_epoch: int
) -> CosineAnnealingWarmbootingLR:
    """The schedule that the `scheduler` block of a hyp file describes, for a run of `epochs` of `batches_per_epoch` each.

    `block` holds `name: cawb` and CAWB's arguments. Raises ValueError for another name.
    """
    arguments = dict(block)
    name = arguments.pop("name")
    if name != "cawb":
        raise ValueError(f"scheduler: name: found {name!r}, allowed is cawb")
    return CosineAnnealingWarmbootingLR(optimizer, epochs=epochs, batchs=batches_per_epoch, **arguments)


def plan(scheduler: BatchWarmup, epochs: int, batches_per_epoch: int) -> list[list[float]]:
    """Every group's rate in every batch of the run, in order: a list of `epochs * batches_per_epoch` lists.

    Raises ValueError, naming the epoch, where a rate is not finite or is negative.
    """
    planned = []
    for epoch in range(epochs):
        for batch in range(batches_per_epoch):
            try:
                rates = scheduler.lr_at(epoch, batch)
            except ValueError as error:
                raise ValueError(f"scheduler: epoch {epoch}: {error}") from None
            if not all(math.isfinite(lr) and lr >= 0 for lr in rates):
                raise ValueError(f"scheduler: epoch {epoch}: the rate would be {rates}; it must be finite and not negative")
            planned.append(rates)
    return planned


def draw_plan(planned: list[list[float]], batches_per_epoch: int, path: str | Path) -> None:
    """Draw the curves of a `plan`, one line for each different group, over epochs, and write them to the picture `path`."""
    from matplotlib.figure import Figure  # not pyplot: a picture needs no window and no global state

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [i / batches_per_epoch for i in range(len(planned))]
    curves: dict[tuple[float, ...], list[int]] = {}
    for group, curve in enumerate(zip(*planned, strict=True)):
        curves.setdefault(curve, []).append(group)
    for curve, groups in curves.items():
        axes.plot(epochs, curve, linewidth=1, label="group " + ", ".join(map(str, groups)))
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
