"""Learning-rate schedules for any training loop: CAWB and the sample-count schedules.

`CosineAnnealingWarmbootingLR` (CAWB) is cosine decay with warm restarts at chosen epochs;
`AnnealingLR` holds eight schedules that are functions of the number of samples processed. Both
start with a per-batch warm-up. A schedule is a function of the position in the run (`lr_at`), and
the scheduler only remembers that position: planning, training and resuming use the same function.

    scheduler = CosineAnnealingWarmbootingLR(optimizer, epochs, batchs=len(loader), warmup_epoch=3)
    for epoch in range(epochs):
        scheduler.step(epoch)  # at the START of each epoch
        for images, targets in loader:
            scheduler.step_batch()  # before each batch
            ...

To use it in another repository, copy this file; for an `lf` given as a text, utils/lf.py, too.

To add a schedule, write a subclass of `BatchWarmup` and list it in `SCHEDULERS`, or, for a function
of the sample count, add a line to `SCHEDULES`.
"""

import bisect
import functools
import itertools
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

# ------------------------------------------------------------------ the sample-count schedules


class Formula(NamedTuple):
    """A sample-count schedule: lr = function(base_lr, t, *arguments)."""

    function: Callable[..., float]
    arguments: tuple[str, ...] = ()  # their names in hyp files and in AnnealingLR
    optional: tuple[str, ...] = ()  # those of them that need not be given; they are 0 then


@functools.lru_cache
def parse_milestones(text: str) -> tuple[tuple[float, float], ...]:
    """Return the pairs (count, factor) of a text such as "1000:1.0,2000:0.9".

    Raises ValueError for any other text.
    """
    pairs = []
    for pair in text.split(","):
        try:
            count, factor = map(float, pair.split(":"))
        except ValueError:
            count = factor = math.nan
        if not (math.isfinite(count) and math.isfinite(factor)):
            raise ValueError(f"found {pair.strip()!r}, need pairs such as '1000:1.0,2000:0.9'")
        pairs.append((count, factor))
    return tuple(pairs)


def _manual(lr: float, t: float, milestones: str) -> float:
    pairs = parse_milestones(milestones)
    return lr * next((factor for count, factor in pairs if t <= count), pairs[-1][1])


A, B, ARGS = "learning_rate_decay_a", "learning_rate_decay_b", "learning_rate_args"

# The name in hyp files, and the formula; t counts samples (pass_manual: passes over the data).
SCHEDULES: dict[str, Formula] = {
    "constant": Formula(lambda lr, t: lr),
    "poly": Formula(lambda lr, t, a, b: lr * (1 + a * t) ** -b, (A, B)),
    "caffe_poly": Formula(lambda lr, t, a, b: 0.0 if t > a else lr * (1 - t / a) ** b, (A, B)),
    "exp": Formula(lambda lr, t, a, b: lr * a ** (t / b), (A, B)),
    "discexp": Formula(lambda lr, t, a, b: lr * a ** math.floor(t / b), (A, B)),
    "linear": Formula(lambda lr, t, a, b: max(lr - a * t, b), (A, B), optional=(B,)),
    "manual": Formula(_manual, (ARGS,)),
    "pass_manual": Formula(_manual, (ARGS,)),
}


def _annealed_lrs(
    schedule: str, base_lr: list[float], t: float, arguments: Mapping[str, float | str]
) -> list[float]:
    """Return the learning rate at count `t` for each base rate; `anneal` says what it raises."""
    if schedule not in SCHEDULES:
        allowed = ", ".join(SCHEDULES)
        raise ValueError(f"learning_rate_schedule: found {schedule!r}, allowed are {allowed}")
    formula = SCHEDULES[schedule]
    values = [arguments[name] for name in formula.arguments]
    try:
        # float() raises TypeError for a complex number, the root of a negative one.
        if base_lr.count(base_lr[0]) == len(base_lr):  # the usual case: one rate for all groups
            return [float(formula.function(base_lr[0], t, *values))] * len(base_lr)
        return [float(formula.function(lr, t, *values)) for lr in base_lr]
    except (ArithmeticError, TypeError, ValueError) as error:
        pairs = zip(formula.arguments, values, strict=True)
        position = ", ".join([f"t={t}", *(f"{name}={value!r}" for name, value in pairs)])
        reason = error.args[-1] if error.args else type(error).__name__
        raise ValueError(f"{schedule} has no value at {position}: {reason}") from None


