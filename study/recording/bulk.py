"""Whole runs at once, into the tables of an MLflow that is in this process: many tiny trials end in one transaction.

MLflow's interface takes a run in pieces, each a transaction of some ten statements, which is most of what a tiny trial costs.
Where anything here does not fit MLflow, nothing is written, and runs go that way.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import mlflow.store.tracking.sqlalchemy_store as sql
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
from mlflow.utils.uri import append_to_uri_path
from mlflow.utils.validation import _validate_batch_log_data
from sqlalchemy import insert

if TYPE_CHECKING:
    import mlflow


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeRun:
    """A run that has ended, with all that is to be said of it.

    Attributes:
        start_ms, end_ms: milliseconds since 1970.
        status: MLflow's word for how it ended.
        artifact_uri: where its files are by now.
    """

    run_id: str
    name: str
    start_ms: int
    end_ms: int
    status: str
    artifact_uri: str
    params: Sequence[Param]
    metrics: Sequence[Metric]
    tags: Sequence[RunTag]


class BulkInsert:
    """Puts runs into one experiment.

    Args:
        store: MLflow's own, in this process.
        artifacts: where the experiment's are.
    """

    def __init__(self, store: Any, experiment_id: str, artifacts: str) -> None:
        self._store, self._experiment_id, self._artifacts = store, experiment_id, artifacts

    @classmethod
    def of(cls, client: "mlflow.MlflowClient", experiment_id: str) -> Self | None:
        """None where MLflow is behind a server, or something else than we know."""
        store = getattr(getattr(client, "_tracking_client", None), "store", None)
        if type(store) is not sql.SqlAlchemyStore:
            return None
        return cls(store, experiment_id, str(client.get_experiment(experiment_id).artifact_location))

    def new_id(self, study_id: str, trial: int) -> str:
        """Of a trial's run: the same whenever it is made, so that files of a run that was not written are not left over."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"narrow-study/{study_id}/{trial}").hex

    def artifact_uri(self, run_id: str) -> str:
        """Where MLflow puts a run's files."""
        return str(append_to_uri_path(self._artifacts, run_id, self._store.ARTIFACTS_FOLDER_NAME))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the store's connections."""
        self._store.engine.dispose()

    def insert(self, runs: Sequence[WholeRun]) -> None:
        """Write all of them, or none.

        Raises:
            Exception: whatever MLflow or its database has against them.
        """
        rows: dict[type, list[dict[str, Any]]] = {}
        for run in runs:
            for table, values in self._rows(run):
                rows.setdefault(table, []).append(values)
        with self._store.ManagedSessionMaker(read_only=False) as session:
            for table, of_table in rows.items():
                session.execute(insert(table), of_table)

    def _rows(self, run: WholeRun) -> Iterator[tuple[type, dict[str, Any]]]:
        metrics, params, tags = _validate_batch_log_data(run.metrics, run.params, run.tags)  # type: ignore[no-untyped-call]
        yield SqlRun, {
            "run_uuid": run.run_id, "name": run.name, "experiment_id": int(self._experiment_id), "source_type": "UNKNOWN",
            "source_name": "", "entry_point_name": "", "user_id": "unknown", "status": run.status, "start_time": run.start_ms,
            "end_time": run.end_ms, "source_version": "", "lifecycle_stage": "active", "artifact_uri": run.artifact_uri,
        }  # fmt: skip
        for table, pairs in ((SqlTag, tags), (SqlParam, params)):
            for pair in pairs:
                yield table, {"run_uuid": run.run_id, "key": pair.key, "value": pair.value}
        latest: dict[str, dict[str, Any]] = {}
        for metric in sorted(metrics, key=lambda metric: (metric.step, metric.timestamp)):
            is_nan, value = self._store.sanitize_metric_value(metric.value)
            own = {"key": metric.key, "value": value, "timestamp": metric.timestamp, "step": metric.step, "is_nan": is_nan}
            latest[metric.key] = own | {"run_uuid": run.run_id}
            yield SqlMetric, latest[metric.key]
        for newest in latest.values():
            yield SqlLatestMetric, newest
