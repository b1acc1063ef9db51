"""What the service tells of studies: what the commands tell, as bytes that are made once; and of mistakes one sentence."""

import io
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import run_json
from served import ODD, serving

from study.asking import query
from study.errors import UserError
from study.home import Home
from study.service import desk
from study.service.downloads import ModelResponse, zip_pieces
from study.service.registered import ask_registered, registered_names
from study.service.settings import ServiceSettings

GROWN = "/api/v1/studies/grown"


def error_of(answer):
    """Its sentence, and nothing beside it."""
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


def test_the_list_tells_state_and_progress(service):
    studies = {study["study"]: study for study in service.get("/api/v1/studies").json()["studies"]}
    assert studies["grown"]["counts"] == {"failed": 2, "finished": 8}
    assert (studies["grown"]["num_trials"], studies["grown"]["progress"], studies["grown"]["state"]) == (9, 1.0, "imported")
    assert (studies["empty"]["counts"], studies["empty"]["progress"]) == ({}, 0.0)


def test_a_study_tells_objectives_with_units_and_equal_failures_once(service):
    study = service.get(GROWN).json()
    assert study["objectives"] == [
        {"metric": "loss", "goal": "min", "unit": "nats"}, {"metric": "size", "goal": "min", "unit": ""},
    ]  # fmt: skip
    assert study["log_scale"] == ["size"]
    (failures,) = study["failures"]
    assert (failures["cause"], failures["trials"]) == ("diverged", [8, 9])
    assert failures["error"].endswith(ODD)


def test_the_front_is_that_of_the_command_with_where_its_models_are(service, made_home):
    told = service.get(f"{GROWN}/front").json()
    assert [row.pop("model_url") for row in told["front"]] == [f"{GROWN}/models/{row['label']}/download" for row in told["front"]]
    assert {row.pop("run_url") for row in told["front"]} == {None}
    assert (told.pop("log_scale"), len(told.pop("dominated"))) == (["size"], told["num_dominated"])
    assert told == run_json("pareto", "grown", home=made_home)
    assert {row["label"] for row in told["front"]} >= {"2.0", "2.1", "0"}


def test_other_objectives_constraints_and_conditions_are_asked_as_the_command_does(service, made_home):
    asked = {"objective": ["size:max", "loss:min"], "constraint": ["loss <= 4"], "where": "params.width > 8"}
    told = service.get(f"{GROWN}/front", params=asked).json()
    words = ["--objective", "size:max", "--objective", "loss:min", "--constraint", "loss <= 4", "--where", "params.width > 8"]
    expected = run_json("pareto", "grown", *words, home=made_home)
    assert [row["label"] for row in told["front"]] == [row["label"] for row in expected["front"]]
    assert told["knee"] == expected["knee"]


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({"objective": "nothing:min"}, 400, "a metric of grown"),
        ({"objective": "loss"}, 200, None),
        ({"objective": ":min"}, 400, "must be metric:min"),
        ({"constraint": "loss < 3"}, 400, "must read"),
        ({"where": "params.width >"}, 400, ""),
        ({"where": "params.way LIKE '%a%b%c%d%e%f%'"}, 400, "4 wildcards"),
        ({"where": "x" * 400}, 422, "query.where"),
        ({"objective": ["loss"] * 9}, 422, "query.objective"),
        ({"objective": "'; DROP TABLE runs; --:min"}, 400, "a metric of grown"),
    ],
)
def test_a_question_that_cannot_be_answered_gets_one_sentence(service, asked, status, told):
    answer = service.get(f"{GROWN}/front", params=asked)
    assert answer.status_code == status
    assert told is None or told in error_of(answer)


