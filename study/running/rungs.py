"""Early stopping that knows several objectives: at rungs on their way trials are compared, and the better ones go on.

Asynchronous successive halving (Li et al., "A system for massively parallel hyperparameter tuning", 2020) in its stopping
form: a trial is compared with those that were at the rung before it, once, and nobody waits. For several objectives: Schmucker
et al., "Multi-objective asynchronous successive halving", arXiv:2106.12639. Differs: trials that violate their constraints
come after all others, and within a front those are better without whom it would lose more of its hypervolume.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from search_spaces.space import Constraint
from study.errors import UserError
from study.running.rungs_order import Order

STOPPERS = ("none", "moasha", "asha", "median")
_DEFAULTS: dict[str, dict[str, Any]] = {
    "moasha": {"reduction": 4.0, "first": 0.15},  # chosen on recorded curves of CMSP: tests/benchmarks/search_quality.py
    "median": {"reduction": 1.5, "num_before": 5},
}
_ONE_OBJECTIVE = ("asha", "median")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StopRule:
    """Which trials are stopped early, and where.

    Attributes:
        name: one of STOPPERS. `moasha` and `asha` let the best 1/reduction of the trials at a rung go on, `median` those that
            are no worse than the median of the others.
        reduction: at least 1.1. Each rung is this many times as far as the one before.
        first: progress at the first rung, in (0, 1).
        rungs: progress at each rung, rising, in (0, 1); empty for `first` times powers of `reduction`.
        num_before: how many others must have been at a rung before anybody is stopped there, at least 1.
    """

    name: str = "none"
    reduction: float = 3.0
    first: float = 0.1
    rungs: tuple[float, ...] = ()
    num_before: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", tuple(self.rungs))  # JSON makes a list of it
        if self.name not in STOPPERS:
            raise UserError(
                f"early stopping must be one of {', '.join(STOPPERS)}, but got {self.name!r}; moasha suits several objectives"
            )
        _require(1.1 <= self.reduction < math.inf, "reduction must be finite and at least 1.1", self.reduction, "use 3")
        _require(0 < self.first < 1, "first must be in (0, 1)", self.first, "use 0.1 for a tenth of a trial")
        _require(self.num_before >= 1, "num_before must be at least 1", self.num_before, "use 5 to wait for five trials")
        is_rising = all(low < high for low, high in zip((0.0, *self.rungs), (*self.rungs, 1.0), strict=True))
        _require(is_rising, "rungs must rise within (0, 1)", "/".join(map(str, self.rungs)), "use 0.1/0.3")

    @classmethod
    def of(cls, name: str, **options: Any) -> Self:
        """A rule with its own defaults for what is not given."""
        return cls(name=name, **_DEFAULTS.get(name, {}) | options)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `moasha` or `moasha:reduction=4,first=0.05`; rungs read `rungs=0.1/0.3`.

        Raises:
            UserError: if it reads otherwise, or a value is out of range.
        """
        name, _, options = text.partition(":")
        read: dict[str, Callable[[str], Any]] = {"reduction": float, "first": float, "num_before": int, "rungs": _numbers}
        found: dict[str, Any] = {}
        for option in filter(None, options.split(",")):
            key, _, value = option.partition("=")
            try:
                found[key.strip()] = read[key.strip()](value)
            except (KeyError, ValueError):
                raise UserError(
                    f"early stopping must read like moasha:reduction=3,first=0.1, of {', '.join(read)}, but got {option!r} in "
                    f"{text!r}; leave it out for what is usual"
                ) from None
        return cls.of(name.strip(), **found)

    def __str__(self) -> str:
        """As `parse` reads it: what is not usual is told."""
        usual = type(self).of(self.name)
        shown = {"reduction": f"{self.reduction!r}", "first": f"{self.first!r}", "num_before": f"{self.num_before}"}
        shown["rungs"] = "/".join(map(repr, self.rungs))
        options = [f"{key}={value}" for key, value in shown.items() if getattr(self, key) != getattr(usual, key)]
        return self.name + (":" + ",".join(options) if options else "")

    def to_json(self) -> dict[str, Any]:
        """Its fields; `StopRule(**fields)` is the rule again."""
        return dataclasses.asdict(self) | {"rungs": list(self.rungs)}

    def check(self, objectives: Collection[str]) -> None:
        """Check that the rule can compare trials by these.

        Raises:
            UserError: if there are several, and it is for one.
        """
        if self.name in _ONE_OBJECTIVE and len(objectives) != 1:
            raise UserError(
                f"early stopping by {self.name} must have one objective, but got {len(objectives)} ({', '.join(objectives)}); "
                "use moasha, which compares trials by several"
            )

    @property
    def levels(self) -> tuple[float, ...]:
        """Progress at each rung, rising; empty if nobody is ever stopped."""
        if self.name == "none" or self.rungs:
            return () if self.name == "none" else self.rungs
        num = math.ceil(-math.log(self.first) / math.log(self.reduction)) + 1
        levels = [round(self.first * self.reduction**rung, 9) for rung in range(num)]  # 0.3, and not 0.1 * 3
        return tuple(level for level in levels if level < 1)

    def num_kept(self, num: int) -> int:
        """How many of the trials at a rung go on; of the median's rule, at least."""
        return math.ceil(num / (2 if self.name == "median" else self.reduction) - 1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Why a trial is stopped.

    Attributes:
        rung: counted from 0.
        level: progress at the rung.
        values: the trial's, of all that it was compared by.
        rank: its place among those that have been there, from 1; those of one front share a place where that decides nothing.
        num_there: how many have been there, with itself.
        why: one sentence.
    """

    rung: int
    level: float
    values: dict[str, float]
    rank: int
    num_there: int
    why: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Rungs:
    """What trials showed on their way, and who is stopped.

    A measurement that is heard again changes nothing, and gets the same answer. One that is not finite is not taken in.

    Args:
        goals: "min" or "max" of each metric that trials are compared by.
        constraints: trials that violate them come after all that do not; among them one that violates them less is better. A
            violation counts in units of its bound, if that is not 0.

    Raises:
        UserError: if there are several goals, and the rule is for one.
    """

    def __init__(self, rule: StopRule, goals: Mapping[str, str], constraints: Sequence[Constraint] = ()) -> None:
        rule.check(goals)
        self._rule = rule
        self._signs = {metric: 1.0 if goal == "min" else -1.0 for metric, goal in goals.items()}
        self._constraints = tuple(constraints)
        self._rungs = [_Rung(len(goals)) for _ in rule.levels]
        self._stops: dict[int, Stop] = {}

    def judge(self, trial: int, progress: float, metrics: Mapping[str, float]) -> Stop | None:
        """Take in a measurement; measurements of one trial come in their order.

        A trial enters a rung with its first measurement there or beyond; of several rungs at once it is compared at the highest.
        One at its end is never stopped.

        Returns:
            why the trial is to be stopped; None if it is to go on.
        """
        entered = self._enter(trial, progress, metrics)
        if entered and entered[-1] == self._num_reached(progress) - 1 and progress < 1.0:
            stop = self._compare(trial, entered[-1], metrics)
            if stop is not None:
                self._stops[trial] = stop
        known = self._stops.get(trial)
        return known if known is not None and known.level <= progress < 1.0 else None

    def remember(self, trial: int, progress: float, metrics: Mapping[str, float]) -> None:
        """Take in a measurement of an earlier session, of which nothing is to follow; these come in any order."""
        self._enter(trial, progress, metrics)

    def _num_reached(self, progress: float) -> int:
        return sum(level <= progress for level in self._rule.levels)

    def _enter(self, trial: int, progress: float, metrics: Mapping[str, float]) -> list[int]:
        """Enter the rungs that the trial has reached; returns those at which it had not been."""
        reached = self._num_reached(progress)
        if not reached:
            return []
        cost = np.array([sign * metrics[metric] for metric, sign in self._signs.items()], dtype=np.float64)
        violation = sum(max(0.0, c.violation(metrics)) / (abs(c.bound) or 1.0) for c in self._constraints)
        if not (np.isfinite(cost).all() and math.isfinite(violation)):
            return []
        return [rung for rung in range(reached) if self._rungs[rung].enter(trial, progress, cost, violation)]

    def _compare(self, trial: int, rung: int, metrics: Mapping[str, float]) -> Stop | None:
        there, rule = self._rungs[rung], self._rule
        if len(there) <= rule.num_before:
            return None
        num_kept = rule.num_kept(len(there))
        rank = there.place(trial, num_kept)
        is_out = there.is_beyond_median(trial) if rule.name == "median" else rank > num_kept
        if not is_out:
            return None
        names = [*self._signs, *(c.metric for c in self._constraints if c.violation(metrics) > 0)]
        values = {name: float(metrics[name]) for name in names}
        level = rule.levels[rung]
        limit = "the median goes on" if rule.name == "median" else f"the best {num_kept} go on"
        shown = ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
        why = f"at {level:.3g} of its way it was number {rank} of {len(there)} trials, and {limit} ({shown})"
        return Stop(rung=rung, level=level, values=values, rank=rank, num_there=len(there), why=why)


class _Rung:
    """Those that have been there."""

    def __init__(self, num_columns: int) -> None:
        self._num_columns = num_columns
        self._shown: dict[int, tuple[float, NDArray[np.float64], float]] = {}  # progress, cost, violation; in order of entry
        self._order: Order | None = Order(num_columns)
        self._index: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._shown)

    def enter(self, trial: int, progress: float, cost: NDArray[np.float64], violation: float) -> bool:
        """Note what a trial shows; whether it is new here. An earlier measurement takes the place of a later one."""
        known = self._shown.get(trial)
        if known is not None and known[0] <= progress:
            return False
        self._shown[trial] = progress, cost, violation
        if known is not None:
            self._order = None  # no row can be taken out of it
        elif self._order is not None:
            self._index[trial] = self._order.add(cost, violation)
        return known is None

    def place(self, trial: int, most: int) -> int:
        """As `Order.place`."""
        if self._order is None:
            self._order = Order(self._num_columns)
            self._index = {each: self._order.add(cost, violation) for each, (_, cost, violation) in self._shown.items()}
        return self._order.place(self._index[trial], most)

    def is_beyond_median(self, trial: int) -> bool:
        """Whether a trial violates its constraints more than the others' median, or else is worse than those that do so as much.

        Of one objective.
        """
        _, cost, violation = self._shown[trial]
        others = np.array([(other, float(c[0])) for each, (_, c, other) in self._shown.items() if each != trial])
        middle = np.sort(others[:, 0])[(len(others) - 1) // 2]
        if violation != middle:
            return bool(violation > middle)
        return bool(cost[0] > np.median(others[others[:, 0] == violation, 1]))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split("/"))


def _require(holds: bool, law: str, value: object, remedy: str) -> None:
    if not holds:
        raise UserError(f"{law}, but got {value}; {remedy}")
