"""What the writer clears away when a trial is settled: nothing goes on from its files, and MLflow has what is to be kept.

Every step may be cut short and is then made again. Of a model that goes, the outbox knows first, then the tag that says so
to whoever asks for it, and its bytes go last.
"""

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from study.keeping import artifacts
from study.keeping.retention import DROPPED, MODEL_TAG, REGISTERED_TAG, Model, Rule, State, Stock
from study.recording.outbox import Outbox
from study.recording.tracking import CANDIDATE_PREFIX, CANDIDATE_TAG, STATE_TAG
from trainables.failpoints import failpoint
from trainables.storage import Folder

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import LoggedModel, Run

_TEMPORARY = ("checkpoints", "charts", "model")
_OVER = ("FINISHED", "FAILED")
_DELETED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
"""What MLflow says of a run or logged model that somebody has deleted."""
_FORBIDDEN = (401, 403, 405, 501)

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class EndedRun:
    """What MLflow has of a trial's run.

    Attributes:
        metrics: the latest of each.
    """

    run_id: str
    artifact_uri: str
    status: str = "RUNNING"
    is_deleted: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, run: "Run") -> Self:
        info, data = run.info, run.data
        return cls(
            run_id=str(info.run_id),
            artifact_uri=str(info.artifact_uri),
            status=str(info.status),
            is_deleted=info.lifecycle_stage == "deleted",
            tags=dict(data.tags),
            metrics=dict(data.metrics),
        )


