"""A study on a cluster, run from outside: by its job server, with the user's own modules, from a machine that may go."""

import json
import os
import secrets
import signal

import commands
import pytest
from clusters import two_nodes

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def far_home(tmp_path_factory):
    """The study home of the cluster."""
    return tmp_path_factory.mktemp("far")


@pytest.fixture(scope="module")
def cluster(far_home):
    """Nothing of its nodes is shared but the study home's storage."""
    with two_nodes(dashboard=True, STUDY_HOME=str(far_home)) as made:
        yield made


def far_status(name, home):
    return json.loads(commands.run("status", name, "--json", home=home).stdout)


def test_a_study_stops_when_asked_and_goes_on_without_whoever_resumed_it(cluster, far_home, home, desk):
    launch = ("launch", "user_space:slow", "--name", "j1", "--trials", "20", "--address", cluster.job_server)
    process = commands.start(*launch, home=home, cwd=desk)
    commands.wait_until(lambda: len(list(far_home.glob("mlartifacts/j1/*/artifacts/model"))) >= 1, "a trial to end", 150)
    commands.press_ctrl_c(process)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "stopping j1" in out
    assert "go on with: study resume j1" in out
    assert len(list(cluster.folder.glob("second/session_2*/runtime_resources/working_dir_files/*/user_space.py"))) == 1

    resuming = commands.start("resume", "j1", home=home, cwd=home)  # the modules come from where they came from
    for line in resuming.stdout:
        if line.startswith("j1 runs on "):
            break
    os.killpg(resuming.pid, signal.SIGKILL)
    resuming.communicate()
    followed = commands.run("logs", "j1", "-f", home=home)
    assert followed.returncode == 0, followed.stderr
    assert "j1: 20 finished, 0 failed of 20 trials" in followed.stdout
    assert followed.stderr == "the driver of j1 has ended: all trials are done\n"
    trials = commands.children(commands.mlflow_runs(far_home, "j1"))
    assert list(trials["status"]) == ["FINISHED"] * 20
    assert trials["params.x"].nunique() == 20


def test_a_detached_study_answers_by_its_name(cluster, far_home, home, desk):
    launch = ("launch", "user_space:slow", "--name", "j2", "--trials", "40", "--detach", "--address", cluster.job_server)
    launched = commands.run(*launch, home=home, cwd=desk)
    assert launched.returncode == 0, launched.stderr
    assert "study logs j2 -f" in launched.stdout
    listed = commands.run_json("list", home=home)
    assert [(row["study"], row["state"]) for row in listed] == [("j2", f"on {cluster.job_server}")]
    status = far_status("j2", home)
    assert (status["state"], status["num_trials"]) == ("running", 40)
    here = commands.run("launch", "user_space:fine", "--name", "j2", home=home, cwd=desk)
    assert (here.returncode, "is on the cluster of" in here.stderr) == (2, True)
    stopped = commands.run("stop", "j2", home=home)
    assert "j2 has stopped" in stopped.stdout
    assert far_status("j2", home)["state"] == "idle"
    assert "it was interrupted" in commands.run("logs", "j2", home=home).stderr


def test_a_mistake_is_one_sentence_and_leaves_the_name_free(cluster, far_home, home, desk):
    launch = ("launch", "user_space:nowhere", "--name", "j3", "--detach", "--address", cluster.job_server)
    result = commands.run(*launch, home=home, cwd=desk)
    assert result.returncode == 2
    assert result.stderr.startswith("study: a space must be a function of its module")
    assert len(result.stderr.splitlines()) == 1
    assert commands.run_json("list", home=home) == []


@pytest.mark.parametrize("token", [secrets.token_hex(32), None])
def test_without_the_clusters_token_nothing_is_sent(cluster, home, desk, monkeypatch, token):
    if token is None:
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    launch = ("launch", "user_space:fine", "--name", "j4", "--address", cluster.job_server)
    result = commands.run(*launch, home=home, cwd=desk)
    assert result.returncode == 2
    assert "a cluster's job server must let us in" in result.stderr
    assert "RAY_AUTH_TOKEN" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert commands.run_json("list", home=home) == []
