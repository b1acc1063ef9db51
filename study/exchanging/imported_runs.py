"""Trials of elsewhere, to be imported: an MLflow experiment of somebody else's, or a Parquet file that `study export` wrote."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

from study.asking.run_records import run_record
from study.asking.trials import METRIC
from study.errors import UserError
from study.recording.tracking import STUDY_ID_TAG, all_runs, answering, connect

if TYPE_CHECKING:
    from mlflow.entities import Run

FACTS = b"narrow_study"
"""Where an exported file says what study it is of."""
_SQLITE = "sqlite:///"
_ENDED = ("finished", "failed", "stopped")

Values = list[tuple[int, int, float]]
"""Steps, times in ms since 1970, and values of a metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedTrial:
    """What becomes a trial.

    Attributes:
        key: tells it from the others of its source, whenever it is read.
        number: the one that it had; None where the importer chooses.
        state: finished, failed or stopped.
        metrics: the history of each.
        cause: of a failure.
        model: where its model or other files are.
    """

    key: str
    number: int | None
    state: str
    params: dict[str, Any]
    metrics: dict[str, Values]
    start_ms: int
    end_ms: int
    host: str | None = None
    cause: str | None = None
    model: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where trials come from.

    Attributes:
        shown: for people.
        study_id: of what they become: the same for the same source.
        metric_names: those that there are.
        facts: of the study that an exported file is of.
    """

    shown: str
    study_id: str
    metric_names: frozenset[str]
    facts: dict[str, Any] = field(default_factory=dict)


class MlflowSource:
    """An experiment of somebody else's. It is only read.

    Raises:
        UserError: if there is none, it is a study of ours, or MLflow does not answer.
    """

    def __init__(self, tracking_uri: str, name: str) -> None:
        file = Path(tracking_uri.removeprefix(_SQLITE))
        if tracking_uri.startswith(_SQLITE) and "?" not in tracking_uri and not file.exists():
            raise UserError(f"what is imported must be there, but there is no database {file}; see --tracking-uri")
        self._client, self._uri = connect(tracking_uri), tracking_uri
        with answering(tracking_uri):
            found = self._client.get_experiment_by_name(name)
            if found is None:
                known = ", ".join(sorted(other.name for other in self._client.search_experiments())) or "none"
                raise UserError(
                    f"what is imported must be an experiment of MLflow or a .parquet file, but {tracking_uri} has no {name!r} "
                    f"(there: {known}); see --tracking-uri"
                )
            if STUDY_ID_TAG in found.tags:
                raise UserError(
                    f"what is imported must be somebody else's, but {name!r} in {tracking_uri} is a study; ask it where it is "
                    f"with --tracking-uri, or import what `study export {name} {name}.parquet` writes"
                )
            self._experiment_id = str(found.experiment_id)
            metrics = frozenset(metric for run in all_runs(self._client, self._experiment_id) for metric in run.data.metrics)
        identity = f"{self._experiment_id}\n{found.creation_time}\n{name}"
        self.source = Source(shown=f"{tracking_uri} {name}", study_id=_id_of(identity), metric_names=metrics)

    def trials(self, known: frozenset[str]) -> Iterator[ImportedTrial]:
        """Those that have ended, by their start; not those of known keys."""
        for run in all_runs(self._client, self._experiment_id, order=["attributes.start_time ASC"]):
            record = run_record(run, is_ours=False)
            assert record is not None
            if record["run_id"] in known or record["state"] not in _ENDED:
                continue
            start_ms = record["start_ms"] or 0
            yield ImportedTrial(
                key=record["run_id"],
                number=None,
                state=record["state"],
                params=json.loads(record["params"]),
                metrics={name: self._history(run, name) for name in run.data.metrics},
                start_ms=start_ms,
                end_ms=record["end_ms"] or start_ms,
                cause="unknown" if record["state"] == "failed" else None,
                model=str(run.info.artifact_uri),
            )

    def _history(self, run: "Run", name: str) -> Values:
        rows = self._client.get_metric_history(run.info.run_id, name)
        return [(int(row.step), int(row.timestamp), float(row.value)) for row in rows]


class ParquetSource:
    """A file that `study export` wrote.

    Raises:
        UserError: if it is none.
    """

    def __init__(self, path: Path) -> None:
        try:
            table = parquet.ParquetFile(path).read()
            facts = json.loads((table.schema.metadata or {})[FACTS])
            identity = f"{facts['study']}\n{facts['study_id']}"
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise UserError(
                f"what is imported must be a file that `study export` wrote, but {path} is none "
                f"({error or type(error).__name__}); export it again"
            ) from error
        self._rows = table.to_pylist()
        names = frozenset(name.removeprefix(METRIC) for name in table.column_names if name.startswith(METRIC))
        self.source = Source(shown=str(path), study_id=_id_of(identity), metric_names=names, facts=facts)
        self._keeps_numbers = len({row["study"] for row in self._rows}) == 1 and "candidate" not in table.column_names

    def trials(self, known: frozenset[str]) -> Iterator[ImportedTrial]:
        """Those that have ended, one a model; not those of known keys."""
        for row in self._rows:
            key = row["model_id"] or row["run_id"]
            if key in known or row["state"] not in _ENDED:
                continue
            end_ms = row["end_ms"] or row["start_ms"]
            params = {name.removeprefix("params."): value for name, value in row.items() if name.startswith("params.")}
            metrics = {name.removeprefix(METRIC): value for name, value in row.items() if name.startswith(METRIC)}
            yield ImportedTrial(
                key=key,
                number=row["trial"] if self._keeps_numbers else None,
                state=row["state"],
                params={name: value for name, value in params.items() if value is not None},
                metrics={name: [(1, end_ms, value)] for name, value in metrics.items() if value is not None},
                start_ms=row["start_ms"],
                end_ms=end_ms,
                host=row["host"],
                cause=row["failure"],
            )


def _id_of(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def open_source(source: str, tracking_uri: str) -> MlflowSource | ParquetSource:
    """A file where the name ends in .parquet, else an experiment of an MLflow."""
    return ParquetSource(Path(source)) if source.endswith(".parquet") else MlflowSource(tracking_uri, source)
