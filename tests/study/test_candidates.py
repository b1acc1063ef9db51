"""A trial that is a curve: its candidates in MLflow, on the front, in every view of it."""

import dataclasses
import json
import pkgutil

import mlflow
import pytest
import torch

from study.asking.query import open_study
from study.cli import main
from study.errors import UserError
from study.recording.outbox import Outbox
from study.recording.tracking_writer import StudyWriter
from study.reporting import pictures, report
from trainables.experiment import Experiment, Metric
from trainables.model_files import save_model
from trainables.storage import Folder

STUDY = {
    "objectives": [{"metric": "accuracy", "goal": "max", "unit": "1"}, {"metric": "size", "goal": "min", "unit": "neurons"}],
    "constraints": ["accuracy >= 0.5"], "log_scale": ["size"], "color_by": json.dumps("method"), "storage": "/nowhere",
    "experiment": "test_candidates:Curve",
}  # fmt: skip


class Curve(Experiment):
    """Only what a candidate's files name."""

    METRICS = (Metric(name="accuracy", goal="max", unit="1", meaning=""), Metric(name="size", goal="min", unit="1", meaning=""))

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        width: int = 3

    @classmethod
    def rebuild(cls, config, tensors, files):
        return config.width, tensors["x"]


class Desk:
    """One study of a store, told event by event."""

    def __init__(self, store, folder, name):
        self.store, self.folder, self.name = store, folder, name
        self.outbox = Outbox(folder / "outbox.db")
        self.put("session_start", "session/1/start", {"tags": STUDY})

    def put(self, kind, key, data, trial=None):
        self.outbox.put(kind, key, data, trial=trial)

    def start(self, trial, **params):
        tags = {"params": params, "attempts": "1", "hostname": "h"}
        self.put("trial_start", f"trial/{trial}/start/1", {"params": params, "attempt": 1, "tags": tags}, trial)

    def measure(self, trial, accuracy, size):
        data = {"step": 1, "metrics": {"accuracy": accuracy, "size": size}, "progress": 1.0}
        self.put("measurement", f"trial/{trial}/step/1", data, trial)

    def offer(self, trial, number, accuracy, size):
        folder = Folder(self.folder / f"{trial}" / f"{number}")
        save_model(folder, "test_candidates:Curve", Curve.Config(), {"x": torch.tensor([float(trial), number])})
        data = {
            "number": number, "step": 1, "metrics": {"accuracy": accuracy, "size": size}, "params": {"method": "lasso"},
            "model": folder.address,
        }  # fmt: skip
        self.put("candidate", f"trial/{trial}/candidate/{number}", data, trial)

    def end(self, trial, state="finished"):
        data = {"state": state, "tags": {}, "model": None, "charts": None}
        self.put("trial_end", f"trial/{trial}/end/1", data, trial)

    def deliver(self):
        """Deliver with a fresh writer, as the one of a resume is."""
        artifacts = (self.folder / "mlflow").as_uri()
        StudyWriter(self.outbox, name=self.name, study_id=self.name, tracking_uri=self.store, artifacts=artifacts).deliver()

    def study(self):
        self.deliver()
        return open_study(self.name, tracking_uri=self.store, home=self.folder)

    def models(self):
        """Every logged model of the study, as MLflow itself returns them."""
        client = mlflow.MlflowClient(self.store)
        return client.search_logged_models([client.get_experiment_by_name(self.name).experiment_id])


@pytest.fixture
def desk(store, tmp_path, request):
    desk = Desk(store, tmp_path, "".join(letter if letter.isalnum() else "." for letter in request.node.name)[-60:].strip("."))
    yield desk
    desk.outbox.close()


@pytest.fixture(scope="module")
def curves(store, tmp_path_factory):
    """Two trials that are curves, one that is a point, one that failed."""
    desk = Desk(store, tmp_path_factory.mktemp("curves"), "curves")
    desk.start(0, method="lasso", width=3)
    desk.offer(0, 0, 0.9, 100.0)
    desk.offer(0, 1, 0.7, 10.0)
    desk.offer(0, 2, 0.4, 1.0)
    desk.measure(0, 1.0, 1.0)  # better than all, were it counted
    desk.start(1, method="none", width=3)
    desk.offer(1, 0, 0.6, 50.0)
    desk.measure(1, 1.0, 1.0)
    desk.start(2, method="none", width=3)
    desk.measure(2, 0.8, 40.0)
    desk.start(3, method="lasso", width=3)
    desk.offer(3, 0, 1.0, 1.0)
    for trial in range(4):
        desk.end(trial, "failed" if trial == 3 else "finished")
    yield desk.study()
    desk.outbox.close()


