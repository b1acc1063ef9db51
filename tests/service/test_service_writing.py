"""What the service begins: drivers in processes of their own, from registered spaces alone; what does not go is told."""

import json
import os
import time

import pytest
from served import serving

from study.home import Home
from study.running import background
from study.service import drivers
from study.service.settings import ServiceSettings
from study.service.standing import standing
from study.spec import SpaceDescription, StudySpec

STUDIES = "/api/v1/studies"
LAUNCH = {"name": "new", "space": "cmsp_curriculum:tiny"}


@pytest.fixture
def started(monkeypatch):
    """What would have been run."""
    commands = []
    monkeypatch.setattr(drivers, "start_driver", lambda folder, arguments: commands.append((folder.name, list(arguments))))
    return commands


@pytest.fixture
def client(tmp_path):
    with serving(ServiceSettings(home=tmp_path / "home", address="auto", spaces=("mine:one",), writes_per_s=1000)) as client:
        yield client


@pytest.fixture
def folder(tmp_path):
    """The files of a study that has none yet."""
    folder = Home(tmp_path / "home").study("old")
    folder.path.mkdir(parents=True)
    return folder


@pytest.fixture
def launched(folder):
    """A study of five trials, as far as its files tell."""
    description = SpaceDescription(
        experiment="cmsp_curriculum", objectives={"parameters": "min"}, constraints=(), parameters=(), fixed={}, first_trials=(),
        varied_digest="",
    )  # fmt: skip
    StudySpec(
        name="old", study_id="id", space="cmsp_curriculum:tiny", import_paths=[], description=description, sampler="tpe", seed=0,
        num_trials=5, num_cpus=1, num_gpus=0, storage="/nowhere", tracking_uri=folder.home.tracking_uri, log_scale=[],
        color_by=None, versions={}, commit=None,
    ).save(folder.spec_file)  # fmt: skip
    folder.optuna_file.touch()
    return folder


def test_a_launch_is_words_for_the_command_and_is_accepted_at_once(client, started):
    asked = LAUNCH | {"trials": 7, "seed": 3, "sampler": "random", "max_concurrent": 2, "time_budget_s": 60.5, "keep": "all"}
    answer = client.post(STUDIES, json=asked)
    assert (answer.status_code, answer.json()) == (202, {"study": "new", "accepted": "launch"})
    ((name, words),) = started
    assert (name, words[:4]) == ("new", ["launch", "cmsp_curriculum:tiny", "--name", "new"])
    options = dict(zip(words[4::2], words[5::2], strict=True))
    assert options == {
        "--trials": "7", "--seed": "3", "--sampler": "random", "--keep": "all", "--early-stopping": "none",
        "--max-concurrent": "2", "--time-budget": "60.5", "--address": "auto",
    }  # fmt: skip


def test_the_words_of_a_launch_are_options_of_the_command(client, started):
    import typer.main

    from study.cli import app

    client.post(STUDIES, json=LAUNCH | {"trials": 7, "max_concurrent": 2, "time_budget_s": 1, "keep": "front"})
    known = {option for parameter in typer.main.get_command(app).commands["launch"].params for option in parameter.opts}
    assert {word for word in started[0][1] if word.startswith("--")} <= known


def test_the_operator_s_own_spaces_may_be_launched(client, started):
    assert client.post(STUDIES, json=LAUNCH | {"space": "mine:one"}).status_code == 202
    assert started[0][1][1] == "mine:one"


@pytest.mark.parametrize(
    "space",
    [
        "os:system",
        "cmsp_curriculum:_suggest_breadth",
        "mine:two",
        "mine",
        "../x:y",
        "search_spaces.cmsp_curriculum:tiny",
        "--help",
        "",
    ],
)
def test_what_is_not_registered_is_not_launched(client, started, space):
    answer = client.post(STUDIES, json=LAUNCH | {"space": space})
    assert (answer.status_code, started) == (400, [])
    assert "must be a registered one" in answer.json()["error"]


