"""One study from launch to front, through Ray, Optuna and MLflow as they are."""

import contextlib
import io
import json
import math

import commands
import mlflow
import pytest
import torch
from rich.console import Console

from study import launch, open_study
from study.errors import UserError
from study.home import Home
from study.recording.outbox import Outbox
from study.running.cluster import ray_session
from trainables.cmsp.curriculum import Curriculum

METRICS = {metric.name for metric in Curriculum.METRICS}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def t1(home):
    """A finished study of six trials, launched with the command."""
    result = commands.run("launch", "cmsp_curriculum:tiny", "--name", "t1", "--trials", "6", "--max-concurrent", "1", home=home)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """Launches in this process share one Ray, as they do in a notebook."""
    with ray_session(None):
        yield


def again(home, name, **options):
    return launch("cmsp_curriculum:tiny", name=name, max_concurrent=1, home=home, console=Console(quiet=True), **options)


def test_the_command_prints_progress_the_next_step_and_nothing_of_ray(t1):
    lines = t1.stdout.splitlines()
    assert sum(" finished: samples_to_convergence" in line for line in lines) == 6
    assert lines[-2:] == ["t1: 6 finished, 0 failed of 6 trials", "see: study pareto t1 --plot t1.png"]
    assert len(lines) == 8
    assert t1.stderr == ""


def test_mlflow_holds_one_parent_and_six_children_with_exactly_the_declared_metrics(t1, home):
    runs = commands.mlflow_runs(home, "t1")
    trials = commands.children(runs)
    assert (len(runs), len(trials)) == (7, 6)
    parent = runs[runs["tags.mlflow.parentRunId"].isna()].iloc[0]
    assert set(trials["tags.mlflow.parentRunId"]) == {parent["run_id"]}
    assert set(runs["status"]) == {"FINISHED"}
    assert {c.removeprefix("metrics.") for c in runs.columns if c.startswith("metrics.")} == METRICS | {"progress"}
    for _, trial in trials.iterrows():
        logged = {name for name in METRICS | {"progress"} if not math.isnan(trial[f"metrics.{name}"])}
        assert logged == METRICS | {"progress"}
        assert trial["metrics.progress"] == 1.0


def test_metrics_are_logged_once_at_each_step(t1, home):
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    for run_id in commands.children(commands.mlflow_runs(home, "t1"))["run_id"]:
        for name in METRICS | {"progress"}:
            steps = [row.step for row in client.get_metric_history(run_id, name)]
            assert steps == list(range(1, len(steps) + 1))


def test_a_trials_charts_are_among_its_artifacts_as_data_and_as_a_picture(t1, home):
    study = open_study("t1", home=home)
    (losses,) = study.charts(2)
    assert {series.label for series in losses.panels[0].series} == {"composite", "atoms"}
    client = mlflow.MlflowClient(study.tracking_uri)
    found = [file.path for file in client.list_artifacts(study.trial(2).run_id, "charts")]
    assert found == ["charts/losses.json", "charts/losses.png"]


def test_runs_say_where_they_come_from(t1, home):
    trial = commands.children(commands.mlflow_runs(home, "t1")).iloc[2]
    for tag in ("study", "study_id", "trial", "spec_hash", "commit", "seed", "hostname", "version.torch", "version.ray"):
        assert trial[f"tags.narrow_study.{tag}"], tag
    assert trial["tags.narrow_study.trial"] == "2"
    assert int(trial["params.width"]) in (16, 32, 48)


def test_the_front_as_json_agrees_with_mlflow(t1, home):
    answer = commands.run_json("pareto", "t1", home=home)
    assert answer.keys() == {
        "study", "objectives", "front", "knee", "hypervolume", "reference", "num_dominated", "left_out",
    }  # fmt: skip
    assert [objective["metric"] for objective in answer["objectives"]] == ["samples_to_convergence", "parameters"]
    runs = commands.children(commands.mlflow_runs(home, "t1")).set_index("run_id")
    feasible = runs[runs["metrics.fraction_converged"] >= 0.5]
    assert sum(answer["left_out"].values()) == len(runs) - len(feasible)
    assert answer["front"]
    for row in answer["front"]:
        run = feasible.loc[row["run_id"]]
        assert row["trial"] == int(run["tags.narrow_study.trial"])
        assert {name: str(value) for name, value in row["params"].items()} == {
            name: run[f"params.{name}"] for name in row["params"]
        }
        for name, value in row["values"].items():
            assert run[f"metrics.{name}"] == value
        better = feasible[
            (feasible["metrics.samples_to_convergence"] <= run["metrics.samples_to_convergence"])
            & (feasible["metrics.parameters"] < run["metrics.parameters"])
        ]
        assert better.empty


