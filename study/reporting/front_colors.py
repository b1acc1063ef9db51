"""Which colour a model has in a picture, and what the legend says of it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from study.asking.query import Studies
from study.asking.trials import Trials
from study.fronts.front import Front
from study.reporting.report import short
from trainables.charts import PALETTE

NEUTRAL = "#8a90a0"
_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (223, 210, 40))
_NAMED = (*PALETTE, "#000000")
_MAX_GROUPS = 9
_NUM_RANGES = 8


@dataclass(frozen=True, slots=True)
class Colors:
    """What tells models apart: a parameter, a metric, the study, or nothing.

    Attributes:
        name: of the parameter or metric; None where nothing does.
        groups: the colour of each entry of the legend, in its order; of at most nine.
        entry_of: the entry of each value.
    """

    name: str | None
    groups: dict[str, str]
    entry_of: dict[Any, str]

    def of(self, models: Trials) -> list[str]:
        """The entry of each of some models."""
        return [self.entry_of[value] for value in values_of(models, self.name)]


def colors_of(study: Studies, front: Front) -> Colors:
    """Colours for all models of a front: names get colours of their own, numbers a scale; of many numbers, ranges of them.

    Several studies that nothing tells apart are told apart by their names.
    """
    models = [front.rows, front.dominated, front.infeasible]
    name = study.color_by or ("study" if study.all_trials.is_merged else None)
    values = [value for part in models for value in values_of(part, name)]
    if name is None:
        return Colors(None, {"": PALETTE[0]}, {None: ""})
    entry_of = _entries(name, Counter(values))
    entries = list(dict.fromkeys(entry_of.values()))
    is_named = any(isinstance(value, str) for value in values) and len(entries) <= len(_NAMED)
    scale = _NAMED if is_named else [_mix(place / max(1, len(entries) - 1)) for place in range(len(entries))]
    return Colors(name, dict(zip(entries, scale, strict=False)), entry_of)


def values_of(models: Trials, name: str | None) -> list[Any]:
    """(models,) values of a metric, a parameter, `trial` or `study`; None where a model has none, or a NaN."""
    if name is None:
        return [None] * len(models)
    if name in ("trial", "study"):
        return models.column(name)
    params = models.params()
    metric = models.metric(name).tolist()
    found = [own.get(name) if math.isnan(value) else value for value, own in zip(metric, params, strict=True)]
    return [value if isinstance(value, int | float | str | None) and value == value else str(value) for value in found]


def _entries(name: str, counts: "Counter[Any]") -> dict[Any, str]:
    """The entry of each value, in the order of the legend."""
    ordered = sorted(counts, key=lambda value: (value is None, isinstance(value, str), value if value is not None else 0))
    numbers = [value for value in ordered if isinstance(value, int | float)]
    if len(ordered) <= _MAX_GROUPS:
        return {value: f"{name} = {'none' if value is None else short(value)}" for value in ordered}
    if len(numbers) > _NUM_RANGES:
        return _ranges(name, numbers) | {value: f"without a number for {name}" for value in ordered[len(numbers) :]}
    often = {value for value, _ in counts.most_common(_MAX_GROUPS - 1)}
    told = {value: f"{name} = {'none' if value is None else short(value)}" for value in ordered if value in often}
    return told | {value: f"another {name}" for value in ordered if value not in often}


def _ranges(name: str, numbers: Sequence[Any]) -> dict[Any, str]:
    """As many values in each range as in any other."""
    edges = [round(place * len(numbers) / _NUM_RANGES) for place in range(_NUM_RANGES + 1)]
    entries: dict[Any, str] = {}
    for start, end in pairwise(edges):
        members = numbers[start:end]
        entries |= dict.fromkeys(members, f"{name} {short(members[0])} to {short(members[-1])}")
    return entries


def _mix(share: float) -> str:
    """A colour between dark violet (0) and yellow (1)."""
    place = share * (len(_VIRIDIS) - 1)
    low = min(math.floor(place), len(_VIRIDIS) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(_VIRIDIS[low], _VIRIDIS[low + 1], strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)
