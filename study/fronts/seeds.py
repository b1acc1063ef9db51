"""Configs that were run with several seeds, as one row each: means with bands, and how sure their place on the front is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.asking.trials import Trials
from study.errors import UserError
from study.fronts.front import Front, Objective, sign_of
from study.fronts.pareto import non_dominated
from study.fronts.seed_bands import bootstrap_means

STUDY = "study"
"""Stands for the study that a row is of: studies that are repeats of each other are seeds, too."""
REPLICATE = "replicate"
"""Stands for the trial: trials of one study with the same parameters, as `--replicates` makes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRow:
    """A config over its seeds.

    Attributes:
        params: without the seed; of a candidate with its number, of several studies with the `study`.
        labels: of its models.
        means: of each objective.
        intervals: 95 % of the resampled means lie between; None for a config with one seed.
        on_front: the means are on the front of all means.
        front_share: in which share of the resamples it is there.
    """

    params: dict[str, Any]
    labels: tuple[str, ...]
    means: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    on_front: bool
    front_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedFront:
    """A front over seeds, best first objective first; and the hypervolume of the means' front, with its band.

    Attributes:
        seed: the parameter whose values are seeds, `study` or `replicate`.
        hypervolume_interval: None if no config has two seeds.
    """

    seed: str
    objectives: tuple[Objective, ...]
    rows: tuple[SeedRow, ...]
    hypervolume_median: float
    hypervolume_interval: tuple[float, float] | None
    reference: dict[str, float]


def front_over_seeds(
    front: Front, seed: str, *, num_resamples: int = 1000, reference: Mapping[str, float] | None = None
) -> SeedFront:
    """Take models that differ in their seed alone for repeats, and see how sure the front of their means is.

    Where a parameter is the seed, models of two studies are no repeats. A seed counts once: of models with the same seed and
    config, as samplers draw them, the first trial's.

    Args:
        front: whose compared models are taken.
        seed: the parameter that is the seed; `study`, where several studies are repeats of each other; or `replicate`, where
            trials with the same parameters are.

    Raises:
        UserError: if no model has that parameter.
    """
    compared = front.compared
    if not len(compared):
        return _empty(front, seed, reference)
    groups = _groups(compared, seed)
    costs = front.costs(compared)
    corner = front.corner(reference)
    generator = np.random.default_rng(0)  # the same question, the same answer
    values = [costs[places] for places in groups.values()]
    bands = bootstrap_means(values, num_resamples=num_resamples, generator=generator, reference=corner)
    mask = non_dominated(bands.mean)
    rows = []
    for group in np.lexsort(bands.mean.T[::-1]):
        text, places = list(groups.items())[group]
        rows.append(
            SeedRow(
                params=json.loads(text),
                labels=tuple(row.label for row in compared.take(places)),
                means={o.metric: sign_of(o) * float(bands.mean[group, m]) for m, o in enumerate(front.objectives)},
                intervals={o.metric: _interval(bands.interval[group, :, m], o) for m, o in enumerate(front.objectives)},
                on_front=bool(mask[group]),
                front_share=float(bands.front_share[group]),
            )
        )
    ends = bands.hypervolume_interval
    return SeedFront(
        seed=seed,
        objectives=front.objectives,
        rows=tuple(rows),
        hypervolume_median=float(bands.hypervolume_median or 0.0),
        hypervolume_interval=None if ends is None or np.isnan(ends).any() else (float(ends[0]), float(ends[1])),
        reference=dict(front.reference if reference is None else reference),
    )


def _groups(models: Trials, seed: str) -> dict[str, list[int]]:
    """Places of models that differ in their seed alone, one a seed, by what they have in common as JSON.

    That is their parameters, of candidates their number, and of several studies which one, unless that is the seed.
    """
    params = models.params()
    if seed not in (STUDY, REPLICATE) and not any(seed in found for found in params):
        known = ", ".join(dict.fromkeys(name for found in params for name in found)) or "none"
        raise UserError(
            f"--seeds must name a parameter, '{STUDY}' or '{REPLICATE}', but got {seed!r} (parameters: {known}); "
            "name one of these"
        )
    studies, numbers, candidates = (models.column(name) for name in ("study", "trial", "candidate"))
    groups: dict[str, dict[str, int]] = {}
    for place in sorted(range(len(models)), key=lambda place: (studies[place], numbers[place])):
        key = {name: value for name, value in params[place].items() if name != seed}
        key |= {} if candidates[place] is None else {"candidate": candidates[place]}
        key |= {"study": studies[place]} if models.is_merged and seed != STUDY else {}
        value = {STUDY: studies[place], REPLICATE: numbers[place]}.get(seed, params[place].get(seed))
        groups.setdefault(json.dumps(key, sort_keys=True), {}).setdefault(json.dumps(value), place)
    return {key: list(places.values()) for key, places in groups.items()}


def _empty(front: Front, seed: str, reference: Mapping[str, float] | None) -> SeedFront:
    return SeedFront(
        seed=seed,
        objectives=front.objectives,
        rows=(),
        hypervolume_median=0.0,
        hypervolume_interval=None,
        reference=dict(reference or {}),
    )


def _interval(ends: NDArray[np.float64], objective: Objective) -> tuple[float, float] | None:
    if np.isnan(ends).any():
        return None
    low, high = sorted(sign_of(objective) * float(end) for end in ends)
    return low, high
