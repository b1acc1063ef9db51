"""What a picture of a front shows, whoever draws it: which models, where, in which colour, and what is left out."""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.asking.trials import TrialRow, Trials
from study.fronts.front import Front, Objective
from study.reporting.front_colors import Colors
from study.reporting.report import short, summary, what_is_compared

TRIAL = Objective(metric="trial", goal="", unit="number")
MAX_DOMINATED = 1500
"""Dots of dominated models that a picture shows, in all panels: beyond, the front is hard to see and a page slow."""
_MAX_TOLD = 300
_MAX_CAPTIONS = 12
_MARGIN = 0.06
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mark:
    """Models of one panel that look alike: of one kind (front, dominated, infeasible) and one colour.

    Attributes:
        entry: of the legend, which hides and shows them on a page.
    """

    kind: str
    color: str
    entry: str
    models: Trials
    x: list[float]
    y: list[float]


class FrontPicture:
    """A front, as far as it can be drawn.

    Attributes:
        kinds: the models to draw, what is drawn first in front.
        panels: pairs of objectives, (x, y); a single objective is drawn against the trial number.
        captions_everywhere: whether the front is small enough for a label beside each of its points.
    """

    def __init__(self, front: Front, colors: Colors) -> None:
        self.front, self.colors = front, colors
        self._log = set(front.log_scale)
        drawn = {"infeasible": front.infeasible, "dominated": front.dominated, "front": front.rows}
        placed = {kind: models.take(self._has_place(models)) for kind, models in drawn.items()}
        self._num_missing = sum(len(drawn[kind]) - len(placed[kind]) for kind in drawn)
        self._edges = {objective.metric: self._find_edges(placed, objective) for objective in (TRIAL, *front.objectives)}
        self.panels = [(second, first) for first, second in combinations(front.objectives, 2)] or [(TRIAL, front.objectives[0])]
        self._max_dominated = MAX_DOMINATED // len(self.panels)
        self.kinds = placed | {"dominated": _thinned(placed["dominated"], self._max_dominated)}
        self.captions_everywhere = len(front.rows) <= _MAX_CAPTIONS
        self._entries = {kind: np.array(colors.of(models), dtype=object) for kind, models in self.kinds.items()}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(len(models) for models in self.kinds.values())

    def is_log(self, objective: Objective) -> bool:
        """Whether its axis is logarithmic."""
        return objective.metric in self._log

    def _has_place(self, models: Trials) -> NDArray[np.bool_]:
        """(models,) whether every axis has a place for it: no axis has one for a NaN, a logarithmic one none for 0."""
        has_place = np.ones(len(models), dtype=bool)
        for objective in self.front.objectives:
            values = models.metric(objective.metric)
            has_place &= (values > 0) if self.is_log(objective) else ~np.isnan(values)
        return has_place

    def _find_edges(self, placed: dict[str, Trials], objective: Objective) -> tuple[float, float]:
        """How far an axis reaches: a little beyond all models that are compared. One further off stands at the edge."""
        compared = np.concatenate([_values(placed[kind], objective) for kind in ("front", "dominated")])
        everything = np.concatenate([_values(models, objective) for models in placed.values()])
        for values in (compared, everything):
            values = values[np.isfinite(values)]
            if len(np.unique(values)) > 1:
                return self._beyond(float(values.min()), float(values.max()), objective)
        return -math.inf, math.inf

    def _beyond(self, low: float, high: float, objective: Objective) -> tuple[float, float]:
        is_log = self.is_log(objective)
        low, high = (math.log(end) if is_log else end for end in (low, high))
        edges = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
        return (math.exp(edges[0]), math.exp(edges[1])) if is_log else edges

    def place(self, models: Trials, objective: Objective) -> Values:
        """(models,) where they stand on an axis."""
        return np.clip(_values(models, objective), *self._edges[objective.metric])

    def marks(self, x: Objective, y: Objective) -> list[Mark]:
        """Every model that has a place in a panel."""
        marks = []
        for kind, models in self.kinds.items():
            for entry, color in self.colors.groups.items():
                members = models.take(self._entries[kind] == entry)
                if len(members):
                    places = (self.place(members, objective).tolist() for objective in (x, y))
                    marks.append(Mark(kind, color, entry or kind, members, *places))
        return marks

    def stairs(self, x: Objective, y: Objective) -> tuple[list[float], list[float]] | None:
        """The corners between what was reached and what was not, where the picture shows the whole front."""
        rows = self.kinds["front"]
        if len(self.front.objectives) != 2 or len(rows) < 2:
            return None
        points = sorted(set(zip(self.place(rows, x).tolist(), self.place(rows, y).tolist(), strict=True)))
        return [point[0] for point in points], [point[1] for point in points]

    def captions(self, x: Objective, y: Objective) -> dict[tuple[float, float], str]:
        """Labels beside the points of a front that is small enough for them."""
        places: dict[tuple[float, float], list[str]] = {}
        rows = self.kinds["front"] if self.captions_everywhere else self.kinds["front"][:0]
        for row, *place in zip(rows, self.place(rows, x).tolist(), self.place(rows, y).tolist(), strict=True):
            places.setdefault((place[0], place[1]), []).append(row.label)
        return {place: ", ".join(labels) for place, labels in places.items()}

    def knee(self, x: Objective, y: Objective) -> tuple[float, float] | None:
        """Where the best compromise of the front stands, if it has a place."""
        knee = self.front.knee
        if knee is None or any(self.is_log(o) and knee.metrics[o.metric] <= 0 for o in self.front.objectives):
            return None
        values = (float(knee.number) if o.metric == "trial" else knee.metrics[o.metric] for o in (x, y))
        places = [min(max(value, low), high) for value, (low, high) in zip(values, self._axes(x, y), strict=True)]
        return places[0], places[1]

    def _axes(self, *objectives: Objective) -> list[tuple[float, float]]:
        return [self._edges[objective.metric] for objective in objectives]

    def axis(self, objective: Objective) -> dict[str, Any]:
        """How plotly draws an axis."""
        scale = log_axis(*self._edges[objective.metric]) if self.is_log(objective) else {"type": "linear"}
        return {"title_text": escaped(label_of(objective)), **scale}

    def hovers(self, models: Trials) -> list[str]:
        """What the mouse shows at each of some models; of very many, no parameters."""
        return [hover(self.front, row, with_params=len(models) <= _MAX_TOLD) for row in models]

    def title(self) -> str:
        """What the picture shows, and what it leaves out."""
        return "; ".join([f"{self.front.study}: {summary(self.front)}", *self.omissions()])

    def omissions(self) -> list[str]:
        """What is not drawn, and why."""
        models = what_is_compared(self.front)
        told = []
        if self._num_missing:
            are = f"{models[:-1]} at 0 is" if self._num_missing == 1 else f"{models} at 0 are"
            told.append(f"{self._num_missing} {are} not drawn")
        num_all = len(self.front.dominated)
        if num_all > self._max_dominated:
            told.append(f"of {num_all} dominated ones {len(self.kinds['dominated'])} are drawn")
        return told


