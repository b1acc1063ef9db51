"""A user's own experiment, from outside our packages: interrupted, resumed, misbehaving."""

import shutil
import sqlite3
from pathlib import Path

import commands
import mlflow
import pytest

from study import open_study

HERE = Path(__file__).parent


@pytest.fixture
def desk(tmp_path):
    """The folder in which a user works, with a module of the user's own."""
    shutil.copy(HERE / "user_space.py.txt", tmp_path / "user_space.py")
    return tmp_path


def num_measurements(home, name):
    file = home / "studies" / name / "outbox.db"
    if not file.exists():
        return 0
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10) as connection:
        try:
            return connection.execute("SELECT count(*) FROM event WHERE key LIKE '%/step/%'").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_resume_does_the_rest(home, desk):
    process = commands.start("launch", "user_space:slow", "--name", "s1", "--max-concurrent", "2", home=home, cwd=desk)
    commands.wait_until(lambda: num_measurements(home, "s1") >= 16, "some trials under way")
    commands.press_ctrl_c(process)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "go on with: study resume s1" in out
    assert err == ""
    runs = commands.mlflow_runs(home, "s1")
    stopped = commands.children(runs)
    assert set(runs["status"]) == {"FINISHED", "KILLED"}
    assert "RUNNING" not in set(runs["status"])
    unfinished = stopped[stopped["status"] == "KILLED"]
    assert len(unfinished) in (1, 2)
    assert open_study("s1", home=home).trial(0).state == "finished"
    assert open_study("s1", home=home).front().left_out == {"interrupted": len(unfinished)}

    result = commands.run("resume", "s1", home=home, cwd=Path("/"))  # the study remembers where its module is
    assert result.returncode == 0, result.stderr
    trials = commands.children(commands.mlflow_runs(home, "s1"))
    assert len(trials) == 5
    assert set(trials["status"]) == {"FINISHED"}
    assert trials["params.x"].nunique() == 5
    resumed = trials[trials["run_id"].isin(unfinished["run_id"])]
    assert set(resumed["tags.narrow_study.attempts"]) == {"2"}
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    for run_id in trials["run_id"]:
        assert [row.step for row in client.get_metric_history(run_id, "count")] == [1, 2, 3, 4, 5, 6]
    number = int(resumed.iloc[0]["tags.narrow_study.trial"])
    log = open_study("s1", home=home).log(number)
    assert "attempt 2" in log
    assert "goes on from its checkpoint" in log
    assert log.count("counted to 1\n") == 1


@pytest.mark.slow
def test_a_time_budget_stops_a_study_that_can_go_on(home, desk):
    result = commands.run("launch", "user_space:slow", "--name", "s2", "--trials", "4", "--time-budget", "6", home=home, cwd=desk)
    assert result.returncode == 0, result.stderr
    assert "go on with: study resume s2" in result.stdout
    assert "RUNNING" not in set(commands.mlflow_runs(home, "s2")["status"])
    assert "interrupted" in {row.state for row in open_study("s2", home=home).trials()}


@pytest.mark.slow
def test_every_way_to_fail_is_named_and_costs_no_other_trial(home, desk):
    result = commands.run("launch", "user_space:misbehaving", "--name", "m1", "--max-concurrent", "1", home=home, cwd=desk)
    assert result.returncode == 1, result.stderr
    trials = {row["params"]["behaviour"]: row for row in commands.run_json("status", "m1", home=home)["trials"]}
    assert {name: row["state"] for name, row in trials.items()} == {
        "well": "finished", "nan": "failed", "bug": "failed", "die": "finished", "die always": "failed",
    }  # fmt: skip
    causes = {name: row["failure"]["cause"] for name, row in trials.items() if row["failure"]}
    assert causes == {"nan": "diverged", "bug": "bug", "die always": "worker_lost"}
    assert {name: row["attempts"] for name, row in trials.items()} == {"well": 1, "nan": 1, "bug": 1, "die": 2, "die always": 3}
    assert "above = nan" in trials["nan"]["failure"]["error"]
    shown = commands.run("trial", "m1", "2", home=home).stdout
    assert "a bug of the user's" in shown
    assert "_misbehave" in shown
    assert "counted to 2" in shown
    assert open_study("m1", home=home).front().left_out == {"failed": 3}
    runs = commands.children(commands.mlflow_runs(home, "m1"))
    assert sorted(runs["status"]) == ["FAILED", "FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert len(runs) == 5