def anneal(
    learning_rate_schedule: str,
    learning_rate: float,
    t: float,
    learning_rate_decay_a: float = 0.0,
    learning_rate_decay_b: float = 0.0,
    learning_rate_args: str = "",
) -> float:
    """Return the rate of a sample-count schedule after `t` samples (for pass_manual, passes).

    With lr, a, b for learning_rate and the two decays (formulas of PaddlePaddle's first
    generation):

        constant     lr
        poly         lr * (1 + a*t)**-b
        caffe_poly   lr * (1 - t/a)**b, and 0 once t > a
        exp          lr * a**(t/b)
        discexp      lr * a**floor(t/b)
        linear       max(lr - a*t, b)
        manual       learning_rate_args "1000:1.0,2000:0.9": lr times the factor of the first pair
                     with t <= its count, the last pair's factor after it
        pass_manual  the same, counted in passes over the data

    Raises ValueError for an unknown schedule, for `learning_rate_args` that are not such pairs, and
    where a formula has no value.
    """
    arguments = {
        A: float(learning_rate_decay_a),
        B: float(learning_rate_decay_b),
        ARGS: learning_rate_args,
    }
    return _annealed_lrs(learning_rate_schedule, [learning_rate], t, arguments)[0]


# ------------------------------------------------------------------ the base of all schedulers


def _set_lr(group: dict[str, Any], lr: float) -> None:
    """Set the learning rate of a parameter group.

    Capturable and compiled optimizers hold on to a tensor, which is therefore filled in place.
    """
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _parse_lf(text: str) -> Callable[[float, float], float]:
    # Imported here, because without such texts a copy of this file needs no other one.
    from utils.lf import parse_lf

    return parse_lf(text)


def _to_plain(value: Any) -> Any:
    """Copy numbers, strings, None and lists of them, NumPy's numbers as Python's.

    `torch.load(weights_only=True)` reads nothing else. Raises TypeError for anything else.
    """
    if isinstance(value, list):
        return [_to_plain(item) for item in value]
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        value = value.item()
    if value is None or isinstance(value, int | float | str):
        return value
    raise TypeError(type(value).__name__)


def _batches_per_epoch(batchs: int, batches_per_epoch: int | None) -> int:
    """Return the number that was given by either of two names of the same argument."""
    if batches_per_epoch is None:
        return batchs
    if batchs not in (0, batches_per_epoch):
        raise ValueError(
            f"batchs is {batchs} and batches_per_epoch {batches_per_epoch} (give one of them)"
        )
    return batches_per_epoch