@pytest.mark.parametrize(
    "more",
    [
        {"name": "../up"}, {"name": "-x"}, {"name": ""}, {"name": "a/b"}, {"name": "a" * 81}, {"name": "a\n"}, {"trials": 0},
        {"trials": "7"}, {"trials": True}, {"trials": 10**9}, {"seed": -1}, {"sampler": "evil"}, {"keep": "none"},
        {"early_stopping": "best"},
        {"time_budget_s": 0}, {"time_budget_s": 1e400}, {"max_concurrent": 0}, {"storage": "/etc"}, {"tracking_uri": "http://x"},
        {"address": "evil:1"}, {"arguments": {"data_dir": "/"}}, {"record": "x"}, {"modules": "/tmp"}, {"space": 5},
    ],
)  # fmt: skip
def test_a_launch_of_another_form_is_refused(client, started, more):
    body = json.dumps(LAUNCH | more)
    answer = client.post(STUDIES, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, started) == (422, [])
    assert "must have the form" in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": "x"', b"[" * 20_000])
def test_what_is_no_json_object_is_refused(client, started, body):
    answer = client.post(STUDIES, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code in (400, 422), started) == (True, [])
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("what", ["stop", "resume", "extend"])
def test_a_study_that_is_none_cannot_go_on(client, started, what):
    answer = client.post(f"{STUDIES}/none/{what}", json={"trials": 9} if what == "extend" else {})
    assert (answer.status_code, started) == (404, [])


def test_a_study_goes_on_by_its_name(client, started, launched):
    assert client.post(f"{STUDIES}/old/resume", json={"max_concurrent": 3}).status_code == 202
    assert client.post(f"{STUDIES}/old/extend", json={"trials": 50}).status_code == 202
    assert started == [
        ("old", ["resume", "old", "--max-concurrent", "3", "--address", "auto"]),
        ("old", ["extend", "old", "--trials", "50", "--address", "auto"]),
    ]
    less = client.post(f"{STUDIES}/old/extend", json={"trials": 5})
    assert (less.status_code, len(started)) == (400, 2)
    assert "must be of more than the 5 trials" in less.json()["error"]
    again = client.post(STUDIES, json=LAUNCH | {"name": "old"})
    assert (again.status_code, len(started)) == (409, 2)


def test_a_study_that_runs_can_be_stopped_and_nothing_else(client, started, launched):
    idle = client.post(f"{STUDIES}/old/stop", json={})
    assert (idle.status_code, launched.is_asked_to_stop()) == (409, False)
    with launched.lease():
        assert standing(launched).state == "running"
        for what, body in (("resume", {}), ("extend", {"trials": 50})):
            answer = client.post(f"{STUDIES}/old/{what}", json=body)
            assert (answer.status_code, started) == (409, [])
            assert "is running" in answer.json()["error"]
        assert client.post(f"{STUDIES}/old/stop", json={}).status_code == 202
        assert launched.is_asked_to_stop()


def test_how_a_study_stands_is_told_by_its_files(launched, tmp_path):
    assert standing(launched).state == "idle"
    new = Home(tmp_path / "home").study("new")
    assert standing(new).state == "unknown"
    new.path.mkdir()
    mine = background.psutil.Process()
    note = {"pid": mine.pid, "started": mine.create_time(), "arguments": ["launch"], "exit_code": None}
    write = lambda folder, **more: (folder.path / "driver.json").write_text(json.dumps(note | more))  # noqa: E731
    write(new)
    assert standing(new).state == "starting"
    with new.lease():
        assert standing(new).state == "starting"
    time.sleep(0.02)
    write(new, exit_code=2, started=1.0)
    background.log_file(new).write_text("noise\nstudy: a space must be mended\n")
    assert (standing(new).state, standing(new).sentence) == ("refused", "a space must be mended")
    write(launched, exit_code=2, started=1.0)
    background.log_file(launched).write_text("study: the seed changed\n")
    assert standing(launched).state == "refused"
    later = time.time() + 5
    with launched.lease():
        pass
    os.utime(launched.path / "lock", (later, later))
    assert standing(launched).state == "idle"  # somebody has run it since


def test_a_refused_launch_is_listed_with_its_sentence_and_its_log(client, folder):
    (folder.path / "driver.json").write_text(json.dumps({"pid": 1, "started": 1.0, "arguments": [], "exit_code": 2}))
    background.log_file(folder).write_text("study: trials must be fewer ü\n")
    study = client.get(f"{STUDIES}/old").json()
    assert (study["state"], study["sentence"]) == ("refused", "trials must be fewer ü")
    assert [line["state"] for line in client.get(STUDIES).json()["studies"]] == ["refused"]
    log = client.get(f"{STUDIES}/old/log").json()
    assert log == {"text": "study: trials must be fewer ü\n", "next": 31}
    assert client.get(f"{STUDIES}/old/log", params={"after": 7}).json()["text"].startswith("trials")
    assert client.get(f"{STUDIES}/old/log", params={"after": 10**6}).json() == {"text": "", "next": 31}
    assert client.get(f"{STUDIES}/old/trials").json()["trials"] == []
    assert client.get(f"{STUDIES}/old/front").status_code == 400
