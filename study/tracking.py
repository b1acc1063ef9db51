"""MLflow: a study is a parent run, a trial a child run. The only file that imports it.

Writing is idempotent: a run is found again by its study and trial, a metric's timestamp depends only on the trial's
start and its step (MLflow drops a row that it has already), so whatever is delivered twice is there once. A candidate
is a logged model: found again by its trial and number, ready when its files and metrics are all there.
"""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities import Experiment, LoggedModel, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_SOURCE_NAME

from study.charts import draw_chart
from study.errors import UserError
from study.outbox import Event, Outbox
from trainables.charts import Chart
from trainables.failpoints import failpoint
from trainables.storage import Folder

PREFIX = "narrow_study."
STUDY_TAG = PREFIX + "study"
STUDY_ID_TAG = PREFIX + "study_id"
TRIAL_TAG = PREFIX + "trial"
STATE_TAG = PREFIX + "state"
CHARTS_TAG = PREFIX + "charts"
CANDIDATE_TAG = PREFIX + "candidate"
CANDIDATE_PREFIX = "candidate/"
"""Of a candidate's metrics: MLflow puts them into the history of the trial's run, too, where they must hide none of its own."""
PARENT = -1
_MAX_TAG = 7900
_MAX_MODEL_PARAM = 500
_PAGE = 5000
_MODELS_PAGE = 1000

logger = logging.getLogger(__name__)

logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)