class BatchWarmup(LRScheduler):
    """The base of every scheduler here: parameter groups, per-batch warm-up from 0, and state.

    Call `step(epoch)` at the start of each epoch and `step_batch()` before each batch. It is an
    `LRScheduler` by type, so that frameworks accept it, but needs only `param_groups` of the
    optimizer.

    A subclass writes two methods:

    - `__init__(self, optimizer, epochs, batchs, ...)` passes these on to this class and keeps its
      own arguments as attributes. Every attribute is saved and restored by itself, except those
      whose name starts with an underscore; what is saved has to be a number, a string, None or a
      list of these.
    - `_rates(self, epoch, samples)` returns the learning rate of every parameter group after the
      warm-up: a function of its arguments, of `self.base_lr` (a rate for each group), of
      `self.epochs` (the length of the run, which may be extended) and of the subclass's own
      arguments, never of what happened before, because the curve is planned with it, too. `epoch`
      counts from 0; `samples` are those that were processed before this batch.

    By default the rate is constant within an epoch after the warm-up. With `changes_every_batch =
    True` in the class, it is set at every batch, and `epoch` has a fraction: epoch + batch /
    batchs. A subclass that computes something from `epochs` in advance overrides `extend`, too.

    Args:
        optimizer: anything with `param_groups`, each with its `lr` (or `initial_lr`).
        epochs: length of the run.
        batchs: batches per epoch.
        warmup_epoch: epochs in which `step_batch` raises the rate from 0 to the base rate.
        batch_size: samples that `step_batch` counts if it is not given a number.
    """

    changes_every_batch = False

    # For frameworks: Accelerate adds to torch's own count, on which nothing here depends.
    _step_count = 0

    def __init__(
        self,
        optimizer: Any,
        epochs: int = 0,
        batchs: int = 0,
        warmup_epoch: int = 0,
        batch_size: int = 1,
    ) -> None:
        # LRScheduler.__init__ is not called: it requires a torch optimizer, patches the optimizer's
        # step() and makes a first step of its own.
        self.optimizer = optimizer
        # If the optimizer's rates were decayed before, `initial_lr` still has the first ones.
        self.base_lr = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]
        for group, lr in zip(optimizer.param_groups, self.base_lr, strict=True):
            group.setdefault("initial_lr", lr)
        self.epochs = epochs
        self.batchs = batchs
        self.warmup_epoch = warmup_epoch
        self.warmup_iters = batchs * warmup_epoch
        self.batch_size = batch_size
        self.last_epoch = 0  # assigning to it shifts the epochs, the old way to resume
        self.iters = -1  # the epoch
        self.iters_batch = -1  # the batch, counted over all epochs
        self.batch = -1  # the batch, counted within the epoch
        self.num_samples_processed = 0

    def _rates(self, epoch: float, samples: int) -> list[float]:
        raise NotImplementedError

    def _warmup_rates(self, batches: int) -> list[float]:
        fraction = batches / self.warmup_iters
        return [base * fraction for base in self.base_lr]

    def _fraction(self, batch: int) -> float:
        """Return how much of the epoch has passed before `batch`, where that matters."""
        if not (self.changes_every_batch and self.batchs):
            return 0
        # An epoch with more batches than `batchs` must not run into the next one.
        return min(batch, self.batchs - 1) / self.batchs

    def _set(self, rates: list[float]) -> float:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            _set_lr(group, lr)
        return rates[0]

    def step(self, external_iter: int | None = None) -> float:
        """Go to the next epoch, or to epoch `external_iter`, and set every group's rate.

        Returns the first group's rate. Another call within the same epoch, as when it is resumed,
        changes nothing, unless the run was extended in between.
        """
        epoch = self.iters + 1 if external_iter is None else external_iter
        if epoch != self.iters:
            self.iters = epoch
            self.batch = -1
        if self.batch >= 0 and (self.changes_every_batch or self.iters_batch < self.warmup_iters):
            return self.get_last_lr()[0]  # here step_batch() sets the rate
        return self._set(self._rates(self.iters + self.last_epoch, self.num_samples_processed))

    def step_batch(self, samples: int | None = None) -> float | None:
        """Set this batch's rate, if it is not that of the epoch, and return the first group's.

        Returns None after the warm-up, unless the class `changes_every_batch`. `samples` is the
        size of the batch (default: `batch_size`). Batches before any `step()` belong to epoch 0.
        """
        if self.changes_every_batch and self.iters < 0:
            self.iters = 0
        self.iters_batch += 1
        self.batch += 1
        lr = None
        if self.iters_batch < self.warmup_iters:
            lr = self._set(self._warmup_rates(self.iters_batch))
        elif self.changes_every_batch:
            epoch = self.iters + self.last_epoch + self._fraction(self.batch)
            lr = self._set(self._rates(epoch, self.num_samples_processed))
        self.num_samples_processed += self.batch_size if samples is None else samples
        return lr

    def lr_at(self, epoch: int, batch: int, samples: int = 0) -> list[float]:
        """Return every group's rate in batch `batch` of epoch `epoch`, both counted from 0.

        `samples` are those processed before it. Independent of any previous call.
        """
        batches = epoch * self.batchs + batch
        if batches < self.warmup_iters:
            return self._warmup_rates(batches)
        return self._rates(epoch + self._fraction(batch), samples)

    def lrs_of_epoch(
        self, epoch: int, batch_sizes: Sequence[int], samples: int = 0
    ) -> list[list[float]]:
        """Return every group's rates in the batches of an epoch: `lr_at` of each of them.

        `batch_sizes` are the samples in each batch, `samples` those processed before the epoch.
        """
        counts = itertools.accumulate(batch_sizes, initial=samples)
        rates = [self.lr_at(epoch, i, next(counts)) for i in range(len(batch_sizes))]
        return [list(of_group) for of_group in zip(*rates, strict=True)]

    def extend(self, epochs: int) -> None:
        """Make the run `epochs` long, from the next `step()` or `step_batch()` on.

        To lengthen a resumed run, call it after `load_state_dict`.
        """
        self.epochs = epochs

    def get_last_lr(self) -> list[float]:
        """Return the groups' current learning rates."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    get_lr = get_last_lr  # for frameworks that call LRScheduler's other method

    def _state_names(self) -> list[str]:
        return [name for name in vars(self) if name != "optimizer" and not name.startswith("_")]

    def state_dict(self) -> dict[str, Any]:
        """Return all attributes and the groups' rates as plain data: numbers, strings, lists.

        Raises TypeError, naming the attribute, for an attribute that is something else.
        """
        state = {"last_lr": self.get_last_lr()}
        for name in self._state_names():
            try:
                state[name] = _to_plain(getattr(self, name))
            except TypeError as error:
                raise TypeError(
                    f"{type(self).__name__}.{name}: cannot save a {error} (allowed are numbers, "
                    "strings, None and lists of them; an attribute _NAME is not saved)"
                ) from None
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the position, the arguments and the groups' rates from `state_dict`.

        Raises ValueError if it is of another class or has another number of parameter groups.
        """
        self._check_state(state_dict)
        for name in self._state_names():
            setattr(self, name, _to_plain(state_dict[name]))
        self._set(state_dict["last_lr"])

    def _check_state(self, state: Mapping[str, Any]) -> None:
        needed = {"last_lr", *self._state_names()}
        if state.keys() != needed:
            missing = ", ".join(sorted(needed - state.keys())) or "nothing"
            unknown = ", ".join(sorted(state.keys() - needed)) or "nothing"
            raise ValueError(
                f"{type(self).__name__}: not a state of this scheduler: "
                f"{missing} missing, {unknown} unknown"
            )
        groups = len(self.optimizer.param_groups)
        if not len(state["base_lr"]) == len(state["last_lr"]) == groups:
            raise ValueError(
                f"{type(self).__name__}: the number of parameter groups is "
                f"{len(state['base_lr'])} in the state and {groups} in the optimizer"
            )


