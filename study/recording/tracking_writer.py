"""Writes a study into MLflow, each thing once.

Writing is idempotent: a run is found again by its study and trial, a metric's timestamp depends only on the trial's
start and its step (MLflow drops a row that it has already), so whatever is delivered twice is there once. A candidate
is a logged model: found again by its trial and number, ready when its files and metrics are all there. What makes a run
or a logged model is asked of MLflow once only, since an answer that is lost does not tell whether it was made.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from study.errors import UserError
from study.keeping import artifacts
from study.keeping.retention import Model, Rule
from study.keeping.settling import EndedRun, Settler
from study.recording import tracking
from study.recording.batches import Whole, by_trial, chunks
from study.recording.bulk import BulkInsert, WholeRun
from study.recording.lost_runs import LostRuns
from study.recording.outbox import Event, Outbox
from study.recording.run_files import UPLOAD, RunFiles, requests
from study.recording.run_writes import RunWrites, storable
from study.recording.tracking import (
    CANDIDATE_PREFIX,
    CANDIDATE_TAG,
    CHARTS_TAG,
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
from trainables.failpoints import failpoint
from trainables.storage import Folder

from mlflow.entities import LoggedModel, Metric, Param  # isort: skip: study.recording.tracking quietens it first
from mlflow.exceptions import MlflowException  # isort: skip
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_SOURCE_NAME  # isort: skip

_STATUSES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow's word for how a trial ended. It has none for one that was stopped early; who looks for FINISHED must not find it."""
_MAX_MODEL_PARAM = 500
_ASK_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}