def connect(tracking_uri: str) -> mlflow.MlflowClient:
    """A client of a tracking server or database, quiet and quick to give up.

    Raises:
        UserError: if it does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    client = mlflow.MlflowClient(tracking_uri)
    try:
        client.search_experiments(max_results=1)
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"the tracking URI must name an MLflow server or database that answers, but {tracking_uri} does not ({reason}); "
            "start the server, or leave --tracking-uri out"
        ) from error
    return client


class StudyWriter:
    """Applies the events of one study to MLflow."""

    def __init__(self, outbox: Outbox, *, name: str, study_id: str, tracking_uri: str, artifacts: str | None) -> None:
        self._outbox = outbox
        self._name = name
        self._study_id = study_id
        self._client = connect(tracking_uri)
        self._experiment_id = self._find_experiment(artifacts)
        self._runs = outbox.runs()
        self._starts: dict[int, int] = {}
        self._candidates: dict[int, dict[int, str]] = {}

    def _find_experiment(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(self._name)
        if found is None:
            tags = {STUDY_TAG: self._name, STUDY_ID_TAG: self._study_id}
            with contextlib.suppress(MlflowException):  # somebody else may make it at this moment
                return str(self._client.create_experiment(self._name, artifact_location=artifacts, tags=tags))
            found = self._client.get_experiment_by_name(self._name)
        if found is None or found.lifecycle_stage != "active" or found.tags.get(STUDY_ID_TAG) != self._study_id:
            raise UserError(
                f"a study's name must be free in MLflow, but the store has an experiment {self._name!r} of somebody else's, or a "
                "deleted one; choose another name"
            )
        return str(found.experiment_id)

    def deliver(self, limit: int = 500) -> int:
        """Apply pending events in their order; return how many there were."""
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
                self._client.set_terminated(run_id, status=event.data["status"], end_time=event.time_ms)
            case "trial_start":
                params = [Param(key, str(value)) for key, value in event.data["params"].items()]
                self._client.log_batch(run_id, params=params, tags=_tags(event.data["tags"] | {STATE_TAG: "running"}))
                self._client.update_run(run_id, status="RUNNING")
            case "measurement":
                self._log_metrics(run_id, events)
            case "candidate":
                self._log_candidate(run_id, event)
            case "trial_end":
                self._log_model(run_id, event.data["model"])
                charts = self._log_charts(run_id, event.data.get("charts"))  # older versions put none
                self._forget_failure(run_id)
                tags = event.data["tags"] | ({CHARTS_TAG: ", ".join(charts)} if charts else {})
                self._client.log_batch(run_id, tags=_tags(tags | {STATE_TAG: event.data["state"]}))
                status = "FINISHED" if event.data["state"] == "finished" else "FAILED"
                failpoint("run ending")
                self._client.set_terminated(run_id, status=status, end_time=event.time_ms)
            case "trial_interrupted":
                self._client.log_batch(run_id, tags=_tags(event.data["tags"] | {STATE_TAG: "interrupted"}))
                self._client.set_terminated(run_id, status="KILLED", end_time=event.time_ms)

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
        """Logged models of a trial's candidates, whole or not."""
        of_trial = f"tags.`{STUDY_ID_TAG}` = '{self._study_id}' AND tags.`{TRIAL_TAG}` = '{trial}'"
        found = _all_models(self._client, self._experiment_id, of_trial)
        return {int(model.tags[CANDIDATE_TAG]): str(model.model_id) for model in found}

    def _create_candidate(self, run_id: str, event: Event) -> str:
        number = event.data["number"]
        model = self._client.create_logged_model(
            self._experiment_id,
            name=f"{self._name.replace('.', '-')}-{event.trial:04d}-{number}",  # MLflow takes no dots here
            source_run_id=run_id,
            tags={
                STUDY_TAG: self._name, STUDY_ID_TAG: self._study_id, TRIAL_TAG: str(event.trial), CANDIDATE_TAG: str(number),
                PREFIX + "step": str(event.data["step"]),
            },
            params={key: str(value)[:_MAX_MODEL_PARAM] for key, value in event.data["params"].items()},
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
        found = self._client.search_runs(
            [self._experiment_id], f"tags.`{TRIAL_TAG}` = '{trial}' and tags.`{STUDY_ID_TAG}` = '{self._study_id}'"
        )
        return str(found[0].info.run_id) if found else None

    def _create_run(self, trial: int, start_ms: int) -> str:
        name = self._name if trial == PARENT else f"{self._name}-{trial:04d}"
        tags = {STUDY_TAG: self._name, STUDY_ID_TAG: self._study_id, TRIAL_TAG: str(trial), MLFLOW_RUN_NAME: name}
        tags[MLFLOW_SOURCE_NAME] = "narrow-study"
        if trial != PARENT:
            tags[MLFLOW_PARENT_RUN_ID] = self._runs[PARENT]
        run = self._client.create_run(self._experiment_id, start_time=start_ms, tags=tags, run_name=name)
        return str(run.info.run_id)


def _tags(tags: Mapping[str, Any]) -> list[RunTag]:
    full = {key if key.startswith(PREFIX) else PREFIX + key: _tag_text(value) for key, value in tags.items()}
    return [RunTag(key, value) for key, value in full.items()]


def _tag_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_TAG else f"{text[: _MAX_TAG // 2]}\n[...]\n{text[-_MAX_TAG // 2 :]}"


def read_runs(tracking_uri: str, name: str) -> tuple[Run, list[Run]]:
    """The parent run of a study and its trials' runs, by trial number.

    Raises:
        UserError: if MLflow has no such study.
    """
    client = connect(tracking_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None or STUDY_TAG not in experiment.tags:
        known = ", ".join(sorted(found.name for found in _study_experiments(client))) or "none yet"
        raise UserError(
            f"a study must be in MLflow's store, but {tracking_uri} has no {name!r} (there: {known}); see `study list`"
        )
    found = _all_runs(client, experiment.experiment_id)
    by_number = {int(run.data.tags[TRIAL_TAG]): run for run in found if TRIAL_TAG in run.data.tags}
    if PARENT not in by_number:
        raise UserError(f"a study must have its parent run in MLflow, but {name!r} has none yet; wait for its first trial")
    return by_number.pop(PARENT), [by_number[number] for number in sorted(by_number)]


def _all_runs(client: mlflow.MlflowClient, experiment_id: str) -> list[Run]:
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], max_results=_PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _study_experiments(client: mlflow.MlflowClient) -> list[Experiment]:
    return [found for found in client.search_experiments() if STUDY_TAG in found.tags]


def read_candidates(tracking_uri: str, experiment_id: str) -> list[LoggedModel]:
    """The candidates of a study's trials that are ready, by trial and number."""
    found = _all_models(mlflow.MlflowClient(tracking_uri), experiment_id)
    ready = [model for model in found if model.status == "READY" and CANDIDATE_TAG in model.tags]
    # a page may repeat models of the one before, since the newest come first and a study that runs makes more
    by_place = {(int(model.tags[TRIAL_TAG]), int(model.tags[CANDIDATE_TAG])): model for model in ready}
    return [by_place[place] for place in sorted(by_place)]


def _all_models(client: mlflow.MlflowClient, experiment_id: str, condition: str | None = None) -> list[LoggedModel]:
    models: list[LoggedModel] = []
    token: str | None = None
    while True:
        page = client.search_logged_models([experiment_id], condition, max_results=_MODELS_PAGE, page_token=token)
        models += page
        token = page.token
        if not token:
            return models


def metric_history(tracking_uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric of one run, by step."""
    history = mlflow.MlflowClient(tracking_uri).get_metric_history(run_id, metric)
    return sorted((row.step, row.value) for row in history)


def download_model(tracking_uri: str, run_id: str, destination: Path) -> Path:
    """Copy a trial's model folder out of MLflow.

    Raises:
        UserError: if the run has none.
    """
    client = mlflow.MlflowClient(tracking_uri)
    if not client.list_artifacts(run_id, "model"):
        raise UserError(f"a trial must have finished to have a model, but run {run_id} has none; see `study status`")
    destination.mkdir(parents=True, exist_ok=True)
    return Path(client.download_artifacts(run_id, "model", str(destination)))


def download_candidate(tracking_uri: str, model_id: str, destination: Path) -> Path:
    """Copy the model folder of a candidate out of MLflow."""
    place = mlflow.MlflowClient(tracking_uri).get_logged_model(model_id).artifact_location
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=str(destination), tracking_uri=tracking_uri))


def read_charts(tracking_uri: str, run_id: str, names: Sequence[str]) -> list[str]:
    """The data of a trial's charts as JSON, copied out of MLflow."""
    client = mlflow.MlflowClient(tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        return [Path(client.download_artifacts(run_id, f"charts/{name}.json", folder)).read_text() for name in names]
