"""Three settings of the environment say where a new study keeps its things."""

import pytest

from study.asking.query import tracking_uri_of
from study.errors import UserError
from study.home import Home
from study.run import _places
from study.settings import check_record, refuse_secrets, without_secrets


@pytest.fixture
def team(monkeypatch):
    monkeypatch.setenv("STUDY_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("STUDY_STORAGE", "s3://studies/narrow")
    monkeypatch.setenv("STUDY_RECORD", "postgresql://optuna@db/optuna")


def places(home, base=None, **given):
    return _places(base, Home(home), **({"storage": None, "tracking_uri": None, "record": None} | given))


def test_without_settings_everything_is_in_the_home(home):
    assert places(home) == {"storage": f"{home}/storage", "tracking_uri": f"sqlite:///{home}/mlflow.db", "record": None}


def test_settings_hold_for_new_studies_and_options_before_them(home, team):
    assert places(home) == {
        "storage": "s3://studies/narrow",
        "tracking_uri": "http://mlflow:5000",
        "record": "postgresql+psycopg://optuna@db/optuna",
    }
    assert places(home, storage="s3://other")["storage"] == "s3://other"


def test_a_study_that_exists_keeps_its_places_whatever_the_settings_say_now(home, team):
    class Old:
        storage, tracking_uri, record = "/data", "sqlite:////old.db", None

    assert places(home, Old) == {"storage": "/data", "tracking_uri": "sqlite:////old.db", "record": None}


def test_a_study_that_the_home_does_not_know_is_asked_of_the_teams_mlflow(home, team):
    assert tracking_uri_of(Home(home).study("somebodys")) == "http://mlflow:5000"


@pytest.mark.parametrize("address", ["postgres://u@h/d", "postgresql://u@h:5432/d", "postgresql+psycopg://u@h/d?sslmode=require"])
def test_a_record_is_taken_by_any_name_of_postgresql(address):
    assert check_record(address) == f"postgresql+psycopg://{address.partition('://')[2]}"


@pytest.mark.parametrize("address", ["mysql://u@h/d", "/data/optuna.db", "postgresql://u@h", "sqlite:///x.db"])
def test_a_record_elsewhere_is_refused(address):
    with pytest.raises(UserError, match="postgresql://user@host/database"):
        check_record(address)


def test_no_address_may_hold_a_password_and_no_sentence_shows_one():
    with pytest.raises(UserError, match=r"must hold no password.*u:\*\*\*@h/d; ") as error:
        check_record("postgresql://u:secret@h/d")
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match=r"--storage must hold no password"):
        refuse_secrets("--storage", "s3://key:secret@bucket/x", "set AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"password=\*\*\*&sslmode=require; ") as error:
        check_record("postgresql://u@h/d?password=secret&sslmode=require")
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="must be an address"):
        check_record("postgresql://u@[h/d")
    assert without_secrets("postgresql://u@h/d?sslmode=require") == "postgresql://u@h/d?sslmode=require"
    assert without_secrets("postgresql://u:secret@h:5432/d") == "postgresql://u:***@h:5432/d"
    assert without_secrets("/plain/folder") == "/plain/folder"