def test_other_views_of_the_front_agree_with_it(t1, home, tmp_path):
    front = commands.run_json("pareto", "t1", home=home)["front"]
    table = commands.run("pareto", "t1", "--plot", str(tmp_path / "f.html"), home=home)
    csv = commands.run("pareto", "t1", "--csv", "--plot", str(tmp_path / "f.png"), home=home).stdout.splitlines()
    assert [int(line.split(",")[0]) for line in csv[1:]] == [row["trial"] for row in front]
    assert "compared trials are on the front" in table.stdout
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "f.html").read_text()
    assert "plotly" in page
    assert "<script src=" not in page


def test_status_list_and_trial_tell_what_there_is(t1, home):
    status = commands.run_json("status", "t1", home=home)
    assert (status["state"], status["counts"], len(status["trials"])) == ("idle", {"finished": 6}, 6)
    assert [row["study"] for row in commands.run_json("list", home=home)] == ["t1"]
    trial = commands.run_json("trial", "t1", "3", home=home)
    assert (trial["state"], trial["attempts"], trial["failure"]) == ("finished", 1, None)
    assert "trial 3, attempt 1" in trial["log"]
    assert "width = " in commands.run("trial", "t1", "3", home=home).stdout
    assert "budget 6 trials" in commands.run("status", "t1", home=home).stdout


def test_a_trained_network_comes_out_of_mlflow_and_works(t1, home):
    study = open_study("t1", home=home)
    row = study.front().rows[0]
    networks = study.load_model(row.number)
    assert len(networks) == 2
    assert sum(p.numel() for p in networks[0].parameters()) == row.metrics["parameters"]
    assert networks[0](torch.zeros(1, networks[0][0].in_features)).shape == (1, 2)


CURVES = """
import dataclasses, torch
from search_spaces.space import StudySpace
from trainables.experiment import Candidate, Experiment, Metric

@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    x: float

class Curve(Experiment):
    Config = Config
    METRICS = (Metric(name="loss", goal="min", unit="1", meaning="x."), Metric(name="size", goal="min", unit="1", meaning="-"))
    progress = property(lambda self: self.steps / 3)

    def __init__(self, config, *, device):
        self.config, self.steps = config, 0

    def step(self):
        self.steps += 1
        return {"loss": 9.0, "size": 9.0}

    def candidates(self):
        number = self.steps - 1
        metrics = {"loss": self.config.x + number, "size": 3.0 - number}
        return [Candidate(number=number, metrics=metrics, tensors={"x": torch.tensor([self.config.x, number])})]

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

    def model_tensors(self):
        return {"x": torch.zeros(1)}

    @classmethod
    def rebuild(cls, config, tensors, files):
        return tensors["x"].tolist()

def space():
    return StudySpace(
        experiment="curves:Curve", suggest=lambda trial: {"x": trial.suggest_categorical("x", [0.25, 0.5])},
        objectives=("loss", "size"), constraints=("loss <= 2",), representative="size",
        first_trials=({"x": 0.25}, {"x": 0.5}), num_trials=2,
    )
"""


def test_a_trial_that_is_a_curve_offers_each_of_its_models(home, tmp_path):
    (tmp_path / "curves.py").write_text(CURVES)
    told = io.StringIO()
    console = Console(file=told, width=200)
    assert launch("curves:space", name="c1", max_concurrent=1, home=home, modules=tmp_path, console=console).num_finished == 2
    assert "trial 0.1 finished: loss = 1.25, size = 2" in told.getvalue()
    front = open_study("c1", home=home).front()
    assert [row.label for row in front.rows] == ["0.0", "0.1"]
    assert [row.label for row in front.dominated] == ["1.0", "1.1"]
    assert [row.label for row in front.infeasible] == ["0.2", "1.2"]
    assert open_study("c1", home=home).load_model(0, 1) == [0.25, 1.0]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_study_under_another_name(t1, home):
    again(home, "t2", trials=6)
    for first, second in zip(open_study("t1", home=home).trials(), open_study("t2", home=home).trials(), strict=True):
        assert (first.params, first.metrics) == (second.params, second.metrics)