def test_a_candidate_is_one_logged_model_with_its_files_metrics_and_origin(desk):
    desk.start(7, method="lasso", width=3)
    desk.offer(7, 4, 0.9, 12.0)
    desk.deliver()
    (model,) = desk.models()
    run_id = desk.outbox.runs()[7]
    assert (model.status, model.source_run_id, model.model_type) == ("READY", run_id, "narrow-study")
    assert model.name == f"{desk.name.replace('.', '-')}-0007-4"
    assert {metric.key: (metric.value, metric.step) for metric in model.metrics} == {
        "candidate/accuracy": (0.9, 4), "candidate/size": (12.0, 4),
    }  # fmt: skip
    tags = {key.removeprefix("narrow_study."): value for key, value in model.tags.items()}
    assert (tags["study"], tags["study_id"], tags["trial"], tags["candidate"], tags["step"]) == (
        desk.name,
        desk.name,
        "7",
        "4",
        "1",
    )
    assert model.params == {"method": "lasso"}
    files = mlflow.MlflowClient(desk.store).list_logged_model_artifacts(model.model_id)
    assert [file.path for file in files] == ["experiment.json", "model.safetensors", "passport.json"]


CLIENT = "mlflow.MlflowClient"
STORE = "mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore"


@pytest.mark.parametrize(
    ("owner", "call"),
    [
        (CLIENT, "create_logged_model"), (CLIENT, "log_model_artifacts"), (CLIENT, "finalize_logged_model"),
        (STORE, "_log_metrics"), (STORE, "_log_model_metrics"),
    ],
)  # fmt: skip
def test_a_writer_that_dies_anywhere_leaves_what_the_next_one_completes(desk, monkeypatch, owner, call):
    desk.start(0)
    desk.deliver()
    desk.measure(0, 0.5, 30.0)
    desk.deliver()
    original = pkgutil.resolve_name(f"{owner}.{call}")

    def die_after(*args, **kwargs):
        original(*args, **kwargs)
        raise ConnectionError("killed")

    desk.offer(0, 0, 0.9, 12.0)
    desk.offer(0, 1, 0.8, 6.0)
    with monkeypatch.context() as patch, pytest.raises(Exception, match="killed"):
        patch.setattr(f"{owner}.{call}", die_after)
        desk.deliver()
    desk.deliver()
    assert sorted((model.tags["narrow_study.candidate"], str(model.status)) for model in desk.models()) == [
        ("0", "READY"), ("1", "READY"),
    ]  # fmt: skip
    assert [len(model.metrics) for model in desk.models()] == [2, 2]


def test_what_is_delivered_twice_is_there_once_and_the_trials_own_history_is_its_own(desk):
    desk.start(0)
    desk.measure(0, 0.5, 30.0)
    desk.offer(0, 0, 0.9, 12.0)
    desk.offer(0, 1, 0.8, 6.0)
    for _ in range(2):
        desk.outbox.mark_delivered(0)
        desk.deliver()
    client, run_id = mlflow.MlflowClient(desk.store), desk.outbox.runs()[0]
    assert [(row.step, row.value) for row in client.get_metric_history(run_id, "size")] == [(1, 30.0)]
    assert client.get_run(run_id).data.metrics["size"] == 30.0
    assert [(row.step, row.value) for row in client.get_metric_history(run_id, "candidate/size")] == [(0, 12.0), (1, 6.0)]
    assert [len(model.metrics) for model in desk.models()] == [2, 2]


def test_a_model_that_is_not_ready_and_one_of_somebody_elses_are_no_candidates(desk, monkeypatch):
    desk.start(0)
    desk.offer(0, 0, 0.9, 12.0)
    desk.measure(0, 0.5, 30.0)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "finalize_logged_model", lambda *_: None)
        desk.deliver()
    desk.offer(0, 1, 0.8, 6.0)
    desk.deliver()
    client = mlflow.MlflowClient(desk.store)
    client.finalize_logged_model(client.create_logged_model(desk.models()[0].experiment_id, name="mine").model_id, "READY")
    assert [row.label for row in desk.study().candidates(0)] == ["0.1"]


def test_all_candidates_are_read_however_many_pages_they_fill(desk, monkeypatch):
    desk.start(0)
    for number in range(5):
        desk.offer(0, number, 0.9, 12.0)
    desk.deliver()
    monkeypatch.setattr("study.recording.tracking._MODELS_PAGE", 2)
    assert [row.candidate for row in desk.study().candidates(0)] == [0, 1, 2, 3, 4]


def test_a_finished_trial_with_candidates_stands_on_the_front_by_these_alone(curves):
    front = curves.front()
    assert [row.label for row in front.rows] == ["0.0", "2", "0.1"]
    assert [row.label for row in front.dominated] == ["1.0"]
    assert [row.label for row in front.infeasible] == ["0.2"]
    assert front.left_out == {"failed": 1, "infeasible": 1}
    assert front.rows[0].metrics == {"accuracy": 0.9, "size": 100.0}
    assert front.rows[0].params == {"method": "lasso", "width": 3}


