"""Which models of a study are kept: those on its front and near it, and of the others the youngest while there is room.

What is dropped was dominated then, or could never be on the front; since a front only improves, it would not be on it now.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from search_spaces.space import Constraint
from study.errors import UserError

if TYPE_CHECKING:
    from study.spec import StudySpec

FLOOR_BYTES = 16_000_000
"""So much of models every study keeps, whatever they are worth."""
BAND = 0.05
"""How near the front is near: worse than one model on it by no more than this share of the front's range, in every objective.

Differs: by additive epsilon-dominance, which asks for one such objective only, the smallest models would all be kept, however
bad they are.
"""
MODEL_TAG = "narrow_study.model"
DROPPED = "dropped"
"""Value of the tag of a run or logged model whose model is not kept."""
REGISTERED_TAG = "narrow_study.registered"
"""Of a run or logged model whose model is in MLflow's registry: it stays."""
BAND_SHARE = 0.25
"""Beyond the floor, what is near the front may be so much of the front itself, in bytes: a range may be wide."""
_BLOCK = 16

State = Literal["kept", "condemned", "dropped"]
"""Of a model's bytes in MLflow: there; tagged as dropped, and there or not; gone."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """What MLflow has of a trial that has ended: its last model, or a candidate. Equal to itself alone, for speed.

    Attributes:
        candidate: its number; None for the last model.
        place: id of the run, or of the logged model.
        num_bytes: of all its files.
        costs: its objectives, lower better; None for what can never be on the front.
    """

    trial: int
    candidate: int | None
    place: str
    num_bytes: int
    costs: tuple[float, ...] | None
    state: State = "kept"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What a study wants of its models.

    Attributes:
        objectives: goals, min or max, by metric.
        keep: front or all.
        floor_bytes: nothing goes while all models together have no more.
        band: share of the front's range by which a model may be worse than one on it in every objective.
    """

    objectives: Mapping[str, str] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    keep: str = "all"
    floor_bytes: int = FLOOR_BYTES
    band: float = BAND

    @classmethod
    def of(cls, spec: "StudySpec") -> Self:
        """The rule of a study."""
        constraints = tuple(Constraint.parse(text) for text in spec.description.constraints)
        return cls(objectives=spec.description.objectives, constraints=constraints, keep=spec.keep)

    def costs(self, metrics: Mapping[str, float]) -> tuple[float, ...] | None:
        """Objectives, lower better; None if one is missing or not a number, or a constraint is not met."""
        needed = {*self.objectives, *(constraint.metric for constraint in self.constraints)}
        if not self.objectives or not needed <= metrics.keys():
            return None
        if not all(constraint.violation(metrics) <= 0 for constraint in self.constraints):
            return None
        costs = tuple(metrics[name] if goal == "min" else -metrics[name] for name, goal in self.objectives.items())
        return None if any(np.isnan(costs)) else costs