def _values(models: Trials, objective: Objective) -> Values:
    if objective.metric == "trial":
        return np.array(models.column("trial"), dtype=np.float64)
    return models.metric(objective.metric)


def _thinned(models: Trials, num: int) -> Trials:
    """At most so many as can be seen, evenly along the first objective, by which they are sorted."""
    if len(models) <= num:
        return models
    return models.take(np.linspace(0, len(models) - 1, num).round().astype(np.int64))


def hover(front: Front, row: TrialRow, *, with_params: bool = True) -> str:
    """What the mouse shows at a model, as plotly's markup: label, objectives, parameters."""
    values = [f"{escaped(o.metric)}: {short(row.metrics[o.metric])}" for o in front.objectives]
    params = [f"{escaped(name)}: {escaped(short(value))}" for name, value in row.params.items()] if with_params else []
    return "<br>".join([f"<b>trial {escaped(row.label)}</b>", *values, *([""] if params else []), *params])


def log_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis of plotly: labels as people write numbers, between the decades where there is room.

    Args:
        low, high: values that it shows; positive.
    """
    if not (0 < low <= high < math.inf):
        return {"type": "log"}
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    between = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in between]
    return {"type": "log", "tickvals": ticks, "ticktext": [tick_text(tick) for tick in ticks]}


def tick_text(value: float) -> str:
    """A number beside an axis: three digits, 12.5k for thousands."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def escaped(text: str) -> str:
    """A text that plotly shows as it is, and takes no part of for markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def label_of(objective: Objective) -> str:
    """What an axis says."""
    name = objective.metric.replace("_", " ")
    if objective.metric == "trial":
        return name
    unit = "" if objective.unit in ("", "1", name) else f"{objective.unit}; "
    return f"{name} ({unit}{'lower' if objective.goal == 'min' else 'higher'} is better)"
