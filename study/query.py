"""Ask a study: its trials, its front, what was left out and why. Reads MLflow, and nothing else."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.space import Constraint
from study.errors import UserError
from study.home import Home
from study.pareto import non_dominated
from study.spec import StudySpec

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
    """One trial as MLflow has it.

    Attributes:
        state: finished, failed, stopped, running or interrupted.
        metrics: latest values, `progress` among them.
        start_ms, end_ms: since 1970; end_ms is None while it runs.
        charts: names of its charts; a trial has them when it is finished.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """The trials that no other trial dominates, best first objective first.

    Attributes:
        dominated: finished, feasible trials that are not on the front.
        left_out: how many trials were not compared, by reason.
    """

    study: str
    objectives: tuple[Objective, ...]
    rows: tuple[TrialRow, ...]
    dominated: tuple[TrialRow, ...]
    infeasible: tuple[TrialRow, ...]
    left_out: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """`{study, objectives, front: [{trial, params, values, run_id}], left_out}`."""
        return {
            "study": self.study,
            "objectives": [{"metric": o.metric, "goal": o.goal, "unit": o.unit} for o in self.objectives],
            "front": [
                {
                    "trial": row.number,
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

    @property
    def num_trials(self) -> int:
        """The budget."""
        return int(self.tags["num_trials"])

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

    def front(self) -> Front:
        """The Pareto front of the finished trials that meet the study's constraints.

        Only trials with progress 1.0 are compared; the others are counted in `left_out`, with the reason.
        """
        reasons = [self._left_out(row) for row in self._rows]
        compared = [row for row, reason in zip(self._rows, reasons, strict=True) if reason is None]
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
            infeasible=tuple(row for row, reason in zip(self._rows, reasons, strict=True) if reason == "infeasible"),
            left_out=dict(sorted(Counter(reason for reason in reasons if reason).items())),
        )

    def _left_out(self, row: TrialRow) -> str | None:
        if row.state != "finished":
            return {"stopped": "stopped early"}.get(row.state, row.state)
        if row.metrics.get("progress") != 1.0 or any(o.metric not in row.metrics for o in self.objectives):
            return "incomplete"
        if any(constraint.violation(row.metrics) > 0 for constraint in self.constraints):
            return "infeasible"
        return None

    def history(self, number: int, metric: str) -> list[tuple[int, float]]:
        """(step, value) of one metric of one trial."""
        from study.tracking import metric_history

        return metric_history(self.tracking_uri, self.trial(number).run_id, metric)

    def download_model(self, number: int, destination: str | Path) -> Path:
        """Copy a finished trial's model out of MLflow; returns its folder."""
        from study.tracking import download_model

        return download_model(self.tracking_uri, self.trial(number).run_id, Path(destination))

    def load_model(self, number: int) -> Any:
        """Build a finished trial's trained networks: what its experiment's `rebuild` returns."""
        import tempfile

        from trainables.model_files import load_model

        with tempfile.TemporaryDirectory() as folder:
            return load_model(self.download_model(number, folder))

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

    def to_pandas(self) -> "pandas.DataFrame":
        """One row a trial: number, state, `params.*`, `metrics.*`, attempts, run_id."""
        import pandas

        return pandas.DataFrame(
            [
                {"trial": row.number, "state": row.state}
                | {f"params.{key}": value for key, value in row.params.items()}
                | {f"metrics.{key}": value for key, value in row.metrics.items()}
                | {"attempts": row.attempts, "run_id": row.run_id}
                for row in self._rows
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
        metrics=dict(run.data.metrics),
        attempts=int(tags.get("attempts", 1)),
        host=tags.get("hostname"),
        failure=failure,
        start_ms=run.info.start_time,
        end_ms=run.info.end_time,
        charts=tuple(filter(None, tags.get("charts", "").split(", "))),
    )
