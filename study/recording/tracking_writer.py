"""Writes a study into MLflow, each thing once.

Writing is idempotent: a run is found again by its study and trial, a metric's timestamp depends only on the trial's
start and its step (MLflow drops a row that it has already), so whatever is delivered twice is there once. A candidate
is a logged model: found again by its trial and number, ready when its files and metrics are all there. What makes a run
or a logged model is asked of MLflow once only, since an answer that is lost does not tell whether it was made.
"""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from study.errors import UserError
from study.keeping import artifacts
from study.keeping.retention import Model, Rule
from study.keeping.settling import Settler
from study.recording import tracking
from study.recording.lost_runs import LostRuns
from study.recording.outbox import Event, Outbox
from study.recording.tracking import (
    CANDIDATE_PREFIX,
    CANDIDATE_TAG,
    CHARTS_TAG,
    MAX_TAG,
    PARENT,
    PREFIX,
    STATE_TAG,
    STUDY_ID_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    NoAnswerError,
    all_models,
    answering,
)
from study.reporting.charts import draw_chart
from trainables.charts import Chart
from trainables.failpoints import failpoint
from trainables.storage import Folder

from mlflow.entities import LoggedModel, Metric, Param, RunTag  # isort: skip: study.recording.tracking quietens it first
from mlflow.exceptions import MlflowException  # isort: skip
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_SOURCE_NAME  # isort: skip

