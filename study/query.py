"""Ask a study: its trials, its front, what was left out and why. Reads MLflow, and nothing else."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.space import Constraint
from study.errors import UserError
from study.home import Home, model_label
from study.pareto import non_dominated
from study.spec import Parent, StudySpec

if TYPE_CHECKING:
    import pandas

    from trainables.charts import Chart


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A metric that the study optimises."""

    metric: str
    goal: str
    unit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a trial ended without a result."""

    cause: str
    error: str
    traceback: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """One trial as MLflow has it, or one of its candidates.

    Attributes:
        state: of the trial: finished, failed, stopped, running or interrupted.
        metrics: latest values, `progress` among them; of a candidate its own.
        start_ms, end_ms: since 1970; end_ms is None while it runs.
        repeated_steps, repeated_seconds: work that later attempts did again, in all; counted when the trial ends.
        charts: names of its charts; a trial has them when it is finished.
        candidate: number of the candidate that this is; None for the trial with its own model.
        model_id: of a candidate, MLflow's name for it.
    """

    number: int
    run_id: str
    state: str
    params: dict[str, Any]
    metrics: dict[str, float]
    attempts: int
    host: str | None
    failure: Failure | None
    start_ms: int
    end_ms: int | None
    charts: tuple[str, ...]
    repeated_steps: int = 0
    repeated_seconds: float = 0.0
    candidate: int | None = None
    model_id: str | None = None

    @property
    def label(self) -> str:
        """What to call it: 3, or 3.4 for candidate 4 of trial 3."""
        return model_label(self.number, self.candidate)


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """The models that no other model dominates, best first objective first.

    A finished trial with candidates stands here by these alone, one without by itself.

    Attributes:
        dominated: finished, feasible ones that are not on the front.
        left_out: how many were not compared, by reason: infeasible ones of finished trials, and trials for every other reason.
    """

    study: str
    objectives: tuple[Objective, ...]
    rows: tuple[TrialRow, ...]
    dominated: tuple[TrialRow, ...]
    infeasible: tuple[TrialRow, ...]
    left_out: dict[str, int]

    @property
    def has_candidates(self) -> bool:
        """Whether some of these are candidates."""
        return any(row.candidate is not None for row in (*self.rows, *self.dominated, *self.infeasible))

    def to_json(self) -> dict[str, Any]:
        """`{study, objectives, front: [{trial, candidate, params, values, run_id}], left_out}`."""
        return {
            "study": self.study,
            "objectives": [{"metric": o.metric, "goal": o.goal, "unit": o.unit} for o in self.objectives],
            "front": [
                {
                    "trial": row.number,
                    "candidate": row.candidate,
                    "params": row.params,
                    "values": {objective.metric: row.metrics[objective.metric] for objective in self.objectives},
                    "run_id": row.run_id,
                }
                for row in self.rows
            ],
            "left_out": self.left_out,
        }


class Study:
    """A study to ask.

    Attributes:
        name: of the study.
        tags: what the study's parent run says of it.
        log_scale: objectives that belong on a logarithmic axis.
        color_by: the parameter or metric that tells trials apart, or None.
    """

    def __init__(self, name: str, tracking_uri: str, *, is_running: bool | None) -> None:
        from study.tracking import read_runs

        self.name = name
        self.tracking_uri = tracking_uri
        self.is_running = is_running
        parent, runs = read_runs(tracking_uri, name)
        self.run_id: str = parent.info.run_id
        self.tags = _own_tags(parent.data.tags)
        self.objectives = tuple(Objective(**fields) for fields in json.loads(self.tags["objectives"]))
        self.constraints = [Constraint.parse(text) for text in json.loads(self.tags["constraints"])]
        self.log_scale: list[str] = json.loads(self.tags["log_scale"])
        self.color_by: str | None = json.loads(self.tags["color_by"])
        self._rows = [_row(run, is_running) for run in runs]
        self._experiment_id: str = parent.info.experiment_id
        self._has_candidates = any(len(run.data.metrics) > len(_own_metrics(run.data.metrics)) for run in runs)

    @property
    def num_trials(self) -> int:
        """The budget."""
        return int(self.tags["num_trials"])

    @property
    def parents(self) -> tuple[Parent, ...]:
        """The studies that it was forked from, oldest first; of a line of more than 32 the last."""
        return tuple(Parent(**fields) for fields in json.loads(self.tags.get("parents", "[]")))

    def trials(self) -> list[TrialRow]:
        """Every trial, by number."""
        return list(self._rows)

    def trial(self, number: int) -> TrialRow:
        """One trial.

        Raises:
            UserError: if there is none of that number.
        """
        found = [row for row in self._rows if row.number == number]
        if not found:
            raise UserError(f"a trial of {self.name!r} must be 0 to {len(self._rows) - 1}, but got {number}; see `study status`")
        return found[0]

    def candidates(self, number: int) -> list[TrialRow]:
        """A trial's candidates, by number; none if its experiment offers none.

        Raises:
            UserError: if there is no trial of that number.
        """
        return list(self._candidates.get(self.trial(number).number, ()))

    @cached_property
    def _candidates(self) -> dict[int, list[TrialRow]]:
        from study.tracking import read_candidates

        found: dict[int, list[TrialRow]] = {}
        trials = {row.number: row for row in self._rows}
        for model in read_candidates(self.tracking_uri, self._experiment_id) if self._has_candidates else ():
            row = _candidate_row(model, trials)
            if row is not None:
                found.setdefault(row.number, []).append(row)
        return found

    def _models(self, row: TrialRow) -> list[TrialRow]:
        """A trial's candidates, or the trial itself where it has none."""
        return self._candidates.get(row.number) or [row]

    def front(self) -> Front:
        """The Pareto front of the finished trials' models that meet the study's constraints.

        Only trials with progress 1.0 are compared; the others are counted in `left_out`, with the reason.
        """
        reasons = {row.number: self._left_out(row) for row in self._rows}
        rows = [model for row in self._rows if reasons[row.number] is None for model in self._models(row)]
        feasible = [all(constraint.violation(row.metrics) <= 0 for constraint in self.constraints) for row in rows]
        compared = [row for row, holds in zip(rows, feasible, strict=True) if holds]
        infeasible = [row for row, holds in zip(rows, feasible, strict=True) if not holds]
        signs = [1.0 if objective.goal == "min" else -1.0 for objective in self.objectives]
        costs = np.array(
            [[sign * row.metrics[o.metric] for sign, o in zip(signs, self.objectives, strict=True)] for row in compared]
        ).reshape(len(compared), len(signs))
        mask = non_dominated(costs)
        order = np.lexsort(costs.T[::-1])
        return Front(
            study=self.name,
            objectives=self.objectives,
            rows=tuple(compared[i] for i in order if mask[i]),
            dominated=tuple(compared[i] for i in order if not mask[i]),
            infeasible=tuple(infeasible),
            left_out=dict(sorted(Counter([*filter(None, reasons.values()), *("infeasible" for _ in infeasible)]).items())),
        )

    def _left_out(self, row: TrialRow) -> str | None:
        if row.state != "finished":
            return {"stopped": "stopped early"}.get(row.state, row.state)
        if row.metrics.get("progress") != 1.0 or any(o.metric not in row.metrics for o in self.objectives):
            return "incomplete"
        return None

    def history(self, number: int, metric: str) -> list[tuple[int, float]]:
        """(step, value) of one metric of one trial."""
        from study.tracking import metric_history

        return metric_history(self.tracking_uri, self.trial(number).run_id, metric)

    def download_model(self, number: int, destination: str | Path, candidate: int | None = None) -> Path:
        """Copy a finished trial's model, or that of one of its candidates, out of MLflow; returns its folder.

        Raises:
            UserError: if there is no such model.
        """
        from study.tracking import download_candidate, download_model

        if candidate is None:
            return download_model(self.tracking_uri, self.trial(number).run_id, Path(destination))
        return download_candidate(self.tracking_uri, self._model_id(number, candidate), Path(destination))

    def _model_id(self, number: int, candidate: int) -> str:
        """MLflow's name for a candidate."""
        found = {row.candidate: row.model_id for row in self.candidates(number)}
        model_id = found.get(candidate)
        if model_id is None:
            known = f"0 to {len(found) - 1}" if found else "none"
            raise UserError(
                f"a candidate must be one that its trial has, but trial {number} of {self.name!r} has {known}, not {candidate}; "
                f"see `study trial {self.name} {number}`"
            )
        return model_id

    def load_model(self, number: int, candidate: int | None = None) -> Any:
        """Build a finished trial's trained networks, or a candidate's: what its experiment's `rebuild` returns."""
        import tempfile

        from trainables.model_files import load_model

        with tempfile.TemporaryDirectory() as folder:
            return load_model(self.download_model(number, folder, candidate))

    def charts(self, number: int) -> "list[Chart]":
        """A finished trial's charts, by name; none if its experiment offers none.

        Raises:
            UserError: if the trial is not finished.
        """
        from study.tracking import read_charts
        from trainables.charts import Chart

        row = self.trial(number)
        if row.state != "finished":
            raise UserError(
                f"a trial must have finished to have charts, but trial {number} of {self.name!r} is {row.state}; "
                f"see `study status {self.name}`"
            )
        return [Chart.from_json(text) for text in read_charts(self.tracking_uri, row.run_id, row.charts)]

    def log(self, number: int) -> str:
        """What the worker logged and printed for a trial, over all attempts; empty if there is nothing."""
        from trainables.storage import Folder

        folder = Folder(self.tags["storage"]).child(f"{self.name}/trials/{number:05d}")
        try:
            return folder.read("log.txt").decode() if "log.txt" in folder.names() else ""
        except Exception as error:
            raise UserError(f"a trial's log must be readable, but {folder.address} is not ({error}); mend the storage") from error

    def to_pandas(self, *, candidates: bool = False) -> "pandas.DataFrame":
        """One row a trial: number, state, `params.*`, `metrics.*`, attempts, run_id.

        Args:
            candidates: one row a model instead, with its number as `candidate`: each candidate of a trial, or the trial
                itself where it has none.
        """
        import pandas

        rows = [model for row in self._rows for model in self._models(row)] if candidates else self._rows
        return pandas.DataFrame(
            [
                {"trial": row.number}
                | ({"candidate": row.candidate} if candidates else {})
                | {"state": row.state}
                | {f"params.{key}": value for key, value in row.params.items()}
                | {f"metrics.{key}": value for key, value in row.metrics.items()}
                | {"attempts": row.attempts, "run_id": row.run_id}
                for row in rows
            ]
        )


