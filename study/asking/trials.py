"""Trials and candidates as MLflow has them: a table, since there may be very many, and rows, made when somebody looks at one."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from study.home import model_label
from study.running.ledger import Ledger

if TYPE_CHECKING:
    import pandas

    from study.asking.models import ModelSource

METRIC = "metrics."
_BATCH = 1000
_LARGEST = 2**63 - 1
_TYPES = {
    "study": pa.string(),
    "trial": pa.int64(),
    "candidate": pa.int64(),
    "state": pa.string(),
    "params": pa.string(),
    "attempts": pa.int64(),
    "host": pa.string(),
    "failure": pa.string(),
    "stopped": pa.string(),
    "start_ms": pa.int64(),
    "end_ms": pa.int64(),
    "charts": pa.string(),
    "repeated_steps": pa.int64(),
    "repeated_seconds": pa.float64(),
    "ledger": pa.string(),
    "run_id": pa.string(),
    "model_id": pa.string(),
    "status": pa.string(),
    "lifecycle": pa.string(),
}
"""Columns of every table of trials: `params`, `failure` and `ledger` are JSON, `charts` names with commas between
them, `status` and `lifecycle` what MLflow says of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a trial ended without a result."""

    cause: str
    error: str
    traceback: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """One trial as MLflow has it, or one of its candidates.

    Attributes:
        state: of the trial: finished, failed, stopped, running or interrupted.
        stopped: why it was stopped early, if it was.
        metrics: latest values, `progress` among them; of a candidate its own.
        start_ms, end_ms: since 1970; end_ms is None while it runs.
        repeated_steps, repeated_seconds: work that later attempts did again, in all; counted when the trial ends.
        ledger: where its time went, until its latest attempt was over; None before, and of a study of an older version.
        charts: names of its charts; a trial has them when it is finished.
        candidate: number of the candidate that this is; None for the trial with its own model.
        model_id: of a candidate, MLflow's name for it.
        study: where several studies are asked at once, the one that it is of.
        source: where its model is; None for a row that was made by hand.
        source_study: the study that it is of, in any case.
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
    stopped: str | None = None
    repeated_steps: int = 0
    repeated_seconds: float = 0.0
    ledger: Ledger | None = None
    candidate: int | None = None
    model_id: str | None = None
    study: str | None = None
    source: "ModelSource | None" = dataclasses.field(default=None, repr=False, compare=False)
    source_study: str | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def label(self) -> str:
        """What to call it: 3, or 3.4 for candidate 4 of trial 3; l1/3.4 where several studies are asked."""
        label = model_label(self.number, self.candidate)
        return label if self.study is None else f"{self.study}/{label}"

    def download_model(self, destination: str | Path) -> Path:
        """Copy its model out of MLflow; returns the folder.

        Raises:
            UserError: if there is none.
        """
        return self.require_source().download(self, Path(destination))

    def load_model(self) -> Any:
        """Build its trained networks: what its experiment's `rebuild` returns.

        Raises:
            UserError: if it has no model.
        """
        return self.require_source().load(self)

    def require_source(self) -> "ModelSource":
        """Where its model is.

        Raises:
            RuntimeError: if the row was made by hand.
        """
        if self.source is None:
            raise RuntimeError("a row must come from a study to have a model, but this one was made by hand; use `open_study`")
        return self.source