_STATUSES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow's word for how a trial ended. It has none for one that was stopped early; who looks for FINISHED must not find it."""
_MAX_MODEL_PARAM = 500
_ASK_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
_UPLOAD = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}  # of big files, which a server may take on to an object store before it answers

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _requests(settings: Mapping[str, str]) -> Iterator[None]:
    """Inside, MLflow makes its requests otherwise; it looks at the environment before each."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class StudyWriter:
    """Applies the events of one study to MLflow.

    Args:
        rule: which models are kept; None for all.

    Raises:
        NoAnswerError: if MLflow does not answer.
        UserError: if it has an experiment of this name that is not ours.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        name: str,
        study_id: str,
        tracking_uri: str,
        artifacts: str | None,
        rule: Rule | None = None,
    ) -> None:
        self._outbox = outbox
        self._name = name
        self._study_id = study_id
        self._client = tracking.connect(tracking_uri)
        self._runs = outbox.runs()
        with answering(tracking_uri):
            self._experiment_id = self._find_experiment(artifacts)
        self._starts: dict[int, int] = {}
        self._fresh: set[int | None] = set()  # trials whose runs were made here and have had one attempt
        self._lost = LostRuns(self._client, self._experiment_id, study_id, set(self._runs.values()))
        self._candidates: dict[int, dict[int, str]] = {}
        self._doubtful: set[int] = set()
        self._settler = Settler(outbox, self._client, tracking_uri, rule or Rule())
        self._has_finished = False

    def _find_experiment(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(self._name)
        if found is None and self._runs:
            raise NoAnswerError(
                f"MLflow must keep a study's runs, but it has no experiment {self._name!r} now; put its store back"
            )
        if found is None:
            tags = {STUDY_TAG: self._name, STUDY_ID_TAG: self._study_id}
            try:
                return str(self._client.create_experiment(self._name, artifact_location=artifacts, tags=tags))
            except MlflowException:  # somebody else may make it at this moment, or we did and the answer was lost
                found = self._client.get_experiment_by_name(self._name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active" or found.tags.get(STUDY_ID_TAG) != self._study_id:
            raise UserError(
                f"a study's name must be free in MLflow, but the store has an experiment {self._name!r} of somebody else's, or a "
                "deleted one; choose another name"
            )
        return str(found.experiment_id)

    def deliver(self, limit: int = 500) -> int:
        """Apply pending events in their order; return how many there were."""
        if not self._has_finished:
            self._settler.drop_excess()
            self._has_finished = True
        events = self._outbox.pending(limit)
        start = 0
        while start < len(events):
            stop = start + 1
            if events[start].kind == "measurement":  # those of one trial that follow each other go as one batch
                while stop < len(events) and (events[stop].kind, events[stop].trial) == ("measurement", events[start].trial):
                    stop += 1
            try:
                self._apply(events[start:stop])
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                logger.error("MLflow will never take %s: %s", events[start], error)  # and what follows must not wait for it
            failpoint("event delivered", events[start].kind)
            self._outbox.mark_delivered(events[stop - 1].seq)
            start = stop
        return len(events)

    def _apply(self, events: list[Event]) -> None:
        event = events[0]
        run_id = self._run(PARENT if event.trial is None else event.trial, event)
        match event.kind:
            case "session_start":
                self._client.log_batch(run_id, tags=_tags(event.data["tags"]))
                self._client.update_run(run_id, status="RUNNING")
            case "session_end":
                self._remove_strays()
                self._client.log_batch(run_id, tags=_tags(event.data.get("tags", {})))  # older versions put none
                self._client.set_terminated(run_id, status=event.data["status"], end_time=event.time_ms)
            case "trial_start":
                params = [Param(key, _storable(str(value))) for key, value in event.data["params"].items()]
                self._client.log_batch(run_id, params=params, tags=_tags(event.data["tags"] | {STATE_TAG: "running"}))
                if event.data.get("attempt") != 1:
                    self._fresh.discard(event.trial)
                if event.trial not in self._fresh:
                    self._client.update_run(run_id, status="RUNNING")
            case "measurement":
                self._log_metrics(run_id, events)
            case "candidate":
                self._log_candidate(run_id, event)
            case "trial_end":
                self._log_model(run_id, event.data["model"])
                charts = self._log_charts(run_id, event.data.get("charts"))  # older versions put none
                if event.trial not in self._fresh:
                    self._forget_failure(run_id)
                tags = event.data["tags"] | ({CHARTS_TAG: ", ".join(charts)} if charts else {})
                self._client.log_batch(run_id, tags=_tags(tags | {STATE_TAG: event.data["state"]}))
                status = _STATUSES[event.data["state"]]
                failpoint("run ending")
                self._client.set_terminated(run_id, status=status, end_time=event.time_ms)
            case "trial_settled":
                self.settle(event.trial, Folder(event.data["folder"]))
            case "trial_interrupted":
                self._client.log_batch(run_id, tags=_tags(event.data["tags"] | {STATE_TAG: "interrupted"}))
                self._client.set_terminated(run_id, status="KILLED", end_time=event.time_ms)

    def settle(self, trial: int | None, folder: Folder) -> None:
        """Clear a trial's files away that MLflow has, and weigh its models; only once its end is delivered."""
        assert trial is not None
        num_offered = self._outbox.num_candidates(trial)
        candidates = self._models_of(trial) if num_offered else []
        self._settler.settle(trial, folder, self._runs[trial], candidates, num_offered)

    def look_at(self, trial: int, folder: Folder) -> list[Model]:
        """The models that MLflow has of a trial; nothing is changed."""
        if trial not in self._runs:
            return []
        ready = [model for model in self._models_of(trial) if model.status == "READY"]
        return self._settler.models_of(trial, folder, self._client.get_run(self._runs[trial]), ready)

    @contextlib.contextmanager
    def weighing_at_once(self) -> Iterator[None]:
        """Inside, no model is dropped: that is decided at the end, of all of them."""
        self._settler.defers = True
        yield
        self._settler.defers = False
        self._settler.drop_excess()

    def orphans(self) -> dict[str, str]:
        """Where files are of runs and candidates that somebody has deleted in MLflow, by their ids."""
        return artifacts.orphans(self._client, self._experiment_id)

    def _forget_failure(self, run_id: str) -> None:
        """An attempt that failed unheard may be followed by one that does not."""
        for tag in self._client.get_run(run_id).data.tags:
            if tag.startswith(PREFIX + "failure."):
                self._client.delete_tag(run_id, tag)

    def _log_metrics(self, run_id: str, events: list[Event]) -> None:
        """Log the metrics of several steps; a step's timestamp is the trial's start plus a millisecond a step."""
        start_ms = self._start_ms(run_id, events[0].trial)
        metrics = [
            Metric(name, value, start_ms + event.data["step"], event.data["step"])
            for event in events
            for name, value in [*event.data["metrics"].items(), ("progress", event.data["progress"])]
        ]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[first : first + 1000])

    def _log_candidate(self, run_id: str, event: Event) -> None:
        """Make a logged model of a candidate; whatever a writer before this one left of it is completed."""
        assert event.trial is not None
        number = event.data["number"]
        # taken out until all is well: after an error in between, MLflow is asked again
        known = self._candidates.pop(event.trial, None) or self._find_candidates(event.trial)
        model_id = known.get(number) or self._create_candidate(run_id, event)
        with tempfile.TemporaryDirectory() as staging:
            Folder(event.data["model"]).download(Path(staging))
            has_files = any(Path(staging).iterdir())
            with _requests(_UPLOAD):
                self._client.log_model_artifacts(model_id, staging)
        time_ms = self._start_ms(run_id, event.trial) + number
        metrics = [
            Metric(CANDIDATE_PREFIX + name, value, time_ms, number, model_id=model_id)
            for name, value in event.data["metrics"].items()
        ]
        self._client.log_batch(run_id, metrics=metrics)
        if has_files:
            self._client.finalize_logged_model(model_id, "READY")
        else:  # no later event may wait for it
            logger.error("the files of candidate %d of run %s are gone: it is not on the front", number, run_id)
        self._candidates[event.trial] = known | {number: model_id}

    def _find_candidates(self, trial: int) -> dict[int, str]:
        """Logged models of a trial's candidates, whole or not; of two of one candidate, the ready or else the older stays."""
        found: dict[int, str] = {}
        models = self._models_of(trial)
        for model in sorted(models, key=lambda model: (model.status != "READY", model.creation_timestamp, model.model_id)):
            kept = found.setdefault(int(model.tags[CANDIDATE_TAG]), str(model.model_id))
            if kept != model.model_id:
                self._client.delete_logged_model(model.model_id)
        return found

    def _models_of(self, trial: int) -> list[LoggedModel]:
        of_trial = f"tags.`{STUDY_ID_TAG}` = '{self._study_id}' AND tags.`{TRIAL_TAG}` = '{trial}'"
        return all_models(self._client, self._experiment_id, of_trial)

    def _create_candidate(self, run_id: str, event: Event) -> str:
        number = event.data["number"]
        with self._making(event.trial):
            model = self._client.create_logged_model(
                self._experiment_id,
                name=f"{self._name.replace('.', '-')}-{event.trial:04d}-{number}",  # MLflow takes no dots here
                source_run_id=run_id,
                tags={
                    STUDY_TAG: self._name, STUDY_ID_TAG: self._study_id, TRIAL_TAG: str(event.trial),
                    CANDIDATE_TAG: str(number), PREFIX + "step": str(event.data["step"]),
                },
                params={key: _storable(str(value))[:_MAX_MODEL_PARAM] for key, value in event.data["params"].items()},
                model_type="narrow-study",
            )  # fmt: skip
        return str(model.model_id)

    def _start_ms(self, run_id: str, trial: int | None) -> int:
        key = PARENT if trial is None else trial
        if key not in self._starts:
            self._starts[key] = int(self._client.get_run(run_id).info.start_time)
        return self._starts[key]

    def _log_model(self, run_id: str, address: str | None) -> None:
        if address is None:
            return
        with tempfile.TemporaryDirectory() as staging:
            Folder(address).download(Path(staging))  # not what a killed worker left half-written there
            with _requests(_UPLOAD):
                self._client.log_artifacts(run_id, staging, "model")

    def _log_charts(self, run_id: str, address: str | None) -> list[str]:
        """Log every chart as data and picture; return their names. One that cannot be drawn is there as data.

        A page, which holds all of plotly, is drawn for who asks: it would be most of the store.
        """
        if address is None:
            return []
        with tempfile.TemporaryDirectory() as staging:
            folder = Path(staging)
            Folder(address).download(folder)
            names = sorted(file.stem for file in folder.iterdir())
            for name in names:
                try:
                    draw_chart(Chart.from_json((folder / f"{name}.json").read_text()), folder / f"{name}.png")
                except Exception:  # no later event may wait for a picture
                    logger.exception("could not draw the chart %s of run %s", name, run_id)
            if names:
                with _requests(_UPLOAD):
                    self._client.log_artifacts(run_id, staging, "charts")
        return names

    def _run(self, trial: int, event: Event) -> str:
        """The run of a trial, or of the study: known, found in MLflow, or made."""
        if trial not in self._runs:
            run_id = self._find_run(trial) or self._create_run(trial, event.time_ms)
            self._outbox.remember_run(trial, run_id)
            self._runs[trial] = run_id
        return self._runs[trial]

    def _find_run(self, trial: int) -> str | None:
        found = self._lost.find(trial, in_doubt=trial in self._doubtful)
        if len(found) > 1:
            self._doubtful.add(trial)
        return min(found, default=None)

    @contextlib.contextmanager
    def _making(self, trial: int | None) -> Iterator[None]:
        """Inside, something of a trial is made that must not be made twice; an error leaves in doubt whether it was."""
        try:
            with _requests(_ASK_ONCE):
                yield
        except MlflowException:
            self._doubtful.add(PARENT if trial is None else trial)
            raise

    def _remove_strays(self) -> None:
        """Remove the doubles that came of a request which we gave up and a server that hung carried out all the same."""
        for trial in sorted(self._doubtful):
            for run in self._lost.search(trial):
                if run.info.run_id != self._runs[trial]:
                    self._client.set_terminated(run.info.run_id, status="KILLED")
                    self._client.delete_run(run.info.run_id)
            self._find_candidates(trial)
            self._doubtful.remove(trial)

    def _create_run(self, trial: int, start_ms: int) -> str:
        name = self._name if trial == PARENT else f"{self._name}-{trial:04d}"
        tags = {STUDY_TAG: self._name, STUDY_ID_TAG: self._study_id, TRIAL_TAG: str(trial), MLFLOW_RUN_NAME: name}
        tags[MLFLOW_SOURCE_NAME] = "narrow-study"
        if trial != PARENT:
            tags[MLFLOW_PARENT_RUN_ID] = self._runs[PARENT]
        with self._making(trial):
            run = self._client.create_run(self._experiment_id, start_time=start_ms, tags=tags, run_name=name)
        self._starts[trial] = start_ms
        self._fresh.add(trial)
        return str(run.info.run_id)


def _tags(tags: Mapping[str, Any]) -> list[RunTag]:
    full = {key if key.startswith(PREFIX) else PREFIX + key: _tag_text(value) for key, value in tags.items()}
    return [RunTag(key, value) for key, value in full.items()]


def _tag_text(value: Any) -> str:
    text = _storable(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= MAX_TAG else f"{text[: MAX_TAG // 2]}\n[...]\n{text[-MAX_TAG // 2 :]}"


def _storable(text: str) -> str:
    r"""A text that every database takes: PostgreSQL has no NUL, and none has half characters, as of file names in no UTF-8.

    They become \x00 and the like: an error that quotes them must not stop all that comes after it.
    """
    return text.replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()
