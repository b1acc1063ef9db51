"""What a query knows of MLflow without asking for all of it again: late, deleted, restored, edited and broken things."""

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
from made_runs import MadeStudy, copy_of_store, foreign_run, now_ms

from study.asking import run_index
from study.asking.index_files import Index, IndexFiles, Origin
from study.asking.query import open_study, read
from study.asking.run_index import read_index
from study.asking.trials import table_of
from study.errors import UserError
from study.home import Home
from study.recording.tracking import STATE_TAG, NoAnswerError, connect


@pytest.fixture
def uri(store, tmp_path):
    return copy_of_store(store, tmp_path / "own")


@pytest.fixture
def study(store, request):
    """In a database with others."""
    return MadeStudy(store, f"index-{abs(hash(request.node.name))}")


@pytest.fixture
def lone_study(uri):
    """In a database of its own."""
    return MadeStudy(uri, "s")


class Reader:
    """Reads a study again and again, with one index; tells how many runs MLflow was asked for."""

    def __init__(self, folder, uri, name):
        self.files, self.uri, self.name = IndexFiles(folder, uri, name), uri, name
        self.num_asked = 0

    def _told(self, num_runs):
        self.num_asked = num_runs

    def read(self, *, refresh=False):
        return read_index(self.uri, self.name, self.files, refresh=refresh, progress=self._told)

    def metric(self, name="loss", *, refresh=False):
        """Of each active trial, by number."""
        rows = self.read(refresh=refresh).runs.to_pylist()
        return {row["trial"]: row.get(f"metrics.{name}") for row in rows if row["lifecycle"] == "active"}


@pytest.fixture
def reader(tmp_path, study):
    return Reader(tmp_path / "index", study.uri, study.name)


@pytest.fixture
def lone_reader(tmp_path, lone_study):
    return Reader(tmp_path / "index", lone_study.uri, "s")


@pytest.fixture
def short_pages(monkeypatch):
    """The runs that ended last are two, not two hundred, so that a few runs are many."""
    monkeypatch.setattr(run_index, "_FIRST_PAGE", 2)


def test_a_study_of_nothing_but_its_parent_has_no_trials(study, reader):
    assert reader.metric() == {}
    assert reader.metric() == {}


def test_what_is_final_is_not_asked_for_again(study, reader, short_pages):
    for trial in range(8):
        study.trial(trial, loss=float(trial))
    assert reader.metric() == {trial: float(trial) for trial in range(8)}
    assert reader.num_asked >= 8
    assert reader.metric() == {trial: float(trial) for trial in range(8)}
    assert reader.num_asked < 5  # the two that ended last, and the parent, which runs


def test_one_trial_more_does_not_have_the_others_read_again(study, reader, monkeypatch):
    monkeypatch.setattr(run_index, "_FIRST_PAGE", 4)
    for trial in range(12):
        study.trial(trial, loss=float(trial))
    reader.read()
    study.trial(12, loss=12.0)
    assert reader.metric() == {trial: float(trial) for trial in range(13)}
    assert reader.num_asked <= 4 + 1  # a page, and the parent


def test_a_trial_that_ended_since_shows(study, reader, short_pages):
    study.trial(0, loss=0.0)
    reader.read()
    for trial in range(1, 6):
        study.trial(trial, loss=float(trial))
    assert reader.metric() == {trial: float(trial) for trial in range(6)}


def test_a_trial_that_ends_late_by_a_clock_that_is_behind_shows(study, reader, short_pages):
    late = study.start(2)
    for trial in (0, 1, 3, 4):
        study.trial(trial, loss=float(trial))
    assert reader.metric()[2] is None  # it runs
    study.end(late, end_ms=1_600_000_000_000, loss=2.0)
    assert reader.metric()[2] == 2.0


def test_a_trial_begun_and_ended_between_two_reads_by_a_clock_that_is_behind_shows(study, reader, short_pages):
    for trial in (0, 1, 2, 4):
        study.trial(trial, loss=float(trial))
    reader.read()
    study.trial(3, end_ms=1_600_000_000_000, loss=3.0)
    assert reader.metric()[3] == 3.0
    study.trial(5, end_ms=1_600_000_000_000, loss=5.0)  # the one that would come next
    study.trial(6, end_ms=1_600_000_000_001, loss=6.0)  # and one that nobody would ask for by its number
    assert reader.metric() == {trial: float(trial) for trial in range(7)}


