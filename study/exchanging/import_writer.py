"""Writes imported trials into MLflow as a study has them, each once.

A run is made with the tag that says what it was made of, and is found again by it; times are those of the source. So whatever
is written twice is there once.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from study.errors import UserError
from study.exchanging.imported_runs import ImportedTrial, Source
from study.home import StudyFolder, write_whole
from study.recording.tracking import (
    MAX_TAG,
    PARENT,
    PREFIX,
    STATE_TAG,
    STUDY_ID_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    all_runs,
    answering,
    connect,
)

from mlflow.entities import Metric, Param, Run, RunTag, ViewType  # isort: skip: study.recording.tracking quietens it first
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_SOURCE_NAME  # isort: skip

KEY_TAG = PREFIX + "source.key"
"""What a trial was made of: a run's id or a logged model's, in its source."""
_MAX_PARAMS, _MAX_METRICS = 100, 1000
_OVER = ("FINISHED", "FAILED")

T = TypeVar("T")


class ImportWriter:
    """Writes one import. Needs the study's lease.

    Args:
        renamed: our name for each metric of the source.

    Attributes:
        ended: keys of the trials that are there, whole, or were deleted.

    Raises:
        UserError: if the name is taken.
    """

    def __init__(self, folder: StudyFolder, source: Source, renamed: Mapping[str, str]) -> None:
        self._folder, self._source, self._renamed = folder, source, renamed
        self._uri = folder.home.tracking_uri
        self._client = connect(self._uri)
        self._ours = {STUDY_TAG: folder.name, STUDY_ID_TAG: source.study_id, MLFLOW_SOURCE_NAME: "narrow-study"}
        with answering(self._uri):
            self._experiment_id = self._find_experiment()
            # what somebody has deleted, too: it is not to come back
            of_study = f"tags.`{STUDY_ID_TAG}` = '{source.study_id}'"
            runs = list(all_runs(self._client, self._experiment_id, of_study, view=ViewType.ALL))
        self._numbers = {run.data.tags[KEY_TAG]: int(run.data.tags[TRIAL_TAG]) for run in runs if KEY_TAG in run.data.tags}
        self._begun = {run.data.tags[KEY_TAG]: run for run in runs if KEY_TAG in run.data.tags}
        self.ended = frozenset(key for key, run in self._begun.items() if run.info.status in _OVER or not _is_active(run))
        parents = (run for run in runs if run.data.tags[TRIAL_TAG] == str(PARENT) and _is_active(run))
        self._parent = next((str(run.info.run_id) for run in parents), None)

    def _find_experiment(self) -> str:
        name = self._folder.name
        found = self._client.get_experiment_by_name(name)
        if found is None:
            tags = {STUDY_TAG: name, STUDY_ID_TAG: self._source.study_id}
            artifacts = (self._folder.home.path / "mlartifacts" / name).as_uri()
            return str(self._client.create_experiment(name, artifact_location=artifacts, tags=tags))
        if found.lifecycle_stage != "active" or found.tags.get(STUDY_ID_TAG) != self._source.study_id:
            raise UserError(
                f"an import must have a name of its own, but MLflow has an experiment {name!r} of another source, or a deleted "
                "one; choose another name"
            )
        return str(found.experiment_id)

    def begin(self, tags: Mapping[str, Any]) -> None:
        """Make the parent run, or say anew what the study is."""
        write_whole(self._folder.path / "imported.json", json.dumps({"source": self._source.shown}))
        with answering(self._uri):
            if self._parent is None:
                made = self._ours | {TRIAL_TAG: str(PARENT), MLFLOW_RUN_NAME: self._folder.name} | _tags(tags)
                run = self._client.create_run(self._experiment_id, tags=made, run_name=self._folder.name)
                self._parent = str(run.info.run_id)
            self._client.log_batch(self._parent, tags=[RunTag(key, text) for key, text in _tags(tags).items()])
            self._say_how_many()

    def write(self, trial: ImportedTrial) -> None:
        """Write a trial, or what is missing of it."""
        with answering(self._uri):
            begun = self._begun.get(trial.key)
            run_id = str(begun.info.run_id) if begun is not None else self._create(trial)
            params = [Param(name, str(value)) for name, value in trial.params.items()]
            for some in _parts(params, _MAX_PARAMS):
                self._client.log_batch(run_id, params=some)
            for values in _parts(self._metrics(trial), _MAX_METRICS):
                self._client.log_batch(run_id, metrics=values)
            self._client.set_tag(run_id, STATE_TAG, trial.state)
            status = "FINISHED" if trial.state == "finished" else "FAILED"
            self._client.set_terminated(run_id, status=status, end_time=trial.end_ms)

    def end(self) -> None:
        """Say that the study has what there is."""
        assert self._parent is not None
        with answering(self._uri):
            self._say_how_many()
            self._client.set_terminated(self._parent, status="FINISHED")

    def _say_how_many(self) -> None:
        assert self._parent is not None
        self._client.set_tag(self._parent, PREFIX + "num_trials", str(len(self._numbers)))

    def _create(self, trial: ImportedTrial) -> str:
        number = max(self._numbers.values(), default=-1) + 1 if trial.number is None else trial.number
        name = f"{self._folder.name}-{number:04d}"
        own: dict[str, Any] = {"params": trial.params, "attempts": 1, "source.key": trial.key, "source.artifacts": trial.model}
        own |= {"hostname": trial.host} if trial.host else {}
        if trial.state == "failed":
            own |= {"failure.cause": trial.cause or "unknown", "failure.error": f"failed in {self._source.shown}"}
        tags = self._ours | _tags(own) | {TRIAL_TAG: str(number), STATE_TAG: "running", MLFLOW_RUN_NAME: name}
        tags[MLFLOW_PARENT_RUN_ID] = str(self._parent)
        run = self._client.create_run(self._experiment_id, start_time=trial.start_ms, tags=tags, run_name=name)
        self._numbers[trial.key] = number
        return str(run.info.run_id)

    def _metrics(self, trial: ImportedTrial) -> list[Metric]:
        renamed = {self._renamed[name]: values for name, values in trial.metrics.items()}
        if trial.state == "finished" and "progress" not in renamed:
            last = max((step for values in renamed.values() for step, _, _ in values), default=0)
            renamed["progress"] = [(last, trial.end_ms, 1.0)]
        return [Metric(name, value, time, step) for name, values in renamed.items() for step, time, value in values]


def _is_active(run: Run) -> bool:
    return str(run.info.lifecycle_stage) == "active"


def _tags(values: Mapping[str, Any]) -> dict[str, str]:
    """As MLflow takes them; too long ones are left out, of which a query has no need."""
    texts = {PREFIX + key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return {key: text for key, text in texts.items() if len(text) <= MAX_TAG}


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
