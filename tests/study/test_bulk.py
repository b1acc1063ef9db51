"""Whole runs at once: they say what runs piece by piece say, are there once, and go piece by piece where MLflow has changed."""

import sqlite3

import mlflow
import pytest
from retention_desk import Desk

from study.home import Home
from study.recording import tracking_writer
from study.recording.batches import chunks
from study.recording.bulk import BulkInsert
from study.recording.outbox import Event, Outbox
from study.recording.tracking import connect
from study.recording.tracking_writer import StudyWriter


class Died(BaseException):
    pass


@pytest.fixture
def desk(tmp_path):
    """Three trials, the last failed, which nobody has heard of."""
    made = Desk(tmp_path / "home")
    made.end(3.0, 4.0, settled=False)
    for step in (2, 3):
        for trial in (0, 1):
            metrics = {"loss": 1.0 / step, "size": -float(step)}
            made.put("measurement", f"step/{step}", trial, step=step, metrics=metrics, progress=0.5)
    made.end(5.0, -2.0, settled=False)
    made.end(1.0, 2.0, fails=True, settled=False)
    yield made
    made.close()


def deliver(desk, place):
    """Everything, into an MLflow of its own; returns its tables."""
    Home(place).prepare()
    with sqlite3.connect(desk.folder.outbox_file) as ours, sqlite3.connect(place / "outbox.db") as copy:
        ours.backup(copy)
    box = Outbox(place / "outbox.db")
    uri = Home(place).tracking_uri
    StudyWriter(box, name="s", study_id="id", tracking_uri=uri, artifacts=(place / "artifacts").as_uri()).deliver()
    assert box.num_pending() == 0
    box.close()
    return tables(uri, place)


def tables(uri, place):
    """Rows of each table about runs, with what a run is called in the place of its id."""
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.row_factory = sqlite3.Row
        names = dict(map(tuple, connection.execute("SELECT run_uuid, name FROM runs").fetchall()))
        found = {
            table: sorted(
                [str(dict(row)) for row in connection.execute(f"SELECT * FROM {table}")]
            )
            for table in ("runs", "tags", "params", "metrics", "latest_metrics")
        }  # fmt: skip
    for run_id, name in names.items():
        found = {table: [row.replace(run_id, name) for row in rows] for table, rows in found.items()}
    found = {table: sorted(row.replace(str(place), "") for row in rows) for table, rows in found.items()}
    files = (place / "artifacts").rglob("*.*")
    return found | {"files": sorted(names[path.relative_to(place / "artifacts").parts[0]] + path.name for path in files)}


def test_runs_at_once_are_row_for_row_what_mlflow_makes_of_their_pieces(desk, tmp_path, monkeypatch):
    calls = []
    insert = BulkInsert.insert
    monkeypatch.setattr(BulkInsert, "insert", lambda bulk, runs: (calls.append(len(runs)), insert(bulk, runs)))
    at_once = deliver(desk, tmp_path / "at-once")
    monkeypatch.setattr(tracking_writer.BulkInsert, "of", lambda *_: None)
    in_pieces = deliver(desk, tmp_path / "in-pieces")
    assert calls == [2]  # of the second trial something was heard before it began
    assert at_once == in_pieces
    assert len(at_once["metrics"]) >= 9


def test_a_writer_that_dies_before_it_notes_the_runs_is_followed_by_one_that_finds_them(desk, monkeypatch):
    def die(*_):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "remember_run", die)
        for _ in range(3):
            with pytest.raises(Died):
                desk.writer().deliver()
    desk.deliver()
    runs = connect(desk.spec.tracking_uri).search_runs(["1"])
    assert sorted(run.info.run_name for run in runs) == ["s", "s-0000", "s-0001", "s-0002"]
    assert {run.info.run_name: run.info.status for run in runs if run.info.run_name != "s"} == {
        "s-0000": "FINISHED", "s-0001": "FINISHED", "s-0002": "FAILED",
    }  # fmt: skip


def test_what_cannot_be_written_at_once_goes_piece_by_piece(desk, monkeypatch):
    def refuse(*_):
        raise TypeError("another MLflow, another table")

    monkeypatch.setattr(BulkInsert, "insert", refuse)
    desk.deliver()
    runs = connect(desk.spec.tracking_uri).search_runs(["1"])
    assert sorted(run.info.run_name for run in runs) == ["s", "s-0000", "s-0001", "s-0002"]


def test_behind_a_server_nothing_goes_at_once():
    assert BulkInsert.of(mlflow.MlflowClient("http://127.0.0.1:9"), "1") is None


def event(seq, kind, trial, **data):
    return Event(seq=seq, kind=kind, trial=trial, time_ms=0, data=data)


def test_events_are_divided_where_files_go_of_a_trial_that_is_not_whole():
    log = [
        event(0, "session_start", None),
        event(1, "trial_start", 0, attempt=1),
        event(2, "measurement", 7),
        event(3, "trial_end", 0),
        event(4, "trial_settled", 0),
        event(5, "trial_end", 7),
        event(6, "trial_settled", 7),
        event(7, "trial_start", 1, attempt=1),
        event(8, "trial_end", 1),
        event(9, "trial_settled", 1),
        event(10, "trial_start", 2, attempt=2),
        event(11, "trial_end", 2),
    ]
    divided = [([e.seq for e in chunk], sorted(whole)) for chunk, whole in chunks(log, lambda trial: True)]
    assert divided == [([0], []), ([1, 2, 3, 4, 5], [0]), ([6], []), ([7, 8, 9, 10, 11], [1])]
    known = [([e.seq for e in chunk], sorted(whole)) for chunk, whole in chunks(log[1:5], lambda trial: False)]
    assert known == [([1, 2, 3], []), ([4], [])]


def test_a_trial_with_candidates_or_a_second_attempt_is_not_whole():
    start, end = event(1, "trial_start", 0, attempt=1), event(9, "trial_end", 0)
    for between in (event(2, "candidate", 0), event(2, "trial_start", 0, attempt=2)):
        assert [whole for _, whole in chunks([start, between, end], lambda trial: True)] == [{}]
    assert [whole for _, whole in chunks([start, event(2, "trial_interrupted", 0)], lambda trial: True)] == [{}]