def test_a_running_trial_that_finishes_shows(study, reader):
    run = study.start(0)
    assert [row["state"] for row in reader.read().runs.to_pylist()] == ["running"]
    study.end(run, loss=1.0)
    assert [(row["state"], row["metrics.loss"]) for row in reader.read().runs.to_pylist()] == [("finished", 1.0)]


def test_a_running_trial_shows_its_newest_values(study, reader):
    run = study.start(0)
    for loss in (3.0, 2.0):
        study.client.log_metric(run, "loss", loss)
        assert reader.metric() == {0: loss}


def test_a_failed_trial_that_is_tried_again_shows_as_running_and_then_as_finished(study, reader, short_pages):
    run = study.trial(0, "failed")
    for trial in (1, 2, 3):
        study.trial(trial, loss=1.0)
    assert reader.metric()[0] is None
    study.client.set_tag(run, STATE_TAG, "running")
    study.client.update_run(run, status="RUNNING")
    assert reader.read().runs.filter(pa.compute.field("trial") == 0)["state"].to_pylist() == ["running"]
    study.end(run, loss=7.0)
    rows = reader.read().runs.filter(pa.compute.field("trial") == 0).to_pylist()
    assert [(row["state"], row["metrics.loss"]) for row in rows] == [("finished", 7.0)]


def test_interrupted_trials_do_not_have_the_finished_ones_read_again(study, reader, short_pages):
    for trial in range(9):
        study.trial(trial, "interrupted" if trial == 4 else "finished", loss=float(trial))
    for _ in range(3):
        assert reader.metric() == {trial: float(trial) for trial in range(9)}
    assert reader.num_asked < 6


def test_numbers_that_will_never_come_do_not_have_the_finished_ones_read_again(study, reader, short_pages):
    for trial in (0, 1, 5, 7, 8, 9):
        study.trial(trial, loss=float(trial))
    for _ in range(2):
        assert set(reader.metric()) == {0, 1, 5, 7, 8, 9}
    assert reader.num_asked < 5


def test_a_deleted_trial_goes_and_a_restored_one_comes_back(study, reader, short_pages):
    runs = [study.trial(trial, loss=float(trial)) for trial in range(5)]
    reader.read()
    study.client.delete_run(runs[1])
    assert set(reader.metric()) == {0, 2, 3, 4}
    study.client.restore_run(runs[1])
    assert reader.metric() == {trial: float(trial) for trial in range(5)}


def test_a_trial_that_is_deleted_before_the_first_read_is_no_trial_until_it_is_restored(study, reader):
    run = study.trial(0, loss=0.0)
    study.client.delete_run(run)
    assert reader.metric() == {}
    study.client.restore_run(run)
    assert reader.metric() == {0: 0.0}


def test_a_deleted_trial_that_is_purged_goes_for_good(study, reader, short_pages):
    runs = [study.trial(trial, loss=float(trial)) for trial in range(4)]
    study.client.delete_run(runs[0])
    assert reader.read().runs.num_rows == 4
    study.client._tracking_client.store._hard_delete_run(runs[0])  # what `mlflow gc` does
    for _ in range(2):
        assert set(reader.metric()) == {1, 2, 3}
        assert reader.read().runs.num_rows == 3


def test_a_trial_that_is_deleted_and_purged_between_two_reads_goes_with_a_refresh(study, reader):
    runs = [study.trial(trial, loss=float(trial)) for trial in range(2)]
    reader.read()
    study.client.delete_run(runs[0])
    study.client._tracking_client.store._hard_delete_run(runs[0])
    assert set(reader.metric(refresh=True)) == {1}
    assert set(reader.metric()) == {1}


def test_an_edit_of_a_trial_that_ended_last_shows_and_of_an_old_one_with_a_refresh(study, reader, short_pages):
    runs = [study.trial(trial, loss=float(trial)) for trial in range(5)]
    reader.read()
    for run in (runs[0], runs[4]):
        study.client.log_metric(run, "loss", 9.0, step=2)
    assert reader.metric() == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 9.0}
    assert reader.metric(refresh=True)[0] == 9.0
    assert reader.metric()[0] == 9.0