# ------------------------------------------------------------------ CAWB


def restart_epoch(step: int | str, epochs: int) -> int:
    """Return the epoch of a restart written as an epoch (30) or a fraction of the run ("33%").

    A fraction is rounded to the nearest epoch of a run of `epochs`. Raises ValueError for anything
    else.
    """
    if isinstance(step, int) and not isinstance(step, bool) and step > 0:
        return step
    is_percentage = isinstance(step, str) and re.fullmatch(r"\d{1,2}(\.\d{1,9})?%", step)
    if is_percentage and float(step[:-1]) > 0:
        return math.floor(float(step[:-1]) * epochs / 100 + 0.5)
    raise ValueError(
        f"found {step!r}, need an epoch (an integer from 1) or a fraction of the run such as 33%"
    )


class CosineAnnealingWarmbootingLR(BatchWarmup):
    """CAWB: cosine decay with warm restarts at chosen epochs, each from a scaled peak.

    With B = [warmup_epoch, the steps strictly between it and `epochs`, epochs] and e epochs done,
    the segment is the first i with e <= B[i+1], and

        lr = base_lr * step_scale**i * f(e - B[i], gap)

    where gap is B[i+1] - B[i], plus `epoch_scale` in every segment but the last, and f(x, y) is
    `lf`, or (1 + cos(pi x / y)) / 2 * (1 - eta_min) + eta_min. Published in 2021 as CAWB
    (Huangdebo). The attribute `steps` holds B, `restarts` the `steps` as they were given.

    Args:
        optimizer: anything with `param_groups`, each with its `lr` (or `initial_lr`).
        epochs: length of the run.
        eta_min: floor of the cosine, as a fraction of the peak, 0..1; unused if `lf` is given.
        steps: epochs after which the schedule restarts, as epochs or as fractions of the run
            ("33%"); those outside (warmup_epoch, epochs) are ignored, and so is a fraction that
            falls on another restart.
        step_scale: factor of the peak at each restart.
        lf: a function (epochs into the segment, its length) -> factor, or a text for `parse_lf`.
        batchs: batches per epoch; needed for the warm-up and for `per_batch`.
        warmup_epoch: epochs in which `step_batch` raises the rate from 0 to the base rate.
        epoch_scale: epochs by which a segment is stretched, so that it ends above its floor.
        per_batch: set the rate at every batch, with e = epoch + batch / batchs, instead of once per
            epoch as published.
        batches_per_epoch: another name of `batchs`.

    Raises ValueError for steps that `restart_epoch` and an `lf` text that `parse_lf` refuses, and
    for `per_batch` without `batchs`. Warns of a step below 1, which may be meant as a fraction.
    """

    def __init__(
        self,
        optimizer: Any,
        epochs: int = 0,
        eta_min: float = 0.05,
        steps: Iterable[float | str] = (),
        step_scale: float = 0.8,
        lf: Callable[[float, float], float] | str | None = None,
        batchs: int = 0,
        warmup_epoch: int = 0,
        epoch_scale: float = 1.0,
        per_batch: bool = False,
        *,
        batches_per_epoch: int | None = None,
    ) -> None:
        batchs = _batches_per_epoch(batchs, batches_per_epoch)
        if per_batch and not batchs:
            raise ValueError("per_batch needs batchs, the number of batches per epoch")
        if isinstance(steps, str):  # whose characters would be taken for the steps
            raise ValueError(f"steps: found {steps!r}, need a list such as [30, '66%']")
        super().__init__(optimizer, epochs, batchs, warmup_epoch)
        self.eta_min = eta_min
        self.restarts = list(steps)
        self.steps = self._boundaries()
        fractions = [s for s in self.restarts if not isinstance(s, str) and 0 < s < 1]
        if fractions and not per_batch:
            warnings.warn(
                f"steps: {fractions[0]} is in the first epoch (a fraction of the run is a text "
                "such as '33%')",
                stacklevel=2,
            )
        self.step_scale = step_scale
        self.epoch_scale = epoch_scale
        self.changes_every_batch = per_batch
        self.lf = lf

    @property
    def lf(self) -> Callable[[float, float], float] | None:
        """The curve that replaces the cosine, or None; a text is turned into a function."""
        return self._lf

    @lf.setter
    def lf(self, lf: Callable[[float, float], float] | str | None) -> None:
        self._lf = _parse_lf(lf) if isinstance(lf, str) else lf

    @property
    def gap(self) -> float:
        """Length in epochs of the current segment, stretched as in the formula."""
        return self._segment(max(self.iters, 0) + self.last_epoch)[2]

    def extend(self, epochs: int) -> None:
        """Make the run `epochs` long; restarts given as fractions of the run move."""
        super().extend(epochs)
        self.steps = self._boundaries()

    def _boundaries(self) -> list[float]:
        first, last = self.warmup_epoch, self.epochs
        inner = [s for s in self.restarts if not isinstance(s, str) and first < s < last]
        for step in self.restarts:
            if isinstance(step, str):
                epoch = restart_epoch(step, last)
                if first < epoch < last and epoch not in inner:
                    inner.append(epoch)
        return [first, *sorted(inner), last]

    def _rates(self, epoch: float, samples: int) -> list[float]:
        i, x, gap = self._segment(epoch)
        factor = self.step_scale**i * self._factor(x, gap)
        return [base * factor for base in self.base_lr]

    def _segment(self, epoch: float) -> tuple[int, float, float]:
        """Return the index of the segment that `epoch` is in, the epochs into it, its length."""
        bounds = self.steps
        epoch = min(epoch, bounds[-1])  # past the end the last value is held
        last = len(bounds) - 2
        i = bisect.bisect_left(bounds, epoch, lo=1) - 1  # the first with epoch <= bounds[i + 1]
        gap = bounds[i + 1] - bounds[i] + (self.epoch_scale if i < last else 0)
        if gap <= 0:  # a run shorter than its warm-up: at the start of a segment of length 1
            return i, 0, 1
        return i, epoch - bounds[i], gap

    def _factor(self, x: float, gap: float) -> float:
        if self._lf is None:
            return (1 + math.cos(math.pi * x / gap)) / 2 * (1 - self.eta_min) + self.eta_min
        if x >= 0:
            return self._lf(x, gap)
        # In the warm-up x is negative, and step_batch() overwrites the value before a batch sees
        # it: an lf that is not defined there, such as a square root, must not stop the run.
        try:
            return float(self._lf(x, gap))  # TypeError for a complex number
        except (ArithmeticError, TypeError, ValueError):
            return self._lf(0, gap)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base class and the text of `lf`.

        An `lf` without a text, a Python function, is skipped with a warning.
        """
        state = super().state_dict()
        if self.lf is None or hasattr(self.lf, "text"):
            return state | {"lf": self.lf and self.lf.text}
        warnings.warn(
            "state_dict: lf is a Python function and is not saved "
            "(pass it again when you build the scheduler to resume)",
            stacklevel=2,
        )
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of the base class and `lf`.

        If the state has no `lf`, the scheduler keeps its own. Raises ValueError if it has none.
        """
        state = dict(state_dict)
        lf = state.pop("lf", self.lf)
        self._check_state(state)
        if lf is None and "lf" not in state_dict:
            raise ValueError(
                "the state is of a schedule whose lf is a Python function "
                "(build the scheduler with that lf first)"
            )
        if isinstance(lf, str):  # parsed before anything is changed: the text may be invalid
            lf = self.lf if lf == getattr(self.lf, "text", None) else _parse_lf(lf)
        super().load_state_dict(state)
        self.lf = lf


