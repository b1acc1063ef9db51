"""A study that was killed beside one that was left in peace: what must hold, line by line."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from rich.table import Table
from rich.text import Text

from study.asking.query import open_study
from study.home import StudyFolder
from study.recording.tracking import CANDIDATE_PREFIX, PARENT, TRIAL_TAG, connect

_MAX_RUNS = 10_000


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the sheet."""

    name: str
    expected: str
    found: str

    @property
    def holds(self) -> bool:
        """Whether what is found is what is expected."""
        return self.expected == self.found


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What Optuna, MLflow and the storage have of a study, read without its driver's code.

    Attributes:
        states: of Optuna's trials, by name.
        trials: state, parameters and values of each, by number.
        repeated: parameter sets that more than one trial has, as many times as they are too many.
        statuses: of MLflow's runs of trials, by name.
        study_statuses: of its runs of the study.
        num_trials_with_run, num_runs: trials that MLflow knows, and their runs.
        bad_histories: metrics of runs whose steps do not go 1, 2, 3 to the last.
        metrics: of each trial the values of every metric, step by step.
        front: objectives and parameters of its rows.
        models: digest of every trial's weights in MLflow, by trial and file.
    """

    states: Mapping[str, int]
    trials: Mapping[int, Any]
    repeated: int
    statuses: Mapping[str, int]
    study_statuses: Mapping[str, int]
    num_trials_with_run: int
    num_runs: int
    bad_histories: int
    metrics: Mapping[tuple[int, str], list[float]]
    front: list[Any]
    models: Mapping[str, str]


def look_at(study: StudyFolder) -> Findings:
    """Read all of a study."""
    logging.getLogger("optuna").setLevel(logging.WARNING)
    trials = optuna.load_study(study_name=study.name, storage=f"sqlite:///{study.optuna_file}").get_trials(deepcopy=False)
    sets = Counter(repr(sorted(trial.params.items())) for trial in trials)
    client = connect(study.home.tracking_uri)
    experiment = client.get_experiment_by_name(study.name)
    runs = [] if experiment is None else client.search_runs([experiment.experiment_id], max_results=_MAX_RUNS)
    of_trials = [run for run in runs if run.data.tags.get(TRIAL_TAG) != str(PARENT)]
    of_study = [run for run in runs if run.data.tags.get(TRIAL_TAG) == str(PARENT)]
    histories = {
        (int(run.data.tags[TRIAL_TAG]), key, run.info.run_id): client.get_metric_history(run.info.run_id, key)
        for run in of_trials
        for key in run.data.metrics
        if not key.startswith(CANDIDATE_PREFIX)
    }
    artifacts = study.home.path / "mlartifacts" / study.name
    return Findings(
        states=Counter(trial.state.name for trial in trials),
        trials={trial.number: (trial.state.name, trial.params, trial.values) for trial in trials},
        repeated=sum(count - 1 for count in sets.values()),
        statuses=Counter(run.info.status for run in of_trials),
        study_statuses=Counter(run.info.status for run in of_study),
        num_trials_with_run=len({run.data.tags[TRIAL_TAG] for run in of_trials}),
        num_runs=len(of_trials),
        bad_histories=sum([row.step for row in rows] != list(range(1, len(rows) + 1)) for rows in histories.values()),
        metrics={(trial, key): [row.value for row in rows] for (trial, key, _), rows in histories.items()},
        front=[
            (row["trial"], row["candidate"], row["params"], row["values"])
            for row in open_study(study.name, home=study.home.path).front().to_json()["front"]
        ],
        models={
            f"trial {run.data.tags[TRIAL_TAG]}, {file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
            for run in of_trials
            for file in sorted(artifacts.glob(f"{run.info.run_id}/artifacts/model/*.safetensors"))
        },
    )


def compare(peace: Findings, killed: Findings) -> list[Check]:
    """What must hold of the study that was killed."""
    num_trials = len(peace.trials)
    return [
        Check("trials, by how they ended", _shown(peace.states), _shown(killed.states)),
        Check("trials still RUNNING in Optuna", "0", str(killed.states.get("RUNNING", 0))),
        Check("parameter sets drawn twice", str(peace.repeated), str(killed.repeated)),
        Check("MLflow runs, and trials that have one", f"{num_trials}, {num_trials}", _pair(killed)),
        Check("MLflow runs of trials, by status", _shown(peace.statuses), _shown(killed.statuses)),
        Check("MLflow run of the study", _shown(peace.study_statuses), _shown(killed.study_statuses)),
        Check("metrics whose steps have a gap or a repeat", "0", str(killed.bad_histories)),
        Check("metrics that are not those in peace", "0", _differing(peace.metrics, killed.metrics)),
        Check("trials that are not those in peace", "0", _differing(peace.trials, killed.trials)),
        Check("models that are not those in peace", "0", _differing(peace.models, killed.models)),
        Check("models on the front", f"the same {len(peace.front)}", _front(peace.front, killed.front)),
    ]  # fmt: skip


def sheet(checks: Sequence[Check]) -> Table:
    """The checks as a table, those that fail in red."""
    table = Table(title_justify="left")
    for column in ("", "what must hold", "expected", "found"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = Text("pass", "green") if check.holds else Text("FAIL", "bold red")
        table.add_row(mark, check.name, check.expected, check.found)
    return table


def _pair(findings: Findings) -> str:
    return f"{findings.num_runs}, {findings.num_trials_with_run}"


def _shown(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _differing(peace: Mapping[Any, Any], killed: Mapping[Any, Any]) -> str:
    keys = [key for key in peace.keys() | killed.keys() if key not in peace or key not in killed or peace[key] != killed[key]]
    shown = ", ".join(str(key) for key in sorted(keys)[:3])
    return f"{len(keys)} ({shown}{', ...' if len(keys) > 3 else ''})" if keys else "0"


def _front(peace: list[Any], killed: list[Any]) -> str:
    return f"the same {len(peace)}" if killed == peace else f"{len(killed)}, others"