def test_a_metric_that_only_later_trials_have_is_missing_in_the_others(study, reader):
    study.trial(0, loss=0.0)
    reader.read()
    study.trial(1, loss=1.0, size=5.0)
    assert reader.metric("size") == {0: None, 1: 5.0}


def test_nan_and_infinity_are_kept_as_they_are_and_are_no_news(study, reader):
    study.trial(0, loss=math.nan, size=math.inf)
    study.trial(1, size=-math.inf)
    reader.read()
    kept = written(reader)
    again = reader.read().runs.sort_by("trial").to_pylist()
    assert math.isnan(again[0]["metrics.loss"]) and again[1]["metrics.loss"] is None
    assert [row["metrics.size"] for row in again] == [math.inf, -math.inf]
    assert written(reader) == kept


def written(reader):
    """When the tables were last written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(reader.files._folder.address).glob("*.parquet")}


def test_tables_are_written_only_when_there_is_news(study, reader):
    study.trial(0, loss=0.0)
    reader.read()
    kept = written(reader)
    reader.read()
    assert written(reader) == kept
    study.trial(1, loss=0.0)
    reader.read()
    assert written(reader) != kept


def test_a_run_in_the_experiment_that_is_no_trial_is_none(study, reader):
    study.trial(0, loss=1.0)
    foreign_run(study.client, study.experiment_id, loss=0.0)
    for _ in range(2):
        assert reader.metric() == {0: 1.0}


def test_an_mlflow_that_stops_to_answer_is_told_in_a_sentence_and_the_index_stays(study, reader, monkeypatch):
    study.trial(0, loss=1.0)
    reader.read()
    kept = written(reader)
    with monkeypatch.context() as patch:
        patch.setattr(study.client.__class__, "search_logged_models", lambda *_, **__: 1 / 0)
        with pytest.raises(NoAnswerError, match=r"that answers, but .* does not"):
            reader.read()
    assert written(reader) == kept
    assert reader.metric() == {0: 1.0}


def candidates(reader):
    return sorted((row["trial"], row["candidate"], row["metrics.loss"]) for row in reader.read().candidates.to_pylist())


def test_candidates_that_are_made_later_show_and_pending_ones_once_they_are_ready(study, reader):
    run = study.trial(0, loss=0.0)
    study.candidate(0, run, 0, loss=1.0)
    pending = study.candidate(0, run, 1, is_ready=False, loss=2.0)
    assert candidates(reader) == [(0, 0, 1.0)]
    study.candidate(0, run, 2, loss=3.0)
    assert candidates(reader) == [(0, 0, 1.0), (0, 2, 3.0)]
    study.client.finalize_logged_model(pending, "READY")
    assert candidates(reader) == [(0, 0, 1.0), (0, 1, 2.0), (0, 2, 3.0)]
    assert candidates(reader) == [(0, 0, 1.0), (0, 1, 2.0), (0, 2, 3.0)]


def test_a_pending_candidate_shows_once_ready_however_long_that_took(study, reader, monkeypatch):
    monkeypatch.setattr(run_index, "_OVERLAP_MS", 0)
    run = study.trial(0, loss=0.0)
    pending = study.candidate(0, run, 0, is_ready=False, loss=1.0)
    for number in (1, 2):
        time.sleep(0.01)
        study.candidate(0, run, number, loss=2.0)
        reader.read()
    study.client.finalize_logged_model(pending, "READY")
    assert [number for _, number, _ in candidates(reader)] == [0, 1, 2]


def test_the_metrics_of_candidates_are_not_those_of_their_trial(study, reader):
    run = study.trial(0, loss=5.0)
    study.candidate(0, run, 0, loss=1.0, sparsity=0.5)
    (row,) = reader.read().runs.to_pylist()
    assert {name: value for name, value in row.items() if name.startswith("metrics.")} == {
        "metrics.loss": 5.0,
        "metrics.progress": 1.0,
    }


ORIGIN = Origin(experiment_id="1", name="s", study_id="id", created_ms=5, run_id="r", tags={"objectives": "[]"})
RECORD = {"study": "s", "trial": 0, "state": "finished", "params": "{}", "run_id": "r0", "metrics": {"loss": 1.0}}


@pytest.fixture
def kept(tmp_path):
    """Files of an index that somebody has saved, of a database that is at rest."""
    (tmp_path / "mlflow.db").write_text("anything")
    files = IndexFiles(tmp_path / "index", f"sqlite:///{tmp_path / 'mlflow.db'}", "s")
    wait_for_rest(files)
    save_one(files)
    assert files.load_current() is not None
    return files


def save_one(files):
    index = Index(ORIGIN, table_of([RECORD]), table_of([RECORD | {"candidate": 0}]), 7)
    files.save(index, files.fingerprint())


def file_of(files, ending):
    return next(Path(files._folder.address).glob(f"*{ending}"))


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


DAMAGES = {
    "missing": Path.unlink,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "no text": lambda path: path.write_bytes(bytes(range(200, 256))),
    "other JSON": lambda path: path.write_text("[1, 2]"),
    "foreign Parquet": lambda path: pyarrow.parquet.write_table(pa.table({"run_id": ["not ours"]}), path),
}


@pytest.mark.parametrize("ending", [".note", ".runs.parquet", ".candidates.parquet"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_damaged_or_not_ours_counts_as_missing(kept, ending, damage):
    DAMAGES[damage](file_of(kept, ending))
    assert kept.load_current() is None
    assert kept.load(ORIGIN) is None
    save_one(kept)
    assert kept.load_current() is not None


@pytest.mark.parametrize("ending", [".note", ".runs.parquet", ".candidates.parquet"])
def test_a_flipped_byte_is_noticed_wherever_it_is(kept, ending):
    path = file_of(kept, ending)
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert kept.load_current() is None


@pytest.mark.parametrize("text", ["[1, 2]", '{"format": 0}', json.dumps({"token": "t", "fingerprint": None, "origin": {}})])
def test_a_note_of_another_format_counts_as_missing(kept, text):
    digest = hashlib.sha256(text.encode()).hexdigest()
    file_of(kept, ".note").write_text(f"{digest}\n{text}")
    assert kept.load_current() is None
    assert kept.load(ORIGIN) is None


@pytest.mark.parametrize("other", [{"experiment_id": "2"}, {"study_id": "other"}, {"created_ms": 6}, {"study_id": None}])
def test_an_index_of_another_experiment_counts_as_missing(kept, other):
    assert kept.load(dataclasses.replace(ORIGIN, **other)) is None


def test_a_study_is_read_from_mlflow_where_its_index_is_damaged(study, reader):
    study.trial(0, loss=1.0)
    reader.read()
    flip_a_byte(file_of(reader.files, ".runs.parquet"))
    assert reader.metric() == {0: 1.0}
    assert reader.files.load(reader.read().origin) is not None


def test_tables_of_two_saves_do_not_count_as_one_index(study, reader):
    study.trial(0, loss=0.0)
    origin = reader.read().origin
    older = file_of(reader.files, ".runs.parquet").read_bytes()
    study.trial(1, loss=1.0)
    reader.read()
    file_of(reader.files, ".runs.parquet").write_bytes(older)
    assert reader.files.load(origin) is None
    assert set(reader.metric()) == {0, 1}


def test_two_readers_at_once_both_come_to_the_same(study, reader, monkeypatch, tmp_path):
    for trial in range(3):
        study.trial(trial, loss=float(trial))
    other = Reader(tmp_path / "index", reader.uri, reader.name)
    save = IndexFiles._write

    def write_in_between(self, what, table):
        digest = save(self, what, table)
        if what == "runs" and self is reader.files:
            other.read()
        return digest

    monkeypatch.setattr(IndexFiles, "_write", write_in_between)
    assert set(reader.metric()) == {0, 1, 2}
    assert reader.metric() == other.metric() == {0: 0.0, 1: 1.0, 2: 2.0}


def test_tables_that_somebody_has_replaced_do_not_come_under_the_fingerprint_of_a_later_read(kept):
    loaded = kept.load(ORIGIN)
    older = Index(ORIGIN, table_of([]), table_of([]))
    kept.save(older, None)  # by a refresh that began before, and took its time
    kept.save(loaded, kept.fingerprint())
    assert kept.load_current() is None


def test_an_index_folder_that_cannot_be_written_changes_no_answer(study, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for trial in range(2):
        study.trial(trial, loss=float(trial))
    for folder in (tmp_path / "file" / "index", None):
        reader = Reader(folder, study.uri, study.name)
        for _ in range(2):
            assert reader.metric() == {0: 0.0, 1: 1.0}


def wait_for_rest(files):
    """Until the database's files are older than what a clock may hide."""
    while files.fingerprint() is None:
        time.sleep(0.02)


