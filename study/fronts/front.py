"""A Pareto front: which models no other beats in every objective, what was left out and why, the knee, the hypervolume."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.space import Constraint
from study.asking.trials import METRIC, TrialRow, Trials, join_tables
from study.errors import UserError
from study.fronts import hypervolume, knee
from study.fronts.domination import dominated_by
from study.fronts.pareto import Costs, first_not_worse, non_dominated

_LEFT_OUT = {"stopped": "stopped early"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A metric that is minimised or maximised."""

    metric: str
    goal: str
    unit: str = ""

    @classmethod
    def parse(cls, text: str, known: "Sequence[Objective]" = ()) -> "Objective":
        """Read `metric:min` or `metric:max`; of an objective of the study the metric alone will do.

        Raises:
            UserError: if it is neither.
        """
        metric, colon, goal = text.rpartition(":") if text.endswith((":min", ":max")) else (text, "", "")
        found = next((objective for objective in known if objective.metric == metric), None)
        if not metric or (not colon and found is None):
            raise UserError(f"an objective must be metric:min or metric:max, but got {text!r}; try {metric or 'loss'}:min")
        return cls(metric=metric, goal=goal or (found.goal if found else ""), unit=found.unit if found else "")


@dataclass(frozen=True, kw_only=True)
class Front:
    """The models that no other model dominates, best first objective first.

    A finished trial with candidates stands here by these alone, one without by itself. Equal models are all on the front. An
    infinite value is a number like others.

    Attributes:
        study: its name, or the names of several.
        log_scale: objectives that belong on a logarithmic axis.
        dominated: finished, feasible ones that are not on the front, best first objective first.
        infeasible: those that break a constraint.
        left_out: how many were not compared, by reason: trials that have not finished, and models of finished ones that are
            infeasible, lack an objective, have a NaN there, or are outside what was asked for.
    """

    study: str
    objectives: tuple[Objective, ...]
    log_scale: tuple[str, ...] = ()
    rows: Trials
    dominated: Trials
    infeasible: Trials
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def has_candidates(self) -> bool:
        """Whether some of these are candidates."""
        return any(part.has_candidates for part in (self.rows, self.dominated, self.infeasible))

    def costs(self, rows: Trials) -> NDArray[np.float64]:
        """(rows, objectives) values, turned so that lower is better."""
        return costs_of(rows, self.objectives)

    @property
    def compared(self) -> Trials:
        """All that were compared: the front, then the dominated ones."""
        return self.rows.followed_by(self.dominated)

    @cached_property
    def knee(self) -> TrialRow | None:
        """The best compromise of the front (`study.fronts.knee`); None where the front is empty."""
        logarithmic = [place for place, objective in enumerate(self.objectives) if objective.metric in self.log_scale]
        place = knee.knee(self.costs(self.rows), log_columns=logarithmic)
        return None if place is None else self.rows[place]

    def only(self, row: TrialRow) -> "Front":
        """The same front, with one of its models shown."""
        places = [place for place, found in enumerate(self.rows) if found.label == row.label]
        return dataclasses.replace(self, rows=self.rows.take(places))

    @cached_property
    def reference(self) -> dict[str, float]:
        """The corner that hypervolumes are measured from unless told otherwise: a tenth worse than the worst compared model.

        Empty where nothing is compared, or an objective has no finite value.
        """
        costs = self.costs(self.compared)
        if not np.isfinite(costs).any(axis=0).all():
            return {}
        worst = hypervolume.reference_point(costs)
        return {o.metric: float(sign_of(o) * value) for o, value in zip(self.objectives, worst, strict=True)}

    def hypervolume(self, reference: Mapping[str, float] | None = None) -> float:
        """The volume that the front dominates, in the product of the objectives' units.

        Args:
            reference: the corner, a value for each objective; None for `reference`, which moves as trials finish: give one
                to compare studies.

        Raises:
            UserError: if it lacks an objective, has another metric, or a value that is not finite; without one, if there is no
                `reference`.
        """
        return hypervolume.hypervolume(self.costs(self.rows), self.corner(reference)) if len(self.rows) else 0.0

    def hypervolume_over_time(self, reference: Mapping[str, float] | None = None) -> tuple[list[int], list[float]]:
        """When a compared model's trial ended (ms since 1970), in order, and the hypervolume of all until then."""
        compared = self.compared
        ends = np.asarray([end or 0 for end in compared.column("end_ms")], dtype=np.int64)
        order = np.argsort(ends, kind="stable")
        values = (
            hypervolume.hypervolume_over_time(self.costs(compared)[order], self.corner(reference)) if len(order) else np.empty(0)
        )
        return ends[order].tolist(), values.tolist()

    def corner(self, reference: Mapping[str, float] | None) -> NDArray[np.float64]:
        """(objectives,) a reference as costs; None for the front's own.

        Raises:
            UserError: if it lacks an objective, has another metric, or a value that is not finite.
        """
        given = self.reference if reference is None else reference
        names = [objective.metric for objective in self.objectives]
        if set(given) != set(names):
            raise UserError(
                f"a reference must have a value for each objective ({', '.join(names)}), but got {dict(given)}; name all"
            )
        corner = np.array([sign_of(objective) * given[objective.metric] for objective in self.objectives])
        if not np.isfinite(corner).all():
            raise UserError(
                f"a reference must have finite values, but got {dict(given)}; name numbers that are worse than the front"
            )
        return corner

    def beaten_by(self, rows: Sequence[TrialRow]) -> list[tuple[TrialRow, dict[str, float]] | None]:
        """For each of some dominated models: the model of the front that beats it by most, and by how much in each objective.

        None for one that no model of the front beats.
        """
        answers: list[tuple[TrialRow, dict[str, float]] | None] = [None] * len(rows)
        front, costs = self.costs(self.rows), costs_of_rows(rows, self.objectives)
        places = np.flatnonzero(_is_beaten(costs, front))
        best, gaps = dominated_by(np.concatenate([front, costs[places]]))
        names = [objective.metric for objective in self.objectives]
        for index, place in enumerate(places, start=len(front)):
            answers[place] = (self.rows[int(best[index])], dict(zip(names, gaps[index].tolist(), strict=True)))
        return answers

    def to_json(self, reference: Mapping[str, float] | None = None) -> dict[str, Any]:
        """`{study, objectives, front, knee, hypervolume, reference, num_dominated, left_out}`; of the front `row_to_json`.

        Args:
            reference: of the hypervolume; None for the front's own.
        """
        corner = self.reference if reference is None else dict(reference)
        return {
            "study": self.study,
            "objectives": [{"metric": o.metric, "goal": o.goal, "unit": o.unit} for o in self.objectives],
            "front": [self.row_to_json(row) for row in self.rows],
            "knee": None if self.knee is None else self.knee.label,
            "hypervolume": self.hypervolume(corner) if corner or not len(self.rows) else None,
            "reference": corner,
            "num_dominated": len(self.dominated),
            "left_out": self.left_out,
        }

    def row_to_json(self, row: TrialRow) -> dict[str, Any]:
        """One model: what to call it, parameters, objectives, run."""
        return {
            "label": row.label,
            "study": row.study or self.study,
            "trial": row.number,
            "candidate": row.candidate,
            "params": row.params,
            "values": {objective.metric: row.metrics[objective.metric] for objective in self.objectives},
            "run_id": row.run_id,
        }


