"""What MLflow knows of one experiment, as two tables: runs and logged models; kept on disk, so that only news is asked for.

What is final is kept: runs that finished or failed, models that are ready. A read asks MLflow for the runs that are not
final, for those that ended last, for the deleted ones, for trials whose number is missing, and for models made since. Of
`refresh` alone it hears of a finished run whose metrics somebody changed, of a deleted logged model, of what `mlflow gc` removed
for good, and in an experiment of somebody else's, where runs have no numbers, of one that ended long ago by a clock of its own.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from study.asking.index_files import Index, IndexFiles, Origin, Progress
from study.asking.run_records import FINAL, Record, candidate_record, run_record
from study.asking.trials import join_tables, table_of
from study.errors import UserError
from study.recording.tracking import (
    PREFIX,
    STATE_TAG,
    STUDY_ID_TAG,
    TRIAL_TAG,
    all_models,
    all_runs,
    answering,
    connect,
    find_experiment,
    reason_of,
)

import mlflow  # isort: skip: study.recording.tracking quietens it first
from mlflow.entities import LoggedModel, Run, ViewType  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip

_FIRST_PAGE, _PAGE = 100, 5000
_OVERLAP_MS = 10_000
_MAX_HOLES = 20
_IDS_A_QUERY = 100


def read_index(tracking_uri: str, name: str, files: IndexFiles, *, refresh: bool = False, progress: Progress) -> Index:
    """Read a study, or an experiment of somebody else's: what is kept, and from MLflow what is new.

    Args:
        refresh: read all of it again.
        progress: told how many runs have been read so far.

    Raises:
        UserError: if MLflow does not answer, or has no such experiment.
    """
    fingerprint = files.fingerprint()
    client = connect(tracking_uri)
    with answering(tracking_uri):
        origin = _find_origin(client, name)
        kept = None if refresh else files.load(origin)
        known = kept or Index(origin, table_of([]), table_of([]))
        runs, has_news = _read_runs(_Runs(client, origin, progress), known.runs)
        candidates, until_ms = _read_candidates(client, known) if origin.study_id else (known.candidates, 0)
    is_new = has_news or candidates is not known.candidates
    index = Index(origin, runs, candidates, until_ms, None if is_new else known.digests)
    files.save(index, fingerprint)
    return index


def _find_origin(client: mlflow.MlflowClient, name: str) -> Origin:
    experiment, parent = find_experiment(client, name)
    return Origin(
        experiment_id=str(experiment.experiment_id),
        name=name,
        study_id=experiment.tags.get(STUDY_ID_TAG),
        created_ms=int(experiment.creation_time or 0),
        run_id=None if parent is None else str(parent.info.run_id),
        tags={}
        if parent is None
        else {key.removeprefix(PREFIX): text for key, text in parent.data.tags.items() if key.startswith(PREFIX)},
    )


class _Runs:
    """Asks MLflow for runs of one experiment."""

    def __init__(self, client: mlflow.MlflowClient, origin: Origin, progress: Progress) -> None:
        self._client, self._id, self._progress = client, origin.experiment_id, progress
        self.is_ours = origin.study_id is not None
        self._num_read = 0

    def pages(self, condition: str = "", view: int = ViewType.ACTIVE_ONLY, *, first: int = _PAGE) -> Iterator[list[Run]]:
        """Those that meet a condition, page by page and ever longer ones, those that ended last first."""
        token, size = None, first
        while True:
            newest = ["attributes.end_time DESC"]
            page = self._client.search_runs([self._id], condition, view, size, newest, token)
            self._num_read += len(page)
            self._progress(self._num_read)
            yield list(page)
            token, size = page.token, min(2 * size, _PAGE)
            if not token:
                return

    def all(self, condition: str = "", view: int = ViewType.ACTIVE_ONLY) -> Iterator[Run]:
        for page in self.pages(condition, view):
            yield from page

    def by_ids(self, run_ids: list[str]) -> Iterator[Run]:
        """Active ones of these."""
        for start in range(0, len(run_ids), _IDS_A_QUERY):
            shown = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + _IDS_A_QUERY])
            yield from self.all(f"attributes.run_id IN ({shown})")

    def of_trials(self, numbers: Iterable[int]) -> Iterator[Run]:
        for number in numbers:
            yield from self.all(f"tags.`{TRIAL_TAG}` = '{number}'")


def _read_runs(ask: _Runs, known: pa.Table) -> tuple[pa.Table, bool]:
    """Every run, deleted ones too; and whether anything is other than it was known."""
    final = FINAL if ask.is_ours else (*FINAL, "KILLED")
    old = known.filter(pc.or_(pc.is_in(known["status"], pa.array(final)), pc.equal(known["state"], "stopped")))
    news = _News(old, final, is_ours=ask.is_ours)
    for page in ask.pages(first=_FIRST_PAGE if old.num_rows else _PAGE):
        news.note(page[: len(page) // 2])
        if news.note(page[len(page) // 2 :]) == 0 and old.num_rows:
            break
    changing = [f"attributes.status != '{status}'" for status in final]
    news.note(ask.all(" AND ".join([*changing, f"tags.`{STATE_TAG}` != 'stopped'"] if ask.is_ours else changing)))
    news.note(ask.all("", ViewType.DELETED_ONLY))
    was_deleted = old.filter(pc.equal(old["lifecycle"], "deleted"))["run_id"].to_pylist()
    restored = sorted(set(was_deleted) - news.records.keys())
    news.note(ask.by_ids(restored))
    news.gone = set(restored) - news.records.keys()  # for good
    if ask.is_ours and news.note(ask.of_trials(_holes(news.table()["trial"].to_numpy()))):
        news.note(ask.all())  # the clock of a host is behind: its runs are not among those that ended last
    runs = news.table()
    return runs, _by_run(known, news) != _by_run(runs, news) or known.num_rows != runs.num_rows


class _News:
    """What was asked for, beside what was known.

    Args:
        final: every status of a run that is kept.

    Attributes:
        records: by run id.
        gone: runs that are known, and are no more.
    """

    def __init__(self, known: pa.Table, final: Sequence[str], *, is_ours: bool) -> None:
        self._known, self._final = known, final
        self._is_ours = is_ours
        self._known_ids = set(known["run_id"].to_pylist())
        self.records: dict[str, Record] = {}
        self.gone: set[str] = set()

    def note(self, runs: Iterable[Run]) -> int:
        """Take runs in; return how many of them are final and were neither known nor heard of now."""
        num_new = 0
        for run in runs:
            record = run_record(run, is_ours=self._is_ours)
            if record is not None:
                run_id = record["run_id"]
                is_over = record["status"] in self._final or record["state"] == "stopped"
                num_new += is_over and run_id not in self._known_ids and run_id not in self.records
                self.records[run_id] = record
        return num_new

    def table(self) -> pa.Table:
        """Everything that is there now."""
        replaced = pa.array([*self.records, *self.gone], pa.string())
        kept = self._known.filter(pc.invert(pc.is_in(self._known["run_id"], replaced)))
        return join_tables([kept, table_of(self.records.values())])


def _by_run(table: pa.Table, news: _News) -> dict[str, dict[str, str]]:
    """Rows that were asked for, by run, without what they have no value of; as text, where a NaN is one like another."""
    asked = table.filter(pc.is_in(table["run_id"], pa.array(list(news.records), pa.string())))
    return {row["run_id"]: {key: repr(value) for key, value in row.items() if value is not None} for row in asked.to_pylist()}


def _holes(numbers: NDArray[np.int64]) -> list[int]:
    """Numbers of trials that are missing, the last ones, and the one that would come next."""
    following = int(numbers.max()) + 1 if len(numbers) else 0
    missing = np.setdiff1d(np.arange(following), numbers)
    return [*missing[-_MAX_HOLES:].tolist(), following]


def _read_candidates(client: mlflow.MlflowClient, known: Index) -> tuple[pa.Table, int]:
    """Every candidate that is ready, the known table itself where there is nothing new; and until when that is complete."""
    until_ms = known.complete_until_ms
    condition = f"creation_timestamp >= {until_ms - _OVERLAP_MS}" if until_ms else None
    found = all_models(client, known.origin.experiment_id, condition)
    records = {model.model_id: record for model in found if (record := candidate_record(model)) is not None}
    if records.keys() <= set(known.candidates["model_id"].to_pylist()):
        return known.candidates, until_ms
    new = pa.array(list(records), pa.string())
    old = known.candidates.filter(pc.invert(pc.is_in(known.candidates["model_id"], new)))
    return join_tables([old, table_of(records.values())]), _complete_until(found, until_ms)


def _complete_until(models: list[LoggedModel], until_ms: int) -> int:
    """When the last model was made, or the first that is not ready yet."""
    pending = [int(model.creation_timestamp) for model in models if model.status != "READY"]
    return min(pending) if pending else max([until_ms, *(int(model.creation_timestamp) for model in models)])


def matching_runs(tracking_uri: str, experiment_id: str, condition: str) -> set[str]:
    """Ids of an experiment's active runs that meet a condition in MLflow's syntax; asked for each time.

    Raises:
        UserError: if MLflow does not take the condition, or does not answer.
    """
    client = connect(tracking_uri)
    with answering(tracking_uri):
        try:
            return {str(run.info.run_id) for run in all_runs(client, experiment_id, condition)}
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(
                f"a filter on tags and attributes must be one that MLflow takes, but got {condition} ({reason_of(error)}); "
                "see MLflow's page on searching runs"
            ) from error