def test_trials_come_page_by_page_and_by_state(service):
    pages = [service.get(f"{GROWN}/trials", params={"offset": offset, "limit": 4}).json() for offset in (0, 4, 8, 12)]
    assert [[trial["trial"] for trial in page["trials"]] for page in pages] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], []]
    assert {page["total"] for page in pages} == {10}
    failed = service.get(f"{GROWN}/trials", params={"state": "failed"}).json()
    assert [(trial["trial"], trial["failure"]["cause"]) for trial in failed["trials"]] == [(8, "diverged"), (9, "diverged")]
    assert service.get(f"{GROWN}/trials", params={"state": "odd"}).status_code == 422
    assert pages[1]["trials"][3]["metrics"]["loss"] == "NaN"


def test_a_trial_has_its_candidates_and_the_texts_that_others_chose_as_they_are(service):
    trial = service.get(f"{GROWN}/trials/2").json()
    assert [candidate["label"] for candidate in trial["candidates"]] == ["2.0", "2.1"]
    assert trial["params"]["way"] == ODD
    assert service.get(f"{GROWN}/trials/2").headers["content-type"] == "application/json"
    assert "2" in error_of(service.get(f"{GROWN}/trials/222"))


def test_what_the_client_has_is_not_sent_again(service):
    for path in ("", "/front", "/trials"):
        first = service.get(GROWN + path)
        again = service.get(GROWN + path, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert service.get(GROWN + path, headers={"If-None-Match": '"other"'}).content == first.content


@pytest.mark.parametrize(
    "path",
    [
        "nothing", "..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "-x", "a" * 81, "%00", "grown%00", "%3Cscript%3E", "nothing/front",
        "nothing/log", "grown/trials/..%2f..", "grown/trials/-1", "grown/trials/1e3", "grown/models/..%2f..%2fspec.json/download",
        "grown/models/3%2f..%2f4/download", "grown/models/3.x/download", "grown/models/03/download",
        "grown/models/%D9%A3/download", "grown/models/99/download", "grown/models/8/download", "grown/models/2.7/download",
    ],
)  # fmt: skip
def test_no_path_leads_anywhere_but_to_studies_trials_and_models(service, path):
    answer = service.get(f"/api/v1/studies/{path}")
    assert answer.status_code in (404, 422)
    assert error_of(answer)
    assert "root:" not in answer.text


@pytest.mark.parametrize("path", ["..%2fapp.py", "%2e%2e/settings.py", "index.html", "..\\app.py", "page.js%00", ""])
def test_three_files_of_the_page_are_served_and_no_others(service, path):
    assert service.get(f"/static/{path}").status_code == 404


def test_plotly_is_the_installed_one_and_the_page_names_nothing_from_elsewhere(service):
    page = service.get("/").text
    assert "://" not in page
    assert service.get("/static/plotly.min.js").headers["content-type"].startswith("text/javascript")
    assert len(service.get("/static/plotly.min.js").content) > 1_000_000
    assert "//cdn" not in service.get("/static/page.js").text
    assert "innerHTML" not in service.get("/static/page.js").text


def test_a_server_of_mlflow_is_linked_to_without_its_password(made_home):
    from dataclasses import replace

    from study.service.views import study_page

    study = query.open_study("grown", home=made_home)
    elsewhere = replace(study, tracking_uri="https://ada:secret@mlflow.example/base/")
    look = desk.Look("grown", desk.Standing("idle"), None, elsewhere, None, 1, "", 0.0)
    url = study_page(look, [])["run_url"]
    assert url.startswith("https://mlflow.example/base/#/experiments/")
    assert url.endswith(f"/runs/{study.run_id}")


def test_mlflow_is_asked_once_for_all_who_ask_at_once_and_not_oftener_than_it_can(made_home, monkeypatch):
    asked = []

    def slow(name, **options):
        asked.append(name)
        time.sleep(0.3)
        return query.open_study(name, **options)

    monkeypatch.setattr(desk, "open_study", slow)
    with serving(ServiceSettings(home=made_home)) as client, ThreadPoolExecutor(12) as clients:
        statuses = list(clients.map(lambda _: client.get(f"{GROWN}/front").status_code, range(60)))
        assert set(statuses) == {200}
        assert len(asked) == 1
        time.sleep(1.0)  # older than a second; but the reading took 0.3 s, and that is to be a sixth at most
        assert client.get(GROWN).status_code == 200
        assert len(asked) == 1


def test_an_mlflow_that_does_not_answer_is_told_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "home" / "studies" / "lost"
    folder.mkdir(parents=True)
    (folder / "imported.json").write_text("{}")
    with serving(ServiceSettings(home=tmp_path / "home")) as client:
        study = client.get("/api/v1/studies/lost").json()
        assert (study["state"], study["counts"]) == ("imported", None)
        assert study["sentence"]
        assert client.get("/api/v1/studies/lost/front").status_code == 400
        assert client.get("/api/v1/studies").json()["studies"][0]["study"] == "lost"
        assert client.get("/healthz").json() == {"status": "ok"}


def test_registered_spaces_are_those_of_the_command_and_the_operator_s(tmp_path, monkeypatch):
    (tmp_path / "served_space.py").write_text(
        "print('noise')\nfrom dataclasses import replace\nfrom search_spaces.cmsp_curriculum import tiny\n"
        "def mine():\n    return replace(tiny(), num_trials=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    found = ask_registered(["served_space:mine"])
    assert sorted(space["space"] for space in found["spaces"]) == sorted(registered_names(["served_space:mine"]))
    assert (found["spaces"][-1]["space"], found["spaces"][-1]["num_trials"]) == ("served_space:mine", 3)
    assert "cmsp_curriculum" in found["metrics"]


def test_a_model_s_folder_is_one_zip_and_is_removed_when_it_was_sent(tmp_path):
    import asyncio

    folder = tmp_path / "taken" / "s-3"
    (folder / "deep").mkdir(parents=True)
    (folder / "passport.json").write_text("{}")
    (folder / "deep" / "weights").write_bytes(bytes(range(256)) * 3000)
    (folder / "link").symlink_to("/etc/passwd")
    archive = zipfile.ZipFile(io.BytesIO(b"".join(zip_pieces(folder))))
    assert archive.testzip() is None
    assert sorted(archive.namelist()) == ["s-3/deep/weights", "s-3/passport.json"]
    assert archive.read("s-3/deep/weights") == (folder / "deep" / "weights").read_bytes()
    ended = []

    async def leave(message):
        raise OSError("the client has gone")

    with pytest.raises(Exception):  # noqa: B017 -- whatever the server makes of it
        asyncio.run(
            ModelResponse(folder, lambda: ended.append(True))({"type": "http", "asgi": {"spec_version": "2.4"}}, None, leave)
        )
    assert (ended, folder.parent.exists()) == ([True], False)


def test_a_study_whose_files_are_broken_hides_no_other(tmp_path):
    for name, text in (("bad", ""), ("good", '{"pid": 1, "started": 0.0, "arguments": [], "exit_code": 2}')):
        folder = Home(tmp_path).study(name).path
        folder.mkdir(parents=True)
        (folder / "driver.json").write_text(text)
    with serving(ServiceSettings(home=tmp_path)) as client:
        studies = client.get("/api/v1/studies").json()["studies"]
    assert [(line["study"], line["state"]) for line in studies] == [("bad", "unknown"), ("good", "refused")]


def test_names_that_nobody_has_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_TRACKING_URI", Home(tmp_path).tracking_uri)

    def nobody(name, **_):
        raise UserError(f"a study must be in MLflow, but there is no {name!r}; see `study list`")

    monkeypatch.setattr(desk, "open_study", nobody)
    with ThreadPoolExecutor(1) as workers:
        asked = desk.Desk(Home(tmp_path), workers)
        for number in range(5):
            with pytest.raises(desk.UnknownStudyError):
                asked._look(f"any{number}")
        assert asked._readings == {}
