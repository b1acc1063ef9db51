"""However a trial ends, Optuna's record, MLflow and our own commands say the same of it: state and cause."""

import shutil
from pathlib import Path

import commands
import optuna
import pytest
from optuna.trial import TrialState

from study.running.record import STOPPED


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A study with a trial that finished, one with a NaN, one that lacked a metric, an infeasible one and a stopped one."""
    desk = tmp_path_factory.mktemp("desk")
    shutil.copy(Path(__file__).parent / "user_space.py.txt", desk / "user_space.py")
    stopping = "moasha:reduction=2,rungs=0.25,num_before=4"
    words = ("launch", "user_space:ends", "--name", "e", "--max-concurrent", "1", "--early-stopping", stopping)
    result = commands.run(*words, home=desk / "home", cwd=desk)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "e: 2 finished, 1 stopped early, 2 failed of 5 trials" in result.stdout
    return desk / "home"


@pytest.fixture(scope="module")
def record(home):
    study = optuna.load_study(study_name="e", storage=f"sqlite:///{home}/studies/e/optuna.db")
    return study.get_trials()


def test_optuna_hears_how_each_ended_and_what_was_there(record):
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE, TrialState.PRUNED]
    assert [trial.state for trial in record] == states
    assert [trial.values for trial in record] == [[0.3], None, None, [0.9], None]
    violations = [trial.constraints.get("below >= 0.2") for trial in record]
    assert violations == [pytest.approx(-0.5), None, None, pytest.approx(0.1), pytest.approx(-0.1)]
    stopped = record[4].user_attrs[STOPPED]
    assert (stopped["rung"], stopped["level"], stopped["values"]) == (0, 0.25, {"above": 0.7})


def test_mlflow_says_finished_of_those_alone_that_finished(home):
    runs = commands.children(commands.mlflow_runs(home, "e"))
    runs = runs.assign(number=runs["tags.narrow_study.trial"].astype(int)).sort_values("number")
    assert runs["status"].tolist() == ["FINISHED", "FAILED", "FAILED", "FINISHED", "KILLED"]
    assert runs["tags.narrow_study.state"].tolist() == ["finished", "failed", "failed", "finished", "stopped"]
    assert runs["tags.narrow_study.failure.cause"].tolist()[1:3] == ["diverged", "bug"]
    assert runs["tags.narrow_study.stopped.rung"].tolist()[4] == "0"
    assert runs["metrics.progress"].tolist() == [1.0, 0.25, 0.25, 1.0, 0.25]


def test_our_commands_say_the_same_with_the_cause(home, record):
    trials = commands.run_json("status", "e", home=home)["trials"]
    assert [trial["state"] for trial in trials] == ["finished", "failed", "failed", "finished", "stopped"]
    causes = [trial["failure"] and trial["failure"]["cause"] for trial in trials]
    assert causes == [None, "diverged", "bug", None, None]
    assert "below" in trials[2]["failure"]["error"]
    assert trials[4]["stopped"] == record[4].user_attrs[STOPPED]["why"]
    assert [trial["stopped"] for trial in trials[:4]] == [None] * 4


def test_a_front_has_the_finished_feasible_one_and_counts_the_others_with_their_reasons(home):
    front = commands.run_json("pareto", "e", home=home)
    assert [row["trial"] for row in front["front"]] == [0]
    assert front["left_out"] == {"failed": 2, "infeasible": 1, "stopped early": 1}


def test_a_stopped_trial_leaves_its_log_and_why_it_was_stopped_but_no_model_and_no_checkpoint(home, record):
    (folder,) = home.glob("**/trials/00004")
    assert {file.name for file in folder.rglob("*") if file.is_file()} == {"log.txt", "stopped.txt"}
    assert (folder / "stopped.txt").read_text() == record[4].user_attrs[STOPPED]["why"]