def open_study(name: str, *, tracking_uri: str | None = None, home: str | Path | None = None) -> Study:
    """Read a study from MLflow.

    Args:
        name: as it was launched.
        tracking_uri: None for the one that the study was launched with from this home.
        home: None for `$STUDY_HOME`.

    Raises:
        UserError: if there is no such study.
    """
    folder = Home(home).study(name)
    is_running = folder.holder() is not None if folder.exists() else None
    if tracking_uri is None:
        tracking_uri = StudySpec.load(folder.require().spec_file).tracking_uri
    return Study(name, tracking_uri, is_running=is_running)


def _own_tags(tags: dict[str, str]) -> dict[str, str]:
    from study.tracking import PREFIX

    return {key.removeprefix(PREFIX): value for key, value in tags.items() if key.startswith(PREFIX)}


def _own_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """A trial's metrics without those of its candidates, which MLflow puts into the trial's run, too."""
    from study.tracking import CANDIDATE_PREFIX

    return {name: value for name, value in metrics.items() if not name.startswith(CANDIDATE_PREFIX)}


def _candidate_row(model: Any, trials: dict[int, TrialRow]) -> TrialRow | None:
    """A candidate in the place of its trial; None for one of a trial that began after the trials were read."""
    from study.tracking import CANDIDATE_PREFIX

    tags = _own_tags(model.tags)
    trial = trials.get(int(tags["trial"]))
    metrics = {metric.key.removeprefix(CANDIDATE_PREFIX): metric.value for metric in model.metrics}
    return trial and replace(trial, candidate=int(tags["candidate"]), model_id=model.model_id, metrics=metrics)