@pytest.mark.slow
def test_launching_again_runs_nothing_raises_no_ray_and_a_larger_budget_extends(t1, home, monkeypatch):
    again(home, "t3", trials=2)
    before = open_study("t3", home=home).trials()
    with monkeypatch.context() as patch:
        patch.delattr("study.running.session.ray_session")
        outcome = again(home, "t3")
    assert (outcome.num_finished, outcome.exit_code, outcome.is_complete) == (2, 0, True)
    with contextlib.closing(Outbox(Home(home).study("t3").outbox_file)) as outbox:
        assert outbox.num_pending() == 0
    assert open_study("t3", home=home).trials() == before
    assert again(home, "t3", trials=3).num_finished == 3
    assert open_study("t3", home=home).trials()[:2] == before
    again(home, "t4", trials=3)
    assert open_study("t4", home=home).trial(2).params == open_study("t3", home=home).trial(2).params


def test_a_study_goes_on_only_as_what_it_was(t1, home):
    with pytest.raises(UserError, match=r"'t1' differs now \(seed: 0 -> 5\); fork it: study fork t1 t1-2 --seed 5"):
        again(home, "t1", seed=5)


@pytest.mark.slow
def test_a_first_launch_that_failed_leaves_its_name_free(home):
    with pytest.raises(UserError, match=r"a trial must fit a node, .*; "):
        again(home, "s1", trials=1, cpus_per_trial=1000)
    assert "s1" not in {folder.name for folder in Home(home).studies()}
    assert again(home, "s1", trials=1).num_finished == 1


@pytest.mark.slow
def test_trials_share_what_one_of_them_made(home):
    quiet = Console(quiet=True)
    assert launch("mnist_narrowing:tiny", name="n1", trials=4, home=home, console=quiet).num_finished == 4
    study = open_study("n1", home=home)
    made = [line for row in study.trials() for line in study.log(row.number).splitlines() if " made teacher-" in line]
    assert len(made) == 2  # one for each of the two seeds, in whichever trial needed it first
    assert study.front().rows


def test_a_name_that_another_home_has_in_the_same_mlflow_is_refused(t1, home, tmp_path):
    with pytest.raises(UserError, match="a study's name must be free in MLflow"):
        again(tmp_path / "other", "t1", tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    assert Home(tmp_path / "other").studies() == []


def test_a_storage_that_holds_another_study_of_the_name_is_refused(t1, home, tmp_path):
    with pytest.raises(UserError, match="a storage must hold one study of a name"):
        again(tmp_path / "other", "t1", storage=str(home / "storage"))


def test_spaces_lists_experiments_metrics_and_spaces(home):
    entries = commands.run_json("spaces", home=home)
    entry = next(entry for entry in entries if entry["experiment"] == "cmsp_curriculum")
    assert {metric["name"] for metric in entry["metrics"]} == METRICS
    spaces = {space["space"].removeprefix("cmsp_curriculum:") for space in entry["spaces"]}
    assert spaces == {"tiny", "cpu", "depth", "paper"}
    assert "fraction_converged >= 0.5" in json.dumps(entry)


def test_a_study_starts_warm_from_another_and_goes_on_as_it_began(t1, home):
    again(home, "w1", trials=1, warm_start=["t1"])
    known = json.loads((home / "studies/w1/warm_start.json").read_text())
    assert [told["trial"] for told in known] == [f"t1/{number}" for number in range(6)]
    params = [trial["params"] for trial in commands.run_json("status", "t1", home=home)["trials"]]
    assert [told["params"] for told in known] == params
    with pytest.raises(UserError, match="warm start: "):
        again(home, "w1", trials=2, warm_start=["t1", "w1"])
    assert again(home, "w1", trials=2, warm_start=["t1"]).num_finished == 2


def test_a_study_that_found_nothing_is_no_warm_start(t1, home):
    with pytest.raises(UserError, match="finished trials with our metrics"):
        launch("mnist_narrowing:tiny", name="w2", home=home, console=Console(quiet=True), warm_start=["t1"])
