"""A cluster of two raylets made by `ray start`, with token authentication, on this machine."""

import secrets

import commands
import pytest

pytestmark = pytest.mark.cluster


def test_trials_run_on_both_nodes_survive_ctrl_c_and_are_all_done_after_a_resume(cluster, home, desk):
    launch = ("launch", "user_space:slow", "--name", "k1", "--trials", "8", "--address", cluster)
    process = commands.start(*launch, home=home, cwd=desk)
    commands.wait_until(lambda: (home / "studies" / "k1" / "optuna.db").exists(), "the study to begin", 120)
    commands.wait_until(lambda: len(list(home.glob("mlartifacts/k1/*/artifacts/model"))) >= 2, "two trials to end", 120)
    commands.press_ctrl_c(process)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert "2 finished" in out or "3 finished" in out
    runs = commands.mlflow_runs(home, "k1")
    assert "RUNNING" not in set(runs["status"])
    assert (commands.children(runs)["status"] == "KILLED").sum() in (1, 2)  # a node may have been between two trials

    result = commands.run("resume", "k1", "--address", cluster, home=home, cwd=desk)
    assert result.returncode == 0, result.stderr
    trials = commands.children(commands.mlflow_runs(home, "k1"))
    assert len(trials) == 8
    assert set(trials["status"]) == {"FINISHED"}
    assert trials["params.x"].nunique() == 8


def test_a_wrong_token_is_the_users_mistake(cluster, home, desk, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    result = commands.run("launch", "user_space:fine", "--name", "k2", "--address", cluster, home=home, cwd=desk)
    assert result.returncode == 2
    assert "RAY_AUTH_TOKEN" in result.stderr
    assert "Traceback" not in result.stderr
    assert commands.run_json("list", home=home) == []