def _params(as_json: str, as_text: dict[str, str]) -> dict[str, Any]:
    """Parameters with their types, from the tag that holds them as JSON; as MLflow's text where they were too many for it."""
    try:
        return dict(json.loads(as_json))
    except ValueError:
        return dict(as_text)


def _row(run: Any, study_is_running: bool | None) -> TrialRow:
    tags = _own_tags(run.data.tags)
    state = tags.get("state", "running")
    failure = None
    if "failure.cause" in tags:
        fields = {key: tags.get(f"failure.{key}", "") for key in ("cause", "error", "traceback")}
        failure = Failure(**fields)
    return TrialRow(
        number=int(tags["trial"]),
        run_id=run.info.run_id,
        state="interrupted" if state == "running" and study_is_running is False else state,
        params=_params(tags.get("params", ""), run.data.params),
        metrics=_own_metrics(run.data.metrics),
        attempts=int(tags.get("attempts", 1)),
        host=tags.get("hostname"),
        failure=failure,
        start_ms=run.info.start_time,
        end_ms=run.info.end_time,
        charts=tuple(filter(None, tags.get("charts", "").split(", "))),
        repeated_steps=int(tags.get("repeated_steps", 0)),
        repeated_seconds=float(tags.get("repeated_seconds", 0.0)),
    )