class Trials(Sequence[TrialRow]):
    """Trials, or models, in an order; a row is made when it is asked for.

    Args:
        table: with the columns of `table_of`.
        sources: by study, where its models come from; None where the rows are of no store.
        is_merged: of several studies, so that each row says which.
    """

    def __init__(self, table: pa.Table, sources: "Mapping[str, ModelSource] | None" = None, *, is_merged: bool = False) -> None:
        self.table = table
        self.sources = dict(sources or {})
        self.is_merged = is_merged

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> TrialRow: ...
    @overload
    def __getitem__(self, index: slice) -> "Trials": ...
    def __getitem__(self, index: int | slice) -> "TrialRow | Trials":
        places = range(len(self))[index]
        if isinstance(places, int):
            return next(iter(self.take([places])))
        return self.take(places)

    def __iter__(self) -> Iterator[TrialRow]:
        for start in range(0, len(self), _BATCH):
            yield from map(self._row, self.table.slice(start, _BATCH).to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} trials>" if len(self) != 1 else "<1 trial>"

    def take(self, places: "Sequence[int] | NDArray[np.int_] | NDArray[np.bool_]") -> "Trials":
        """Some of them, by their places or by a mask."""
        chosen = np.asarray(places)
        places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        return self.with_table(self.table.take(pa.array(places)))

    def followed_by(self, others: "Trials") -> "Trials":
        """These, then others of the same studies."""
        return self.with_table(join_tables([self.table, others.table]))

    def with_table(self, table: pa.Table) -> "Trials":
        """Other rows of the same studies."""
        return Trials(table, self.sources, is_merged=self.is_merged)

    @property
    def metric_names(self) -> list[str]:
        """Every metric that one of them has."""
        return [name.removeprefix(METRIC) for name in self.table.column_names if name.startswith(METRIC)]

    def metric(self, name: str) -> NDArray[np.float64]:
        """(rows,) values of a metric; NaN where a row has none, or has a NaN."""
        if METRIC + name not in self.table.column_names:
            return np.full(len(self), np.nan)
        return np.asarray(self.table[METRIC + name].to_numpy(), dtype=np.float64)

    def has_metric(self, name: str) -> NDArray[np.bool_]:
        """(rows,) whether a row has a value of a metric, be it a NaN."""
        if METRIC + name not in self.table.column_names:
            return np.zeros(len(self), dtype=bool)
        return np.asarray(self.table[METRIC + name].is_valid().to_numpy())

    def column(self, name: str) -> list[Any]:
        """The values of one of the fixed columns, as Python has them."""
        return list(self.table[name].to_pylist())

    def params(self) -> list[dict[str, Any]]:
        """The parameters of each."""
        return [json.loads(text) for text in self.column("params")]

    @property
    def has_candidates(self) -> bool:
        """Whether some of these are candidates."""
        return bool(self.table["candidate"].null_count < len(self))

    def _row(self, fields: Mapping[str, Any]) -> TrialRow:
        failure = fields["failure"]
        study = fields["study"]
        return TrialRow(
            number=fields["trial"],
            run_id=fields["run_id"],
            state=fields["state"],
            params=json.loads(fields["params"]),
            metrics={name.removeprefix(METRIC): v for name, v in fields.items() if name.startswith(METRIC) and v is not None},
            attempts=fields["attempts"],
            host=fields["host"],
            failure=Failure(**json.loads(failure)) if failure else None,
            stopped=fields["stopped"],
            start_ms=fields["start_ms"],
            end_ms=fields["end_ms"],
            charts=tuple(filter(None, (fields["charts"] or "").split(", "))),
            repeated_steps=fields["repeated_steps"],
            repeated_seconds=fields["repeated_seconds"],
            ledger=Ledger.from_json(fields["ledger"]) if fields["ledger"] else None,
            candidate=fields["candidate"],
            model_id=fields["model_id"],
            study=study if self.is_merged else None,
            source=self.sources.get(study),
            source_study=study,
        )

    def to_arrow(self) -> pa.Table:
        """A column each: study, trial, candidate where there are any, state, `params.*`, `metrics.*`, and the rest.

        A parameter that is a number in some rows and text in others is text in all, as is one with longer whole numbers than
        64 bits hold.
        """
        table, params = self.table, self.params()
        names = dict.fromkeys(name for found in params for name in found)
        head = ["study", "trial", *(["candidate"] if self.has_candidates else []), "state"]
        columns = {name: table[name] for name in head}
        columns |= {f"params.{name}": _column([found.get(name) for found in params]) for name in names}
        columns |= {METRIC + name: table[METRIC + name] for name in self.metric_names}
        failures = [text and json.loads(text)["cause"] for text in self.column("failure")]
        columns |= {"failure": pa.array(failures, pa.string())}
        columns |= {name: table[name] for name in ("attempts", "host", "start_ms", "end_ms", "run_id", "model_id")}
        return pa.table(columns)

    def to_pandas(self) -> "pandas.DataFrame":
        """`to_arrow` as a data frame."""
        return self.to_arrow().to_pandas()

    def to_parquet(self, path: str | Path) -> None:
        """Write `to_arrow` as a Parquet file."""
        import pyarrow.parquet

        pyarrow.parquet.write_table(self.to_arrow(), path)

    def to_csv(self, path: str | Path) -> None:
        """Write `to_arrow` as CSV."""
        import pyarrow.csv

        pyarrow.csv.write_csv(self.to_arrow(), path)

    def to_json(self) -> list[dict[str, Any]]:
        """As plain values: study, trial, candidate, state, params, metrics, and the rest."""
        rows = []
        for row in self:
            fields = dataclasses.asdict(dataclasses.replace(row, source=None, study=row.source_study))
            del fields["source"], fields["source_study"]
            rows.append(fields)
        return rows


def table_of(records: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Make a table of records with the keys of `_TYPES`, those that are missing None, and `metrics` as a dict."""
    records = list(records)
    names = dict.fromkeys(METRIC + name for record in records for name in record["metrics"])
    columns = {name: pa.array([record.get(name) for record in records], kind) for name, kind in _TYPES.items()}
    for name in names:
        key = name.removeprefix(METRIC)
        columns[name] = pa.array([record["metrics"].get(key) for record in records], pa.float64())
    return pa.table(columns)


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """One below the other; a row has no value where its table had no column."""
    return pa.concat_tables(tables, promote_options="default").combine_chunks() if tables else table_of([])


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int} and all(value is None or -_LARGEST <= value <= _LARGEST for value in values):
        return pa.array(values, pa.int64())
    if float in kinds and kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if kinds <= {bool}:
        return pa.array(values, pa.bool_())
    texts = (value if isinstance(value, str) or value is None else json.dumps(value) for value in values)
    return pa.array(list(texts), pa.string())


def as_json(value: Any) -> Any:
    """Plain values as JSON has them: the words NaN, Infinity and -Infinity for the numbers that it lacks."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
