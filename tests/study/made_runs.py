"""Runs in a real MLflow as a study writes them, without training anything; and an MLflow of its own in a moment."""

import itertools
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag

from study.home import make_wal
from study.recording.tracking import (
    CANDIDATE_PREFIX,
    CANDIDATE_TAG,
    PARENT,
    PREFIX,
    STATE_TAG,
    STUDY_ID_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    connect,
)

STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "FAILED", "interrupted": "KILLED"}
LOSS_AND_SIZE = ({"metric": "loss", "goal": "min", "unit": "nats"}, {"metric": "size", "goal": "min", "unit": ""})
Params = Mapping[str, Any] | None
_clock = itertools.count(1_700_000_000_000, 60_000)


def now_ms() -> int:
    """A minute later at each call."""
    return next(_clock)


def copy_of_store(store: str, folder: Path) -> str:
    """The URI of a database of its own, with whatever is in another: making MLflow's tables takes seconds."""
    connect(store)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / "mlflow.db"
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    make_wal(copy)
    return f"sqlite:///{copy}"


class MadeStudy:
    """A study's experiment and parent run; more runs as they are asked for.

    Args:
        tags: of the parent run, over those that a query needs.
    """

    def __init__(self, uri: str, name: str, *, study_id: str = "id", tags: Mapping[str, Any] | None = None) -> None:
        self.uri, self.name, self.study_id = uri, name, study_id
        self.client = connect(uri)
        ours = {STUDY_TAG: name, STUDY_ID_TAG: study_id}
        self.experiment_id = self.client.create_experiment(name, tags=ours)
        told = {
            "objectives": LOSS_AND_SIZE,
            "constraints": [],
            "log_scale": [],
            "color_by": None,
            "num_trials": 9,
            "space": "m:f",
        }
        told = {PREFIX + key: json.dumps(value) for key, value in (told | {"experiment": "e", **(tags or {})}).items()}
        run = self.client.create_run(self.experiment_id, tags={**ours, TRIAL_TAG: str(PARENT), **told}, run_name=name)
        self.parent_id = run.info.run_id

    def start(self, trial: int, *, params: Params = None, start_ms: int | None = None) -> str:
        """Make a trial's run, which runs from now on; return its id."""
        tags = {STUDY_TAG: self.name, STUDY_ID_TAG: self.study_id, TRIAL_TAG: str(trial), STATE_TAG: "running"}
        tags[PREFIX + "params"] = json.dumps(dict(params or {}))
        name = f"{self.name}-{trial:04d}"
        run = self.client.create_run(self.experiment_id, start_time=start_ms or now_ms(), tags=tags, run_name=name)
        return str(run.info.run_id)

    def end(
        self, run_id: str, state: str = "finished", *, params: Params = None, end_ms: int | None = None, **metrics: float
    ) -> str:
        """End a run."""
        logged = {"progress": 1.0 if state == "finished" else 0.5, **metrics}
        self.client.log_batch(
            run_id,
            metrics=[Metric(name, value, 1, 1) for name, value in logged.items()],
            params=[Param(key, str(value)) for key, value in (params or {}).items()],
            tags=[RunTag(STATE_TAG, state)],
        )
        self.client.set_terminated(run_id, status=STATUS[state], end_time=end_ms or now_ms())
        return run_id

    def trial(
        self, trial: int, state: str = "finished", *, params: Params = None, end_ms: int | None = None, **metrics: float
    ) -> str:
        """Make a trial's run that has ended; return its id."""
        return self.end(self.start(trial, params=params), state, params=params, end_ms=end_ms, **metrics)

    def candidate(self, trial: int, run_id: str, number: int, *, is_ready: bool = True, **metrics: float) -> str:
        """Make a trial's candidate; return MLflow's name for it."""
        ours = {STUDY_TAG: self.name, STUDY_ID_TAG: self.study_id, TRIAL_TAG: str(trial), CANDIDATE_TAG: str(number)}
        made = self.client.create_logged_model(self.experiment_id, name=f"c-{trial}-{number}", source_run_id=run_id, tags=ours)
        model_id = str(made.model_id)
        logged = [Metric(CANDIDATE_PREFIX + name, value, number, number, model_id=model_id) for name, value in metrics.items()]
        self.client.log_batch(run_id, metrics=logged)
        if is_ready:
            self.client.finalize_logged_model(model_id, "READY")
        return model_id


def foreign_run(client: Any, experiment_id: str, *, params: Params = None, end: str | None = "FINISHED", **metrics: float) -> Run:
    """A run of an experiment that no study of ours made."""
    run = client.create_run(experiment_id, start_time=now_ms())
    logged = [Metric(name, value, 1, 0) for name, value in metrics.items()]
    client.log_batch(run.info.run_id, logged, [Param(key, str(value)) for key, value in (params or {}).items()])
    if end is not None:
        client.set_terminated(run.info.run_id, status=end, end_time=now_ms())
    return client.get_run(run.info.run_id)