def _is_beaten(costs: Costs, front: Costs) -> NDArray[np.bool_]:
    """(rows,) whether a row of the front dominates it; a row that is better than the front must not take its place."""
    is_beaten = np.zeros(len(costs), dtype=bool)
    comparable = np.flatnonzero(~np.isnan(costs).any(axis=1))
    first = first_not_worse(costs[comparable], front)
    found = comparable[first >= 0]
    is_beaten[found] = (costs[found] != front[first[first >= 0]]).any(axis=1)
    return is_beaten


def sign_of(objective: Objective) -> float:
    """What turns a value into a cost, and back."""
    return 1.0 if objective.goal == "min" else -1.0


def costs_of(rows: Trials, objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """(rows, objectives) values, turned so that lower is better; NaN where a row has none."""
    columns = [sign_of(objective) * rows.metric(objective.metric) for objective in objectives]
    return np.stack(columns, axis=1) if columns else np.empty((len(rows), 0))


def costs_of_rows(rows: Sequence[TrialRow], objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """`costs_of` for rows that are made already."""
    values = [[sign_of(o) * row.metrics.get(o.metric, np.nan) for o in objectives] for row in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(objectives))


def make_front(
    name: str,
    trials: Trials,
    candidates: Trials,
    objectives: Sequence[Objective],
    *,
    constraints: Mapping[str, Sequence[Constraint]],
    where: Callable[[Trials], NDArray[np.bool_]] | None = None,
    log_scale: Sequence[str] = (),
) -> Front:
    """Compare the models of finished trials.

    Args:
        constraints: by study.
        where: which models are asked for; None for all.
    """
    reasons = _unfinished(trials)
    models = models_of(trials.take(reasons == ""), candidates)
    model_reasons = _excluded(models, objectives, constraints, where)
    compared = models.take(model_reasons == "")
    costs = costs_of(compared, objectives)
    mask = non_dominated(costs)
    order = np.lexsort(costs.T[::-1])
    return Front(
        study=name,
        objectives=tuple(objectives),
        log_scale=tuple(log_scale),
        rows=compared.take(order[mask[order]]),
        dominated=compared.take(order[~mask[order]]),
        infeasible=models.take(model_reasons == "infeasible"),
        left_out=dict(sorted(Counter([*reasons[reasons != ""], *model_reasons[model_reasons != ""]]).items())),
    )


def _unfinished(trials: Trials) -> NDArray[np.object_]:
    """Why each trial has no place on a front; empty where it has."""
    states = np.array([_LEFT_OUT.get(state, state) for state in trials.column("state")], dtype=object)
    progress = trials.metric("progress")
    foreign = {study for study, source in trials.sources.items() if source.experiment is None}  # may mean anything by progress
    is_ours = np.array([study not in foreign for study in trials.column("study")], dtype=bool)
    states[states == "finished"] = ""
    states[(states == "") & is_ours & trials.has_metric("progress") & (progress != 1.0)] = "incomplete"
    return states


def _excluded(
    models: Trials,
    objectives: Sequence[Objective],
    constraints: Mapping[str, Sequence[Constraint]],
    where: Callable[[Trials], NDArray[np.bool_]] | None,
) -> NDArray[np.object_]:
    """Why each model is not compared, the first reason that holds; empty where it is."""
    reasons = np.full(len(models), "", dtype=object)
    for objective in reversed(objectives):
        reasons[np.isnan(models.metric(objective.metric))] = f"NaN in {objective.metric}"
        reasons[~models.has_metric(objective.metric)] = f"without {objective.metric}"
    reasons[_breaks(models, constraints) & (reasons == "")] = "infeasible"
    if where is not None:
        reasons[~where(models)] = "not asked for"
    return reasons


def _breaks(models: Trials, constraints: Mapping[str, Sequence[Constraint]]) -> NDArray[np.bool_]:
    """(models,) whether it breaks a constraint of its study, or lacks what the constraint is on."""
    broken = np.zeros(len(models), dtype=bool)
    studies = np.array(models.column("study"), dtype=object)
    for study, bounds in constraints.items():
        for bound in bounds:
            values = models.metric(bound.metric)
            holds = values >= bound.bound if bound.relation == ">=" else values <= bound.bound
            broken |= (studies == study) & ~holds
    return broken


def models_of(trials: Trials, candidates: Trials) -> Trials:
    """One row a model: each candidate of a trial, in its trial's place, or the trial itself where it has none."""
    if not len(candidates):
        return trials
    keys = zip(trials.column("study"), trials.column("trial"), strict=True)
    place_of = {key: place for place, key in enumerate(keys)}
    own = zip(candidates.column("study"), candidates.column("trial"), strict=True)
    places = np.array([place_of.get(key, -1) for key in own], dtype=np.int64)  # -1: of a trial that is not among these
    found = candidates.take(places >= 0)
    places = places[places >= 0]
    columns = [
        name for name in trials.table.column_names if not name.startswith(METRIC) and name not in ("candidate", "model_id")
    ]
    table = trials.table.select(columns).take(places)
    for name in ("candidate", "model_id", *(METRIC + metric for metric in found.metric_names)):
        table = table.append_column(name, found.table[name])
    alone = np.setdiff1d(np.arange(len(trials)), places)
    numbers = np.array(found.column("candidate"), dtype=np.int64)
    order = np.lexsort((np.concatenate([np.zeros(len(alone)), numbers]), np.concatenate([alone, places])))
    return trials.with_table(join_tables([trials.take(alone).table, table])).take(order)