# ------------------------------------------------------------------ the sample-count schedules


class AnnealingLR(BatchWarmup):
    """The eight sample-count schedules of `anneal`, after the same per-batch warm-up as CAWB's.

    Args:
        optimizer: anything with `param_groups`, each with its `lr` (or `initial_lr`).
        learning_rate_schedule: a name of `SCHEDULES`; see `anneal`.
        learning_rate_decay_a, learning_rate_decay_b, learning_rate_args: as in `anneal`; each
            schedule uses its own of them.
        batch_size: samples that `step_batch` counts if it is not given a number.
        batchs: batches per epoch; needed for the warm-up.
        warmup_epoch: epochs in which `step_batch` raises the rate from 0 to the base rate; their
            samples count, too.
        batches_per_epoch: another name of `batchs`.

    Raises ValueError as `anneal` does.
    """

    changes_every_batch = True

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
        *,
        batches_per_epoch: int | None = None,
    ) -> None:
        batchs = _batches_per_epoch(batchs, batches_per_epoch)
        super().__init__(optimizer, 0, batchs, warmup_epoch, batch_size)
        self.learning_rate_schedule = learning_rate_schedule
        self.learning_rate_decay_a = float(learning_rate_decay_a)
        self.learning_rate_decay_b = float(learning_rate_decay_b)
        self.learning_rate_args = learning_rate_args
        self._rates(0, 0)  # so that invalid arguments are reported here, not at the first batch

    def _rates(self, epoch: float, samples: int) -> list[float]:
        is_pass = self.learning_rate_schedule == "pass_manual"
        t = math.floor(epoch) if is_pass else samples
        return _annealed_lrs(self.learning_rate_schedule, self.base_lr, t, vars(self))

    def lrs_of_epoch(
        self, epoch: int, batch_sizes: Sequence[int], samples: int = 0
    ) -> list[list[float]]:
        """Return the same as the base class, in a tenth of the time after the warm-up."""
        step_by_step = super().lrs_of_epoch
        # A subclass may override what the rate depends on.
        if epoch * self.batchs < self.warmup_iters or type(self) is not AnnealingLR:
            return step_by_step(epoch, batch_sizes, samples)
        if self.learning_rate_schedule == "pass_manual":
            counts = [math.floor(epoch + self._fraction(i)) for i in range(len(batch_sizes))]
        else:
            counts = list(itertools.accumulate(batch_sizes[:-1], initial=samples))
        function, names, _ = SCHEDULES[self.learning_rate_schedule]
        values = [getattr(self, name) for name in names]
        lrs = set(self.base_lr)
        try:
            rates = {lr: [float(function(lr, t, *values)) for t in counts] for lr in lrs}
        except (ArithmeticError, TypeError, ValueError):
            return step_by_step(epoch, batch_sizes, samples)  # raises an error with the position
        return [rates[lr] for lr in self.base_lr]

    def extend(self, epochs: int) -> None:
        """Change nothing: the rate depends on the samples, not on the length of the run."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of the base class. Raises ValueError as the constructor does, too."""
        super().load_state_dict(state_dict)
        self._rates(0, 0)


# The schedulers that a hyp file can name. The names of SCHEDULES, for AnnealingLR, need no entry.
# A class listed here is built as CLASS(optimizer, epochs=..., batchs=..., **arguments), and the
# other arguments of its constructor, with their type hints and defaults, are its keys in the file.
SCHEDULERS: dict[str, type[BatchWarmup]] = {
    "cawb": CosineAnnealingWarmbootingLR,
}


if __name__ == "__main__":
    print("python -m utils.schedulers: not a command (use python -m utils.plan)", file=sys.stderr)
    sys.exit(2)
