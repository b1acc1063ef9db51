"""Studies as files, and studies made of files and of other people's experiments."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest
from made_runs import MadeStudy, copy_of_store, foreign_run
from typer.testing import CliRunner

from study.asking.query import open_study
from study.cli import app
from study.errors import UserError
from study.exchanging import import_writer
from study.exchanging.exchange import export_trials, import_experiment
from study.recording.tracking import connect, metric_history
from study.run import resume


@pytest.fixture
def own(store, home):
    """A home with a database that has MLflow's tables already."""
    return copy_of_store(store, home)


@dataclass
class Theirs:
    """Somebody else's experiment."""

    uri: str
    name: str
    experiment_id: str

    def runs(self):
        """All of them, by their start, as plain values."""
        found = connect(self.uri).search_runs([self.experiment_id], order_by=["attributes.start_time"])
        return [run.to_dictionary() for run in found]

    def add(self, **options):
        return foreign_run(connect(self.uri), self.experiment_id, **options)


@pytest.fixture
def theirs(store, request):
    """Two runs that finished, one that failed, one that runs and one that was killed."""
    name = f"sweep-{abs(hash(request.node.name))}"
    made = Theirs(store, name, connect(store).create_experiment(name))
    first = made.add(params={"width": 64, "way": "a"}, val_loss=0.5, size=9.0)
    connect(store).log_metric(first.info.run_id, "val_loss", 0.25, timestamp=5, step=3)
    made.add(params={"width": 128, "rate": "0.10"}, val_loss=0.75, size=math.inf, progress=0.5)
    made.add(end="FAILED", size=1.0)
    made.add(end=None, val_loss=0.0)
    made.add(end="KILLED", val_loss=0.0)
    return made


def bring_in(theirs, **options):
    options = {"objectives": ["loss:min", "size:min"], "metrics": {"val_loss": "loss"}, **options}
    return import_experiment(theirs.name, name="in", tracking_uri=theirs.uri, **options)


def test_an_experiment_of_somebody_elses_becomes_a_study_of_finished_trials(own, theirs, home):
    before = theirs.runs()
    found = bring_in(theirs)
    assert (found.num_new, found.num_known) == (3, 0)
    study = open_study("in")
    rows = list(study.trials())
    assert [(row.number, row.state) for row in rows] == [(0, "finished"), (1, "finished"), (2, "failed")]
    assert rows[0].params == {"width": 64, "way": "a"} and rows[1].params == {"width": 128, "rate": 0.1}
    assert rows[0].metrics == {"loss": 0.25, "size": 9.0, "progress": 1.0}
    assert rows[1].metrics == {"loss": 0.75, "size": math.inf, "their_progress": 0.5, "progress": 1.0}
    assert rows[2].failure is not None and theirs.name in rows[2].failure.error
    assert [row.number for row in study.front().rows] == [0]
    assert study.num_trials == 3 and study.tags["space"] == "imported"
    assert study.history(0, "loss") == [(0, 0.5), (3, 0.25)]
    assert theirs.runs() == before


def test_times_are_those_of_the_source(own, theirs):
    bring_in(theirs)
    runs = [run["info"] for run in theirs.runs() if run["info"]["status"] in ("FINISHED", "FAILED")]
    found = [(row.start_ms, row.end_ms) for row in open_study("in").trials()]
    assert found == [(run["start_time"], run["end_time"]) for run in runs]


def test_again_imports_what_is_new_and_nothing_twice(own, theirs):
    bring_in(theirs)
    first = list(open_study("in").trials())
    assert (bring_in(theirs).num_new, list(open_study("in").trials())) == (0, first)
    theirs.add(val_loss=0.1, size=2.0)
    found = bring_in(theirs)
    assert (found.num_new, found.num_known) == (1, 3)
    study = open_study("in")
    assert [row.number for row in study.trials()] == [0, 1, 2, 3] and study.num_trials == 4
    assert [row.number for row in study.front().rows] == [3]