logger = logging.getLogger(__name__)


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
        self._client, self._tracking_uri = tracking.connect(tracking_uri), tracking_uri
        self._runs = outbox.runs()
        with answering(tracking_uri):
            self._experiment_id = self._find_experiment(artifacts)
        self._starts: dict[int, int] = {}
        self._made: dict[int | None, EndedRun] = {}  # of trials whose runs were made here and have had one attempt
        self._lost = LostRuns(self._client, self._experiment_id, study_id, set(self._runs.values()))
        self._bulk = BulkInsert.of(self._client, self._experiment_id)
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
        for chunk, whole in chunks(events, self._is_new):
            inserted = self._insert(whole)
            for of_trial in by_trial(event for event in chunk if event.trial not in inserted or event.kind == "trial_settled"):
                self._apply_all(of_trial)
            failpoint("event delivered", chunk[-1].kind)
            self._outbox.mark_delivered(chunk[-1].seq)
        return len(events)

    def close(self) -> None:
        """Close a database of MLflow's that is in this process: SQLite leaves no log beside it then."""
        if self._bulk is not None:
            self._bulk.close()

    def _is_new(self, trial: int) -> bool:
        return self._bulk is not None and trial not in self._runs and self._find_run(trial) is None

    def _insert(self, whole: Whole) -> Set[int]:
        """Write the runs of whole trials at once, if MLflow can be written to so; return which were."""
        if self._bulk is None or not whole:
            return set()
        try:
            self._bulk.insert([self._whole_run(self._bulk, trial, events) for trial, events in whole.items()])
        except Exception:
            logger.exception("could not write runs at once; from now on they go piece by piece")
            self._bulk = None
            for trial in whole:
                self._made.pop(trial, None)
            return set()
        for trial in whole:
            self._remember(trial, self._made[trial].run_id)
        return whole.keys()

    def _whole_run(self, bulk: BulkInsert, trial: int, events: list[Event]) -> WholeRun:
        """All of a run; its files are there then."""
        run_id = bulk.new_id(self._study_id, trial)
        place = bulk.artifact_uri(run_id)
        self._starts[trial] = events[0].time_ms
        made = self._made[trial] = EndedRun(run_id=run_id, artifact_uri=place)
        writes, end = RunWrites(self._client, run_id), next(event for event in events if event.kind == "trial_end")
        for event in events:
            if event.kind in ("trial_start", "measurement"):
                self._apply_one(event, run_id, writes)
        writes.tag(self._identity(trial) | self._take_files(end, run_id))
        made.tags[STATE_TAG], made.status = end.data["state"], _STATUSES[end.data["state"]]
        return WholeRun(
            run_id=run_id, name=self._run_name(trial), start_ms=events[0].time_ms, end_ms=end.time_ms, status=made.status,
            artifact_uri=place, params=writes.params, metrics=writes.metrics, tags=writes.tags,
        )  # fmt: skip

    def _apply_all(self, events: list[Event]) -> None:
        """Apply events of one trial in as few requests as possible; what MLflow will never take is left out."""
        try:
            self._apply(events)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(events) == 1:
                logger.error("MLflow will never take %s: %s", events[0], error)  # and what follows must not wait for it
                return
            for event in events:
                self._apply_all([event])

    def _apply(self, events: list[Event]) -> None:
        run_id = self._run(PARENT if events[0].trial is None else events[0].trial, events[0])
        writes = RunWrites(self._client, run_id)
        for event in events:
            self._apply_one(event, run_id, writes, ends=events[-1].kind == "trial_end")
        writes.flush()

    def _apply_one(self, event: Event, run_id: str, writes: RunWrites, *, ends: bool = False) -> None:
        """Apply an event, now or when `writes` is flushed.

        Args:
            ends: whether the trial's end follows at once.
        """
        match event.kind:
            case "session_start":
                writes.tag(event.data["tags"])
                self._client.update_run(run_id, status="RUNNING")
            case "session_end":
                self._remove_strays()
                writes.tag(event.data.get("tags", {}))  # older versions put none
                writes.flush()
                self._client.set_terminated(run_id, status=event.data["status"], end_time=event.time_ms)
            case "trial_start":
                self._start(event, run_id, writes, ends=ends)
            case "measurement":
                self._measure(event, run_id, writes)
            case "candidate":
                self._log_candidate(run_id, event)
            case "trial_end":
                self._end(event, run_id, writes)
            case "trial_settled":
                self.settle(event.trial, Folder(event.data["folder"]))
            case "trial_interrupted":
                writes.tag(event.data["tags"] | {STATE_TAG: "interrupted"})
                writes.flush()
                self._client.set_terminated(run_id, status="KILLED", end_time=event.time_ms)

    def _start(self, event: Event, run_id: str, writes: RunWrites, *, ends: bool) -> None:
        writes.params += [Param(key, storable(str(value))) for key, value in event.data["params"].items()]
        writes.tag(event.data["tags"] | {STATE_TAG: "running"})
        if event.data.get("attempt") != 1:
            self._made.pop(event.trial, None)
        if event.trial not in self._made and not ends:  # one that has ended already must not seem to go on
            self._client.update_run(run_id, status="RUNNING")

    def _measure(self, event: Event, run_id: str, writes: RunWrites) -> None:
        """A step's timestamp is the trial's start plus a millisecond a step."""
        step, time_ms = event.data["step"], self._start_ms(run_id, event.trial) + event.data["step"]
        metrics = event.data["metrics"] | {"progress": event.data["progress"]}
        writes.metrics += [Metric(name, value, time_ms, step) for name, value in metrics.items()]
        if made := self._made.get(event.trial):
            made.metrics.update(metrics)

    def _end(self, event: Event, run_id: str, writes: RunWrites) -> None:
        made, state = self._made.get(event.trial), event.data["state"]
        tags = self._take_files(event, run_id)
        if made is None:
            self._forget_failure(run_id)
        writes.tag(tags)
        writes.flush()
        failpoint("run ending")
        self._client.set_terminated(run_id, status=_STATUSES[state], end_time=event.time_ms)
        if made is not None:
            made.tags[STATE_TAG], made.status = state, _STATUSES[state]

    def _take_files(self, end: Event, run_id: str) -> dict[str, Any]:
        """Put a trial's model and charts into its run; return the tags of its end, which say what there is."""
        made = self._made.get(end.trial)
        files = RunFiles(self._client, self._tracking_uri, run_id, made.artifact_uri if made else None)
        files.put_model(end.data["model"])
        charts = files.put_charts(end.data.get("charts"))  # older versions put none
        tags: dict[str, Any] = end.data["tags"]
        return tags | ({CHARTS_TAG: ", ".join(charts)} if charts else {}) | {STATE_TAG: end.data["state"]}

    def settle(self, trial: int | None, folder: Folder) -> None:
        """Clear a trial's files away that MLflow has, and weigh its models; only once its end is delivered."""
        assert trial is not None
        num_offered = self._outbox.num_candidates(trial)
        candidates = self._models_of(trial) if num_offered else []
        run = self._made.pop(trial, None) or EndedRun.of(self._client.get_run(self._runs[trial]))
        self._settler.settle(trial, folder, run, candidates, num_offered)

    def look_at(self, trial: int, folder: Folder) -> list[Model]:
        """The models that MLflow has of a trial; nothing is changed."""
        if trial not in self._runs:
            return []
        ready = [model for model in self._models_of(trial) if model.status == "READY"]
        return self._settler.models_of(trial, folder, EndedRun.of(self._client.get_run(self._runs[trial])), ready)

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
            with requests(UPLOAD):
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
                params={key: storable(str(value))[:_MAX_MODEL_PARAM] for key, value in event.data["params"].items()},
                model_type="narrow-study",
            )  # fmt: skip
        return str(model.model_id)

    def _start_ms(self, run_id: str, trial: int | None) -> int:
        key = PARENT if trial is None else trial
        if key not in self._starts:
            self._starts[key] = int(self._client.get_run(run_id).info.start_time)
        return self._starts[key]

    def _run(self, trial: int, event: Event) -> str:
        """The run of a trial, or of the study: known, found in MLflow, or made."""
        if trial not in self._runs:
            self._remember(trial, self._find_run(trial) or self._create_run(trial, event.time_ms))
        return self._runs[trial]

    def _remember(self, trial: int, run_id: str) -> None:
        self._outbox.remember_run(trial, run_id)
        self._runs[trial] = run_id

    def _find_run(self, trial: int) -> str | None:
        found = self._lost.find(trial, in_doubt=trial in self._doubtful)
        if len(found) > 1:
            self._doubtful.add(trial)
        return min(found, default=None)

    @contextlib.contextmanager
    def _making(self, trial: int | None) -> Iterator[None]:
        """Inside, something of a trial is made that must not be made twice; an error leaves in doubt whether it was."""
        try:
            with requests(_ASK_ONCE):
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
        tags, name = self._identity(trial), self._run_name(trial)
        with self._making(trial):
            run = self._client.create_run(self._experiment_id, start_time=start_ms, tags=tags, run_name=name)
        self._starts[trial], self._made[trial] = start_ms, EndedRun.of(run)
        return str(run.info.run_id)

    def _identity(self, trial: int) -> dict[str, str]:
        """Tags by which a run is found again."""
        tags = {STUDY_TAG: self._name, STUDY_ID_TAG: self._study_id, TRIAL_TAG: str(trial)}
        tags |= {MLFLOW_RUN_NAME: self._run_name(trial), MLFLOW_SOURCE_NAME: "narrow-study"}
        return tags if trial == PARENT else tags | {MLFLOW_PARENT_RUN_ID: self._runs[PARENT]}

    def _run_name(self, trial: int) -> str:
        return self._name if trial == PARENT else f"{self._name}-{trial:04d}"