class Settler:
    """Clears away what is redundant of a study's trials, and drops models as its rule has it.

    Args:
        client: of MLflow.
        rule: which models are kept.

    Attributes:
        defers: while it is set, no model is dropped.
    """

    def __init__(self, outbox: Outbox, client: "mlflow.MlflowClient", tracking_uri: str, rule: Rule) -> None:
        self._outbox, self._client, self._tracking_uri = outbox, client, tracking_uri
        self._rule = rule
        self._may_drop = True
        self._in_registry: frozenset[str] = frozenset()
        self.defers = False
        noted = outbox.models()
        self._stock = Stock(rule, (model for model in noted if model.state == "kept"))
        self._going = deque(model for model in noted if model.state == "condemned")
        self._known = {(model.trial, model.candidate) for model in noted}

    def drop_excess(self) -> None:
        """Drop what the rule lets go, and first what a writer before this one was about to drop."""
        if self.defers:
            return
        self._going.extend(self._stock.take_excess())
        if self._going and self._may_drop:
            self._in_registry = artifacts.in_registry(self._client)
        while self._going and self._may_drop:
            self._drop(self._going[0])
            self._going.popleft()

    def settle(self, trial: int, folder: Folder, run: "EndedRun", candidates: "Sequence[LoggedModel]", num_offered: int) -> None:
        """Clear a trial's files away, and note and weigh its models.

        Args:
            folder: the trial's, in the study's storage.
            run: the trial's.
            candidates: that MLflow has of it.
            num_offered: how many there should be.
        """
        ready = sorted((m for m in candidates if m.status == "READY"), key=lambda model: int(model.tags[CANDIDATE_TAG]))
        if run.status not in _OVER and run.tags.get(STATE_TAG) != "stopped":
            logger.error("MLflow has not all of trial %d: only its checkpoints go", trial)
            folder.child("checkpoints").remove()
            return
        models = [] if run.is_deleted else self.models_of(trial, folder, run, ready)
        self._outbox.remember_models(models)
        for place in (f"{run.artifact_uri}/model", f"{run.artifact_uri}/charts", *(m.artifact_location for m in ready)):
            artifacts.sync(place)
        failpoint("trial clearing")
        for kind in _TEMPORARY:
            folder.child(kind).remove()
        if len(ready) >= num_offered:
            folder.child("candidates").remove()
        for model in models:
            if (model.trial, model.candidate) not in self._known and model.state == "kept":
                self._known.add((model.trial, model.candidate))
                self._stock.add(model)
        self.drop_excess()

    def models_of(self, trial: int, folder: Folder, run: "EndedRun", ready: "Sequence[LoggedModel]") -> list[Model]:
        """What MLflow has of a trial: a trial with candidates is on the front by these alone, one that failed by none."""
        is_finished, sizes = run.tags.get(STATE_TAG) == "finished", folder.sizes()
        models = []
        if is_finished and (num_bytes := self._num_bytes(sizes, "model/", f"{run.artifact_uri}/model")):
            costs = None if ready else self._rule.costs(run.metrics)
            models.append(Model(trial, None, run.run_id, num_bytes, costs, _state(run.tags)))
        for model in ready:
            number = int(model.tags[CANDIDATE_TAG])
            metrics = {metric.key.removeprefix(CANDIDATE_PREFIX): metric.value for metric in model.metrics or ()}
            num_bytes = self._num_bytes(sizes, f"candidates/{number:05d}-", model.artifact_location)
            costs = self._rule.costs(metrics) if is_finished else None
            models.append(Model(trial, number, model.model_id, num_bytes, costs, _state(model.tags)))
        return models

    def _num_bytes(self, sizes: Mapping[str, int], copy: str, uri: str) -> int:
        """Of a model in MLflow; the storage's copy is at hand, as a rule."""
        copies = Counter[str]()  # of a candidate, more than one attempt may have written it
        for path, size in sizes.items():
            if path.startswith(copy):
                copies[path.rpartition("/")[0]] += size
        return max(copies.values(), default=0) or artifacts.num_bytes(uri, self._tracking_uri)

    def _drop(self, model: Model) -> None:
        """Drop a model's files; trouble with them keeps no event waiting, and the next session tries again."""
        self._outbox.mark_model(model, "condemned")
        try:
            if self._is_registered(model):
                self._outbox.mark_model(model, "kept")
                return
            uri = self._condemn(model)
            if self._is_registered(model):  # meanwhile, by somebody who did not see that tag yet
                self._spare(model)
                return
        except Exception as error:
            if not is_of_deleted(error):
                raise
            self._outbox.mark_model(model, "dropped")
            return
        failpoint("model going")
        try:
            artifacts.delete(uri, self._tracking_uri)
        except Exception as error:
            self._give_up(model, error)
        else:
            self._outbox.mark_model(model, "dropped")

    def _is_registered(self, model: Model) -> bool:
        return is_registered(self._client, model, self._in_registry)

    def _condemn(self, model: Model) -> str:
        """Tag whose model goes; return where it is."""
        if model.candidate is None:
            self._client.set_tag(model.place, MODEL_TAG, DROPPED)
            return f"{self._client.get_run(model.place).info.artifact_uri}/model"
        self._client.set_logged_model_tags(model.place, {MODEL_TAG: DROPPED})
        return str(self._client.get_logged_model(model.place).artifact_location)

    def _give_up(self, model: Model, error: Exception) -> None:
        """Where MLflow's files may not be deleted, they are all there and nobody shall be told otherwise."""
        if self._may_drop:
            logger.warning("could not delete the files of a model in MLflow: %s; no more are dropped in this session", error)
        self._may_drop = False
        if isinstance(error, PermissionError) or getattr(getattr(error, "response", None), "status_code", 0) in _FORBIDDEN:
            self._spare(model)

    def _spare(self, model: Model) -> None:
        """Take back that it goes."""
        if model.candidate is None:
            self._client.delete_tag(model.place, MODEL_TAG)
        else:
            self._client.delete_logged_model_tag(model.place, MODEL_TAG)
        self._outbox.mark_model(model, "kept")


def is_registered(client: "mlflow.MlflowClient", model: Model, in_registry: Set[str]) -> bool:
    """Whether somebody put it into MLflow's registry, which has no copy of its own.

    Args:
        in_registry: as `artifacts.in_registry` was told.
    """
    if model.place in in_registry:
        return True
    if model.candidate is None:
        return REGISTERED_TAG in client.get_run(model.place).data.tags
    try:
        return REGISTERED_TAG in client.get_logged_model(model.place).tags
    except Exception as error:
        if is_of_deleted(error):
            return False
        raise


def is_of_deleted(error: Exception) -> bool:
    """Whether MLflow says that somebody has deleted a run or logged model."""
    return getattr(error, "error_code", "") in _DELETED


def _state(tags: Mapping[str, str]) -> State:
    return "dropped" if tags.get(MODEL_TAG) == DROPPED else "kept"