@pytest.mark.parametrize(
    ("method", "call"),
    [("create_experiment", 1), ("create_run", 1), ("create_run", 3), ("log_batch", 3), ("set_tag", 2), ("set_terminated", 2)],
)
def test_an_import_that_is_cut_short_is_completed_by_the_same_command(own, theirs, monkeypatch, method, call):
    calls = 0
    real = getattr(import_writer.connect(own).__class__, method)

    def die(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(f"mlflow.MlflowClient.{method}", die)
        with pytest.raises(KeyboardInterrupt):
            bring_in(theirs)
    bring_in(theirs)
    rows = list(open_study("in").trials())
    assert [(row.number, row.state) for row in rows] == [(0, "finished"), (1, "finished"), (2, "failed")]
    assert [row.metrics.get("loss") for row in rows] == [0.25, 0.75, None]
    assert len(metric_history(own, rows[0].run_id, "loss")) == 2


def test_a_trial_that_somebody_deleted_here_does_not_come_back(own, theirs):
    bring_in(theirs)
    connect(own).delete_run(open_study("in").trial(1).run_id)
    assert bring_in(theirs).num_new == 0
    assert [row.number for row in open_study("in").trials()] == [0, 2]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objectives": []}, "must have objectives, but got none; add --objective"),
        ({"objectives": ["lost:min"]}, "some run must have an objective, but none has lost; there are loss, "),
        ({"objectives": ["loss"]}, "must be metric:min or metric:max"),
        ({"metrics": {"lost": "loss"}}, "must be there to be renamed, but got lost; there are"),
        ({"metrics": {"val_los": "loss"}}, "did you mean 'val_loss'"),
        ({"metrics": {"val_loss": ""}}, "must be renamed as THEIRS=OURS, but got val_loss="),
        ({"metrics": {"val_loss": "size"}}, "must not become one, but got size twice"),
    ],
)
def test_what_cannot_be_a_study_is_refused_before_anything_is_written(own, theirs, options, told):
    with pytest.raises(UserError, match=told):
        bring_in(theirs, **options)
    assert connect(own).get_experiment_by_name("in") is None


def test_what_is_no_source_is_refused_and_no_database_is_made(own, theirs, tmp_path):
    with pytest.raises(UserError, match=r"has no 'swep' \(there: .*sweep"):
        import_experiment("swep", name="in", objectives=["loss:min"], tracking_uri=theirs.uri)
    with pytest.raises(UserError, match="there is no database"):
        import_experiment("sweep", name="in", objectives=["loss:min"], tracking_uri=f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "other.parquet").write_text("no Parquet")
    for file in ("other.parquet", "missing.parquet"):
        with pytest.raises(UserError, match="a file that `study export` wrote"):
            import_experiment(str(tmp_path / file), name="in")


def test_a_study_is_not_imported_as_somebody_elses(own, theirs):
    study = MadeStudy(theirs.uri, f"ours-{theirs.name}")
    with pytest.raises(UserError, match="is a study; ask it where it is with --tracking-uri, or import what `study export"):
        import_experiment(study.name, name="in", objectives=["loss:min"], tracking_uri=theirs.uri)


def test_a_name_that_is_taken_is_refused(own, theirs, home):
    MadeStudy(own, "in")
    with pytest.raises(UserError, match="'in' of another source"):
        bring_in(theirs)


def test_an_imported_study_is_not_resumed(own, theirs, home):
    bring_in(theirs)
    with pytest.raises(UserError, match=r"but .*'in'"):
        resume("in")


@pytest.fixture
def made(own):
    """A study with a candidate, a failure and odd values."""
    study = MadeStudy(own, "made", tags={"constraints": ["size <= 100"], "log_scale": ["size"]})
    run = study.trial(0, params={"width": 4, "deep": True}, loss=1.0, size=2.0)
    study.candidate(0, run, 0, loss=0.5, size=3.0)
    study.candidate(0, run, 1, loss=0.75, size=1.0)
    study.trial(1, params={"width": 8, "rate": 0.5}, loss=math.inf, size=0.5)
    study.trial(2, "failed", params={"width": 16})
    study.trial(3, loss=math.nan, size=200.0)
    return study