def test_trials_are_what_they_were(curves):
    assert [row.label for row in curves.trials()] == ["0", "1", "2", "3"]
    assert curves.trial(0).metrics == {"accuracy": 1.0, "size": 1.0, "progress": 1.0}
    assert [row.label for row in curves.candidates(0)] == ["0.0", "0.1", "0.2"]
    assert curves.candidates(2) == []
    with pytest.raises(UserError, match=r"a trial of .* must be 0 to 3, but got 9"):
        curves.candidates(9)


def test_a_trial_without_candidates_stands_for_itself(desk):
    desk.start(0)
    desk.measure(0, 0.8, 40.0)
    desk.end(0)
    study = desk.study()
    assert [row.label for row in study.front().rows] == ["0"]
    assert "1 of 1 compared trials are on the front" in report.summary(study.front())


def test_a_candidates_network_comes_out_of_mlflow(curves, tmp_path):
    width, tensor = curves.load_model(0, 1)
    assert (width, tensor.tolist()) == (3, [0, 1])
    folder = curves.download_model(1, tmp_path / "new" / "folder", 0)
    assert sorted(path.name for path in folder.iterdir()) == ["experiment.json", "model.safetensors", "passport.json"]


@pytest.mark.parametrize(("trial", "has"), [(0, "0 to 2"), (2, "none")])
def test_a_candidate_that_is_not_there_is_the_users_mistake(curves, trial, has):
    with pytest.raises(
        UserError, match=f"a candidate must be one that its trial has, but trial {trial} of .* has {has}, not 7; "
    ):
        curves.load_model(trial, 7)


def test_every_view_of_the_front_tells_candidates_apart(curves):
    front = curves.front()
    assert [(row["trial"], row["candidate"]) for row in front.to_json()["front"]] == [(0, 0), (2, None), (0, 1)]
    header, *lines = report.front_csv(front).splitlines()
    assert header == "trial,candidate,accuracy,size,method,width,run_id"
    assert [line.split(",")[:3] for line in lines] == [["0", "0", "0.9"], ["2", "", "0.8"], ["0", "1", "0.7"]]
    assert list(report.front_table(front).columns[0].cells) == ["0.0", "2", "0.1"]
    assert report.summary(front) == "3 of 4 compared models are on the front; left out: 1 failed, 1 infeasible"


def test_a_data_frame_has_a_row_a_trial_or_a_row_a_model(curves):
    trials, models = curves.trials().to_pandas(), curves.models().to_pandas()
    assert [name for name in trials.columns if "candidate" in name] == []
    assert list(trials["trial"]) == [0, 1, 2, 3]
    assert list(models["trial"]) == [0, 0, 0, 1, 2, 3]
    assert list(models["candidate"].dropna()) == [0, 1, 2, 0, 0]
    assert list(models["metrics.size"]) == [100, 10, 1, 50, 40, 1]


def test_the_command_lists_a_trials_candidates(curves, home, monkeypatch, capsys):
    def ask(*options):
        monkeypatch.setattr("sys.argv", ["study", "trial", curves.name, *options, "--tracking-uri", curves.tracking_uri])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    candidates = json.loads(ask("0", "--json"))["candidates"]
    assert candidates[1] == {"candidate": 1, "metrics": {"accuracy": 0.7, "size": 10.0}, "model_id": candidates[1]["model_id"]}
    shown = ask("0")
    assert "candidate" in shown
    assert "0.2" in shown
    assert "candidate" not in ask("2")


def test_a_picture_says_each_colour_and_each_kind_once(curves, tmp_path):
    pictures.plot_front(curves, curves.front(), tmp_path / "front.html")
    traces = drawing(tmp_path / "front.html")
    entries = [trace["name"] for trace in traces if trace.get("name")]
    assert entries == ["front", "dominated", "infeasible", "knee: 0.0", "method = lasso", "method = none"]
    colors = {trace["legendgroup"]: trace["marker"]["color"] for trace in traces if trace.get("text")}
    assert colors == {"method = lasso": "#0072b2", "method = none": "#d55e00"}
    labels = {text.partition("<br>")[0] for trace in traces for text in trace.get("text", ())}
    assert labels == {f"<b>trial {label}</b>" for label in ("0.0", "0.1", "0.2", "1.0", "2")}


def test_a_model_that_a_logarithmic_axis_has_no_place_for_is_left_out_and_said_aloud(desk, tmp_path):
    desk.start(0, method="lasso")
    desk.offer(0, 0, 0.9, 100.0)
    desk.offer(0, 1, 0.6, 0.0)
    desk.measure(0, 1.0, 1.0)
    desk.end(0)
    study = desk.study()
    for name in ("front.html", "front.png"):
        pictures.plot_front(study, study.front(), tmp_path / name)
    assert "1 model at 0 is not drawn" in (tmp_path / "front.html").read_text()
    assert [trace["x"] for trace in drawing(tmp_path / "front.html") if trace.get("text")] == [[100]]


def drawing(page):
    """The traces that a page tells plotly to draw."""
    text = page.read_text()
    return json.JSONDecoder().raw_decode(text[text.index("[", text.rindex("Plotly.newPlot(")) :])[0]
