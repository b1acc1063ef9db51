"""Records of several studies in one database on a PostgreSQL server."""

import os
import tempfile
from pathlib import Path

import commands
import pytest
from hosts import Host
from postgres import postgres

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def database():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # the server is another user's process
        with postgres(Host("db", "127.0.0.1", Path(folder), None)) as server, pytest.MonkeyPatch.context() as patch:
            patch.setenv("PGPASSWORD", server.password)
            patch.setenv("STUDY_RECORD", server.uri("optuna"))
            yield server


def trials_of(server, name):
    """(number, state) of the trials of a study."""
    query = "SELECT number, state FROM trials JOIN studies USING (study_id) WHERE study_name LIKE '{}-%' ORDER BY number"
    return server.ask(query.format(name), "optuna", "optuna")


def has_tables(server):
    return server.ask("SELECT to_regclass('trials') IS NOT NULL", "optuna", "optuna") == [("t",)]


def test_studies_share_a_database_survive_a_kill_and_are_deleted_one_by_one(database, home, desk):
    other = commands.run("launch", "user_space:fine", "--name", "other", "--trials", "2", home=home, cwd=desk)
    assert (other.returncode, other.stderr) == (0, "")
    process = commands.start("launch", "user_space:slow", "--name", "p", "--trials", "4", home=home, cwd=desk)
    commands.wait_until(lambda: has_tables(database) and len(trials_of(database, "p")) >= 2, "two trials", 120)
    os.killpg(process.pid, 9)
    process.communicate()
    resumed = commands.run("resume", "p", home=home, cwd=desk)
    assert (resumed.returncode, resumed.stderr) == (0, "")

    assert trials_of(database, "p") == [(str(number), "COMPLETE") for number in range(4)]
    assert len({row["params"]["x"] for row in commands.run_json("status", "p", home=home)["trials"]}) == 4
    assert not (home / "studies" / "p" / "optuna.db").exists()
    assert commands.run("gc", "p", "--dry-run", home=home).returncode == 0

    assert commands.run("delete", "p", "--yes", home=home).returncode == 0
    assert trials_of(database, "p") == []
    assert len(trials_of(database, "other")) == 2


def test_a_record_that_does_not_let_us_in_is_the_users_mistake_and_leaves_the_name_free(database, home, desk, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "wrong")
    refused = commands.run("launch", "user_space:fine", "--name", "w", home=home, cwd=desk)
    assert refused.returncode == 2
    assert "a study's record must answer and let us in, but postgresql+psycopg://optuna@" in refused.stderr
    assert "password authentication failed" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert commands.run_json("list", home=home) == []


def test_a_record_that_ends_in_the_midst_ends_the_session_with_a_sentence_and_loses_nothing(home, desk):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)
        with postgres(Host("db", "127.0.0.1", Path(folder), None)) as server:
            patch.setenv("PGPASSWORD", server.password)
            patch.setenv("STUDY_RECORD", server.uri("optuna"))
            process = commands.start("launch", "user_space:slow", "--name", "e", "--trials", "6", home=home, cwd=desk)
            commands.wait_until(lambda: has_tables(server) and len(trials_of(server, "e")) >= 2, "two trials", 120)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    assert err.count("study: a study's record must answer") == 1
    assert "Traceback" not in err


def test_a_record_that_has_vanished_is_not_made_anew(database, home, desk):
    launch = ("launch", "user_space:fine", "--name", "v", "--trials", "1")
    assert commands.run(*launch, home=home, cwd=desk).returncode == 0
    (name,) = database.ask("SELECT study_name FROM studies WHERE study_name LIKE 'v-%'", "optuna", "optuna")[0]
    database.ask(f"UPDATE studies SET study_name = 'x{name}' WHERE study_name = '{name}'", "optuna", "optuna")
    lost = commands.run("extend", "v", "--trials", "2", home=home, cwd=desk)
    assert lost.returncode == 2
    assert f"has none of '{name}'; put the database back" in lost.stderr
    database.ask(f"UPDATE studies SET study_name = '{name}' WHERE study_name = 'x{name}'", "optuna", "optuna")
    assert commands.run("resume", "v", home=home, cwd=desk).returncode == 0
    assert trials_of(database, "v") == [("0", "COMPLETE"), ("1", "COMPLETE")]