def test_a_parquet_file_has_a_row_a_model_and_says_what_the_study_is(made, home, tmp_path):
    assert export_trials(open_study("made"), tmp_path / "made.parquet") == 5
    table = pyarrow.parquet.read_table(tmp_path / "made.parquet")
    facts = json.loads(table.schema.metadata[b"narrow_study"])
    assert table["candidate"].to_pylist() == [0, 1, None, None, None]
    assert [objective["metric"] for objective in facts["objectives"]] == ["loss", "size"]
    assert (facts["study"], facts["constraints"], facts["log_scale"]) == ("made", {"made": ["size <= 100"]}, ["size"])


def test_csv_and_json_have_the_same_models(made, home, tmp_path):
    for ending in (".csv", ".json"):
        export_trials(open_study("made"), tmp_path / f"made{ending}")
    assert pandas.read_csv(tmp_path / "made.csv")["metrics.loss"].tolist()[:3] == [0.5, 0.75, math.inf]
    fields = json.loads((tmp_path / "made.json").read_text(), parse_constant=pytest.fail)
    assert [row["metrics"].get("loss") for row in fields["models"]] == [0.5, 0.75, "Infinity", None, "NaN"]
    assert fields["facts"]["study"] == "made"


def test_another_ending_and_a_place_that_cannot_be_written_are_refused(made, home, tmp_path):
    with pytest.raises(UserError, match=r"must end in .parquet, .csv, .json, but got .*made.xlsx.*; try made.parquet"):
        export_trials(open_study("made"), tmp_path / "made.xlsx")
    with pytest.raises(UserError, match="cannot be"):
        export_trials(open_study("made"), tmp_path / "nowhere" / "made.parquet")


def test_an_exported_study_comes_in_elsewhere_with_the_same_front(made, store, tmp_path, monkeypatch):
    study, file = open_study("made"), str(tmp_path / "made.parquet")
    export_trials(study, file)
    monkeypatch.setenv("STUDY_HOME", str(tmp_path / "elsewhere"))
    copy_of_store(store, tmp_path / "elsewhere")
    assert import_experiment(file, name="in").num_new == 5
    assert import_experiment(file, name="in").num_new == 0
    again = open_study("in")
    values = [[row.metrics["loss"], row.metrics["size"]] for row in again.front().rows]
    assert values == [[row.metrics["loss"], row.metrics["size"]] for row in study.front().rows]
    assert [row.params for row in again.trials()][2] == {"width": 8, "rate": 0.5}
    assert again.front().left_out == {"NaN in loss": 1, "failed": 1}
    assert (again.log_scale, again.front().knee.metrics["loss"]) == (study.log_scale, study.front().knee.metrics["loss"])


def test_without_candidates_trials_keep_their_numbers(own, home, tmp_path):
    study = MadeStudy(own, "numbered")
    for number in (3, 1):
        study.trial(number, loss=float(number), size=1.0)
    export_trials(open_study("numbered"), tmp_path / "n.parquet")
    import_experiment(str(tmp_path / "n.parquet"), name="in")
    assert [(row.number, row.metrics["loss"]) for row in open_study("in").trials()] == [(1, 1.0), (3, 3.0)]


def test_the_commands_export_and_import_say_what_they_did(own, theirs, home, tmp_path):
    def told(*arguments):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    options = ("--objective", "loss:min", "--map", "val_loss=loss", "--tracking-uri", theirs.uri)
    assert "in: 3 trials imported, 0 were there" in told("import", theirs.name, "--name", "in", *options)
    assert "in: 3 models in" in told("export", "in", str(tmp_path / "in.csv"))
    assert Path(tmp_path / "in.csv").read_text().count("\n") == 4
    result = CliRunner().invoke(app, ("import", theirs.name, "--name", "in", "--map", "val_loss"))
    assert isinstance(result.exception, UserError) and "THEIRS=OURS" in str(result.exception)