class Stock:
    """The models of a study that are kept, and what may go: asked after each trial, so that no answer costs a look at all.

    Args:
        models: those that are kept, oldest first.
    """

    def __init__(self, rule: Rule, models: Iterable[Model] = ()) -> None:
        self._rule = rule
        self._ages: dict[Model, int] = {}
        self._front: dict[Model, tuple[float, ...]] = {}
        self._dominated: dict[Model, tuple[float, ...]] = {}
        self._hopeless: dict[Model, None] = {}
        self._near = dict[Model, float]()
        """Of the dominated those that are near the front as it is now, as far as anybody asked, and how near."""
        self.num_bytes = 0
        for model in models:
            self.add(model)

    @property
    def front(self) -> list[Model]:
        """The models that no other dominates."""
        return list(self._front)

    def add(self, model: Model) -> None:
        """Take the youngest model in."""
        self._ages[model] = len(self._ages)
        self.num_bytes += model.num_bytes
        if model.costs is None:
            self._hopeless[model] = None
            return
        front, costs = self._front_costs(len(model.costs)), np.array(model.costs)
        if _dominates(front, costs).any():
            self._dominated[model] = model.costs
            return
        for other, beaten in zip(list(self._front), _dominates(costs, front), strict=True):
            if beaten:
                self._dominated[other] = self._front.pop(other)
        self._front[model] = model.costs
        self._near.clear()

    def take_excess(self) -> list[Model]:
        """Take out what may go, until no more is kept than the floor: what can never be on the front, then the rest by age.

        At most the front is kept, and a little that is near it, where these are more than the floor.
        """
        gone: list[Model] = []
        if self._rule.keep == "all":
            return gone
        for model in list(self._hopeless):
            if self.num_bytes <= self._rule.floor_bytes:
                return gone
            gone.append(self._take(model, self._hopeless))
        if self.num_bytes > self._rule.floor_bytes:
            gone += self._take_far()
            gone += self._take_near()
        return gone

    def _take_far(self) -> Iterator[Model]:
        """Of the dominated those that are not near the front, oldest first; all are looked at if the floor is not reached."""
        unknown = sorted((model for model in self._dominated if model not in self._near), key=self._ages.__getitem__)
        for first in range(0, len(unknown), _BLOCK):
            block = unknown[first : first + _BLOCK]
            for model, distance in zip(block, self._distances(block), strict=True):
                if self.num_bytes <= self._rule.floor_bytes:
                    return
                if distance <= self._rule.band:
                    self._near[model] = float(distance)
                else:
                    yield self._take(model, self._dominated)

    def _take_near(self) -> Iterator[Model]:
        """Of those near the front the farthest, until they are no more than their share."""
        limit = max(self._rule.floor_bytes, (1 + BAND_SHARE) * sum(model.num_bytes for model in self._front))
        for model in sorted(self._near, key=self._near.__getitem__, reverse=True) if self.num_bytes > limit else ():
            if self.num_bytes <= limit:
                return
            del self._near[model]
            yield self._take(model, self._dominated)

    def _take(self, model: Model, where: "dict[Model, None] | dict[Model, tuple[float, ...]]") -> Model:
        where.pop(model)
        self.num_bytes -= model.num_bytes
        return model

    def _distances(self, models: list[Model]) -> list[float]:
        """By how much each is worse than that model on the front to which it is nearest: of all objectives the largest, in
        shares of the front's range.
        """
        front = self._front_costs(len(self._rule.objectives))
        rows = np.array([self._dominated[model] for model in models])
        with np.errstate(invalid="ignore", divide="ignore"):  # equal infinities are no distance; a range of 0 is far
            widths = np.nan_to_num(np.ptp(front, axis=0), nan=0.0, posinf=0.0)
            worse = np.nan_to_num(rows[:, None] - front, nan=0.0, posinf=np.inf)
            shares = np.where(worse > 0, worse / widths, 0.0)
        return list(map(float, shares.max(axis=2).min(axis=1)))

    def _front_costs(self, num_objectives: int) -> NDArray[np.float64]:
        return np.array(list(self._front.values()), dtype=np.float64).reshape(-1, num_objectives)


def _dominates(winners: NDArray[np.float64], losers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Row by row, one of the two a single row: no worse in every column, and better in one."""
    return np.asarray((winners <= losers).all(axis=-1) & (winners < losers).any(axis=-1))


def refuse_dropped(tags: Mapping[str, str], what: str) -> None:
    """Refuse to give out a model that was dropped.

    Args:
        tags: of its run, or of its logged model.
        what: whose it is, such as `trial 3`.

    Raises:
        UserError: if it was.
    """
    if tags.get(MODEL_TAG) == DROPPED:
        raise UserError(
            f"a model must be on its study's front, or near it, to be kept, but that of {what} was dropped; its metrics, charts "
            "and log are all there; a study that is launched with --keep all keeps every model"
        )