def test_a_database_that_has_not_changed_is_answered_without_importing_mlflow(lone_study, home, uri, tmp_path):
    for trial in range(3):
        lone_study.trial(trial, loss=float(trial), size=1.0)
    lone_reader = Reader(home / "index", uri, "s")
    wait_for_rest(lone_reader.files)
    lone_reader.read()
    code = (
        "import sys\n"
        "from study.asking.query import open_study\n"
        f"study = open_study('s', tracking_uri={uri!r}, home={str(home)!r})\n"
        "print([row.number for row in study.front().rows], 'mlflow' in sys.modules)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == "[0] False"


def test_a_database_that_has_changed_is_asked(lone_study, home, uri):
    place = Home(home)
    for trial in range(3):
        lone_study.trial(trial, loss=float(trial))
        assert read(uri, "s", place).runs.num_rows == trial + 1
        assert read(uri, "s", place).runs.num_rows == trial + 1


def test_a_database_that_changed_a_moment_ago_has_no_fingerprint_until_it_has_settled(lone_study, lone_reader):
    lone_study.trial(0, loss=0.0)
    assert lone_reader.files.fingerprint() is None  # it may change again within the same tick of the clock
    wait_for_rest(lone_reader.files)
    first = lone_reader.files.fingerprint()
    assert first == lone_reader.files.fingerprint() is not None
    lone_study.trial(1, loss=0.0)
    wait_for_rest(lone_reader.files)
    assert lone_reader.files.fingerprint() != first


def test_a_database_that_changes_while_it_is_read_is_asked_again(lone_study, lone_reader, monkeypatch):
    lone_study.trial(0, loss=0.0)
    wait_for_rest(lone_reader.files)
    save = IndexFiles.save

    def change_before(self, *arguments, **options):
        monkeypatch.setattr(IndexFiles, "save", save)
        lone_study.trial(1, loss=1.0)
        save(self, *arguments, **options)

    monkeypatch.setattr(IndexFiles, "save", change_before)
    lone_reader.read()
    wait_for_rest(lone_reader.files)
    assert lone_reader.files.load_current() is None
    assert set(lone_reader.metric()) == {0, 1}


@pytest.mark.parametrize("num_new", [0, 2])
def test_a_replaced_database_with_another_study_of_the_same_name_is_noticed(lone_study, lone_reader, store, uri, num_new):
    for trial in range(2):
        lone_study.trial(trial, loss=float(trial))
    wait_for_rest(lone_reader.files)
    assert set(lone_reader.metric()) == {0, 1}
    path = Path(uri.removeprefix("sqlite:///"))
    fresh = copy_of_store(store, path.parent / "fresh")
    new = MadeStudy(fresh, "s", study_id="another")
    for trial in range(num_new):
        new.trial(trial, loss=-1.0)
    moved = Reader(Path(lone_reader.files._folder.address), fresh, "s")
    moved.files._name = lone_reader.files._name  # at the other's address
    for _ in range(2):
        wait_for_rest(moved.files)
        assert moved.metric() == dict.fromkeys(range(num_new), -1.0)
        current = moved.files.load_current()
        assert current is not None and current.runs.num_rows == num_new


def test_an_index_is_of_one_study(study, reader):
    other = MadeStudy(study.uri, f"{study.name}-other", study_id="other")
    study.trial(0, loss=0.0)
    other.trial(0, loss=1.0)
    assert reader.metric() == {0: 0.0}
    assert Reader(Path(reader.files._folder.address), study.uri, other.name).metric() == {0: 1.0}


@pytest.mark.parametrize("uri", ["http://localhost:5000", "sqlite:////tmp/x.db?mode=ro", "postgresql://host/db"])
def test_only_an_embedded_database_has_a_fingerprint(uri, tmp_path):
    assert IndexFiles(tmp_path, uri, "s").fingerprint() is None


def test_an_experiment_of_somebody_elses_is_read_and_kept_too(store, tmp_path, short_pages):
    client = connect(store)
    experiment_id = client.create_experiment("theirs")
    for number in range(4):
        foreign_run(client, experiment_id, params={"width": 2**number, "way": "a"}, loss=float(number))
    killed = foreign_run(client, experiment_id, end="KILLED").info.run_id
    running = foreign_run(client, experiment_id, end=None).info.run_id
    reader = Reader(tmp_path / "index", store, "theirs")

    def states():
        return {row["run_id"]: row["state"] for row in reader.read().runs.to_pylist()}

    assert sorted(states().values()) == ["finished"] * 4 + ["interrupted", "running"]
    shown = [json.loads(text) for text in reader.read().runs["params"].to_pylist() if text != "{}"]
    assert sorted(shown, key=str) == [{"width": width, "way": "a"} for width in (1, 2, 4, 8)]
    assert reader.num_asked < 6
    client.set_terminated(running, status="FAILED", end_time=now_ms())
    assert (states()[running], states()[killed]) == ("failed", "interrupted")
    oldest = reader.read().runs.sort_by("start_ms")["run_id"][0].as_py()
    for change, lifecycle in ((client.delete_run, "deleted"), (client.restore_run, "active")):
        change(oldest)
        assert {row["run_id"]: row["lifecycle"] for row in reader.read().runs.to_pylist()}[oldest] == lifecycle


def test_runs_of_somebody_elses_that_were_killed_since_show_however_many_they_are(store, tmp_path, short_pages):
    client = connect(store)
    experiment_id = client.create_experiment("theirs-killed")
    reader = Reader(tmp_path / "index", store, "theirs-killed")
    for end, num_runs in (("FINISHED", 4), ("KILLED", 9)):
        for _ in range(num_runs):
            foreign_run(client, experiment_id, end=end)
        states = reader.read().runs["state"].to_pylist()
    assert (states.count("finished"), states.count("interrupted")) == (4, 9)


def test_a_study_that_was_renamed_in_mlflows_pages_keeps_its_constraints_and_models(uri, home):
    study = MadeStudy(uri, "before", tags={"constraints": ["loss <= 1"]})
    study.candidate(0, study.trial(0, loss=0.5, size=1.0), 0, loss=0.5, size=1.0)
    study.trial(1, loss=2.0, size=0.5)
    study.client.rename_experiment(study.experiment_id, "after")
    asked = open_study("after", tracking_uri=uri, home=home)
    front = asked.front()
    assert ([row.label for row in front.rows], [row.label for row in front.infeasible]) == (["0.0"], ["1"])
    assert {row.source_study for row in asked.models()} == {"after"}
    assert front.rows[0].require_source().experiment_id == study.experiment_id


def test_a_trial_or_candidate_that_is_missing_between_others_is_not_told_to_be_there(lone_study, home, uri):
    run = lone_study.trial(0, loss=0.0)
    lone_study.trial(3, loss=0.0)
    for number in (0, 2):
        lone_study.candidate(0, run, number, loss=0.0)
    study = open_study("s", tracking_uri=uri, home=home)
    with pytest.raises(UserError, match=r"must be one that has started \(the last is 3\), but got 1"):
        study.trial(1)
    with pytest.raises(UserError, match="trial 0 of 's' has some of 0 to 2, not 1"):
        study.model(0, 1)


def test_a_study_is_the_same_from_its_index_as_from_mlflow(lone_study, home, uri):
    run = lone_study.trial(0, params={"width": 3, "way": "a", "share": 0.5, "deep": True}, loss=1.0, size=2.0)
    lone_study.candidate(0, run, 0, loss=0.5, size=3.0)
    lone_study.trial(1, "failed", params={"width": 4})
    first = open_study("s", tracking_uri=uri, home=home)
    again = open_study("s", tracking_uri=uri, home=home)
    anew = open_study("s", tracking_uri=uri, home=home, refresh=True)
    for other in (again, anew):
        assert list(other.models()) == list(first.models())
        assert other.front().to_json() == first.front().to_json()
    assert first.trial(0).params == {"width": 3, "way": "a", "share": 0.5, "deep": True}
