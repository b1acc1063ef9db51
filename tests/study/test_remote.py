"""Commands that run elsewhere: what is said again to a cluster, what travels there, and what is remembered here."""

import json
import subprocess
import sys

import commands
import pytest
import typer.main
from typer.testing import CliRunner

from study.cli import app
from study.errors import UserError
from study.home import Home
from study.remote import dispatch
from study.remote.dispatch import find_asked, find_remote
from study.remote.remembered import RemoteStudy, refuse_taken_name, remote_studies
from study.remote.words import words_of

HEAD = "http://head:8265"


def parsed(*arguments):
    """The context of a command, as its function gets it."""
    group = typer.main.get_command(app)
    context = group.make_context("study", list(arguments))
    name, command, rest = group.resolve_command(context, list(arguments))
    return command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", "m:f", "--name=a", "--set=x=$(touch /tmp/bad)", '--set=text=it\'s "so"; rm *', "--trials=3"],
        ["launch", "m:f", "--name=a", "--deterministic", "--max-concurrent=2", "--seed=-1"],
        ["fork", "a", "b", "--no-deterministic", "--sampler=random"],
        ["stop", "a", "--timeout=5.0"],
        ["status", "a", "--json"],
    ],
)
def test_a_command_is_said_again_as_it_was_given(arguments):
    words = words_of(parsed(*arguments))
    assert words[0] == arguments[0]
    assert sorted(words) == sorted(arguments)


def test_what_the_user_did_not_give_is_not_said(monkeypatch):
    monkeypatch.setenv("STUDY_TRACKING_URI", "http://of-the-laptop:5000")
    context = parsed("launch", "m:f", "--name", "a", "--detach", "--address", HEAD)
    assert words_of(context, without={"address", "detach"}) == ["launch", "m:f", "--name=a"]


def test_a_study_is_found_by_its_name_where_it_was_sent(home):
    RemoteStudy(name="a", address=HEAD, space="m:f").save(Home())
    assert find_remote("a", None) == RemoteStudy(name="a", address=HEAD, space="m:f")
    assert find_remote("a", "https://other") == RemoteStudy(name="a", address="https://other", space="m:f")
    assert find_remote("a", "auto") is None
    assert find_remote("b", None) is None
    assert find_remote("b", HEAD) == RemoteStudy(name="b", address=HEAD)
    assert [study.name for study in remote_studies(Home())] == ["a"]
    rows = commands.run_json("list", home=home)
    assert [(row["study"], row["space"], row["state"]) for row in rows] == [("a", "m:f", f"on {HEAD}")]
    RemoteStudy(name="a", address=HEAD).forget(Home())
    assert remote_studies(Home()) == []


def test_where_only_the_cluster_reaches_mlflow_it_is_asked_there(home, monkeypatch):
    asked = []
    monkeypatch.setattr(dispatch, "ask_there", lambda context, remote, _: asked.append((context.info_name, remote.name)) or 7)
    RemoteStudy(name="a", address=HEAD, tracking_uri="http://127.0.0.1:9").save(Home())
    assert CliRunner().invoke(app, ["status", "a"]).exit_code == 7
    assert asked == [("status", "a")]
    assert isinstance(CliRunner().invoke(app, ["status", "a", "--tracking-uri", "http://127.0.0.1:19"]).exception, UserError)
    assert len(asked) == 1


def test_a_study_of_this_machine_comes_before_one_on_a_cluster(home, made_here):
    RemoteStudy(name=made_here, address=HEAD).save(Home())
    assert find_remote(made_here, None) is None
    assert find_remote(made_here, HEAD) is not None


def test_a_name_means_one_study(home, made_here):
    refuse_taken_name(Home().study(made_here), is_remote=False)
    with pytest.raises(UserError, match="is on this machine and not on a cluster; choose another name"):
        refuse_taken_name(Home().study(made_here), is_remote=True)
    RemoteStudy(name="far", address=HEAD).save(Home())
    refuse_taken_name(Home().study("far"), is_remote=True)
    with pytest.raises(
        UserError, match=r"is on the cluster of http://head:8265; .* study resume far, or forget it: rm .*far\.json"
    ):
        refuse_taken_name(Home().study("far"), is_remote=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("launch", "m:f", "--name", "far"), "a study's name must mean one study"),
        (
            ("launch", "m:f", "--name", "a", "--address", HEAD, "--storage", "here"),
            "--storage of a study on a cluster must be a URI",
        ),
        (("launch", "m:f", "--name", "a", "--address", HEAD, "--tracking-uri", "http://u:pw@m"), "must hold no password"),
        (("launch", "cmsp_curriculum:tiny", "--name", "a", "--address", "ray://h:10001"), "Ray Client is not made"),
        (("launch", "cmsp_curriculum:tiny", "--name", "a", "--address", "http:/h"), "auto, or http://head:8265 from outside"),
        (("status", "a", "--address", "auto"), "is asked through its job server"),
        (("logs", "a", "--address", "h:6379"), "is asked through its job server"),
        (("logs", "a"), "there is no 'a'"),
        (("stop", "a", "--address", "http://127.0.0.1:1"), "a Ray cluster's job server must answer at --address"),
    ],
)
def test_a_mistake_about_places_is_one_sentence(home, arguments, sentence):
    RemoteStudy(name="far", address=HEAD).save(Home())
    result = CliRunner().invoke(app, list(arguments), env={"STUDY_HOME": str(home)})
    assert isinstance(result.exception, UserError)
    assert sentence in str(result.exception)
    assert "\n" not in str(result.exception)
    assert "pw" not in str(result.exception)
    assert [study.name for study in remote_studies(Home())] == ["far"]


def test_any_name_of_an_experiment_in_mlflow_may_be_asked_for(home):
    assert find_asked("my experiment / 1", None) is None


def test_a_driver_in_a_terminal_has_no_log(home, made_here):
    result = commands.run("logs", made_here, home=home)
    assert result.returncode == 2
    assert "a log is kept of a driver in the background" in result.stderr


def test_a_study_from_python_is_not_sent_as_a_job(home):
    from study import launch

    with pytest.raises(UserError, match="use the command: study launch"):
        launch("cmsp_curriculum:tiny", name="a", address=HEAD)


def test_asking_where_a_study_is_loads_nothing_heavy(home):
    code = "import sys, study.remote.dispatch; print(sorted({'ray', 'torch', 'mlflow', 'optuna', 'requests'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.fixture
def made_here(home):
    """Name of a study that was launched on this machine, as far as its files tell."""
    folder = Home().study("here")
    folder.path.mkdir(parents=True)
    folder.spec_file.write_text(json.dumps({}))
    folder.optuna_file.touch()
    return "here"
