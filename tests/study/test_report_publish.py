"""The page of a study in MLflow, and the tags of its front, as the front moves."""

from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from study.asking.query import open_study
from study.cli import app
from study.recording.outbox import Outbox
from study.recording.tracking_writer import StudyWriter
from study.reporting.report_page import make_report
from study.reporting.report_publish import publish_report
from trainables.storage import Folder


@pytest.fixture
def published(store, tmp_path, request):
    """A study in MLflow of trials 0 to 2, as it is now; and how to end further trials, with candidates if given."""
    name = f"published-{request.node.name}"[:70]
    outbox = Outbox(tmp_path / "outbox.db")

    def put(kind, key, data, trial=None):
        outbox.put(kind, key, data, trial=trial)

    def end(trial, loss, size, candidates=()):
        put("trial_start", f"trial/{trial}/start/1", {"params": {"x": trial}, "tags": {"params": {"x": trial}}}, trial)
        metrics = {"step": 1, "metrics": {"loss": loss, "size": size}, "progress": 1.0}
        put("measurement", f"trial/{trial}/step/1", metrics, trial)
        for number, (own_loss, own_size) in enumerate(candidates):
            folder = Folder(tmp_path / f"{trial}.{number}")
            folder.write("model.txt", b"a model")
            metrics = {"metrics": {"loss": own_loss, "size": own_size}, "model": folder.address, "params": {}}
            put("candidate", f"trial/{trial}/candidate/{number}", metrics | {"number": number, "step": 1}, trial)
        put("trial_end", f"trial/{trial}/end/1", {"state": "finished", "tags": {}, "model": None, "charts": None}, trial)

    def study():
        artifacts = (tmp_path / "mlflow").as_uri()
        StudyWriter(outbox, name=name, study_id=name, tracking_uri=store, artifacts=artifacts).deliver()
        return open_study(name, tracking_uri=store, home=tmp_path / "home")

    objectives = [{"metric": "loss", "goal": "min", "unit": "1"}, {"metric": "size", "goal": "min", "unit": "1"}]
    tags = {"objectives": objectives, "constraints": [], "log_scale": [], "color_by": "null", "storage": str(tmp_path)}
    put("session_start", "session/1/start", {"tags": tags | {"space": "m:f", "num_trials": "9"}})
    end(0, 1.0, 5.0)
    end(1, 5.0, 1.0)
    end(2, 6.0, 6.0)
    yield study, end
    outbox.close()


def tagged(study, tag="front"):
    client = mlflow.MlflowClient(study.tracking_uri)
    experiment = client.get_run(study.run_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`narrow_study.{tag}` = 'true'")
    return sorted(int(run.data.tags["narrow_study.trial"]) for run in found)


def test_a_published_page_is_an_artifact_and_the_front_is_tagged_until_it_moves(published, tmp_path):
    open_now, end = published
    study = open_now()
    path = make_report(study, tmp_path / "any-name.html")
    told = publish_report(study, study.front(), path)
    client = mlflow.MlflowClient(study.tracking_uri)
    assert [file.path for file in client.list_artifacts(study.run_id, "report")] == ["report/report.html"]
    assert (tagged(study), len(tagged(study, "knee"))) == ([0, 1], 1)
    assert (told.num_tagged, told.num_untagged) == (3, 0)

    again = publish_report(study, study.front(), path)
    assert (again.num_tagged, again.num_untagged) == (0, 0)
    assert [file.path for file in client.list_artifacts(study.run_id, "report")] == ["report/report.html"]

    end(3, 0.0, 0.0)
    study = open_now()
    publish_report(study, study.front(), make_report(study, path))
    assert tagged(study) == tagged(study, "knee") == [3]
    kept = client.download_artifacts(study.run_id, "report/report.html", str(tmp_path))
    assert Path(kept).read_text() == path.read_text()


def test_a_candidate_of_the_front_is_tagged_with_the_run_that_it_belongs_to(published, tmp_path):
    open_now, end = published
    end(3, 9.0, 9.0, candidates=[(0.5, 9.0), (9.0, 0.5), (9.0, 9.0)])
    study = open_now()
    path = make_report(study, tmp_path / "r.html")
    publish_report(study, study.front(), path)
    client = mlflow.MlflowClient(study.tracking_uri)
    experiment = client.get_run(study.run_id).info.experiment_id

    def models():
        found = client.search_logged_models([experiment], "tags.`narrow_study.front` = 'true'")
        return sorted(int(model.tags["narrow_study.candidate"]) for model in found)

    assert (tagged(study), models()) == ([0, 1, 3], [0, 1])
    end(4, 0.0, 0.6)
    study = open_now()
    publish_report(study, study.front(), path)
    assert (tagged(study), models()) == ([3, 4], [1])


def test_the_command_writes_a_page_and_publishes_it_unless_told_not_to(published, tmp_path, home):
    open_now, _ = published
    study = open_now()

    def ask(*options):
        command = ["report", study.name, "--out", str(tmp_path / "page.html"), "--tracking-uri", study.tracking_uri, *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert ask("--no-publish") == f"report: {tmp_path / 'page.html'}\n"
    assert tagged(study) == []
    assert f"in MLflow: report/report.html of run {study.run_id}; 3 tags set and 0 taken" in ask()
    assert tagged(study) == [0, 1]
